"""Reads and checks a recipe. The keys are those of mergekit's YAML; an unsupported key is an error that names it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dtypes import DType, float_dtype
from ..errors import UsageError, close_matches, shown
from ..methods import Base, Method, find
from ..models.documents import yaml_text
from ..models.reference import ModelRef
from .document import plain, read
from .settings import Constant, Setting, parse_setting

KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
LATER = {
    "slices": "list whole models under 'models'",
    "modules": "list whole models under 'models'",
    "tokenizer": "all models must share the base's tokenizer, which is copied; remove the key",
    "tokenizer_source": "all models must share the base's tokenizer, which is copied; remove the key",
    "chat_template": "the base's chat template is copied; remove the key",
}


@dataclass(frozen=True)
class RecipeModel:
    """One entry of `models`: a model reference and the parameters that hold for this model."""

    ref: ModelRef
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        method: the merge method.
        models: the entries of `models` in order; the base is among them if it is listed.
        base: the reference of `base_model`, or None.
        parameters: settings of the top level.
        dtype: the key `dtype`, or None.
        out_dtype: the key `out_dtype`, or None.
        source: the document that the recipe was made from.
    """

    method: Method
    models: tuple[RecipeModel, ...]
    base: ModelRef | None
    parameters: Mapping[str, Setting]
    dtype: DType | None = None
    out_dtype: DType | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """Reads and checks a recipe. No model is opened.

        Args:
            source: path of a YAML file, a dictionary with the same keys, or a Recipe (returned as it is).

        Returns:
            The Recipe.

        Raises:
            UsageError: the recipe is wrong. The message names the file and the place, and says what to write instead.

        Example:
            >>> wm.Recipe.load({"merge_method": "linear", "models": ["math", "code"], "parameters": {"weight": 1}})
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return parse(plain(source, "recipe"), "recipe")
        if not isinstance(source, (str, os.PathLike)):
            raise UsageError(f"a recipe must be a path, a dictionary or a Recipe, got {shown(source)}.")
        path = Path(source)
        return parse(plain(read(path), str(path)), str(path))

    @property
    def inputs(self) -> tuple[RecipeModel, ...]:
        """The models that are merged, in order. A reference base is not one of them; an endpoint base is the first."""
        others = tuple(m for m in self.models if m.ref != self.base)
        if self.method.base.is_reference:
            return others
        if self.method.base is Base.ENDPOINT and self.base is not None:
            return (next((m for m in self.models if m.ref == self.base), RecipeModel(self.base)), *others)
        return self.models

    @property
    def reference(self) -> ModelRef | None:
        """The model that deltas are taken from, or None."""
        return self.base if self.method.base.is_reference else None

    @property
    def metadata_source(self) -> ModelRef:
        """The model whose config, tokenizer, tensor names and integer tensors the output takes."""
        return self.base or self.models[0].ref

    def auxiliary(self, name: str) -> tuple[ModelRef, ...]:
        """The reference of each input's auxiliary tensors of this name. Raises UsageError if an input has none."""
        found = []
        for model in self.inputs:
            setting = model.parameters.get(name) or self.parameters.get(name)
            if not isinstance(setting, Constant):
                raise UsageError(
                    f"method '{self.method.name}' needs the parameter '{name}' for the model '{model.ref}': the path "
                    f"of its checkpoint of {name} tensors."
                )
            found.append(setting.value)
        return tuple(found)

    def to_yaml(self) -> str:
        """The recipe as YAML."""
        return yaml_text(plain(self.source, "recipe"), flow=None, width=80)


def parse(document: Any, where: str) -> Recipe:
    if not isinstance(document, Mapping):
        raise UsageError(f"{where}: a recipe must be a mapping with the keys {', '.join(KEYS)}.")
    for key in document:
        if key in LATER and document[key] is not None:
            raise UsageError(f"{where}: '{key}' is not supported yet: {LATER[key]}.")
        if key not in KEYS and key not in LATER:
            near = close_matches(key, KEYS) or "."
            raise UsageError(f"{where}: unknown key {shown(key)}{near} Keys: {', '.join(KEYS)}.")
    method = _method(document, where)
    listed = document.get("models")
    if not isinstance(listed, list) or not listed:
        got = "" if listed is None else f", got {shown(listed)}"
        raise UsageError(f"{where}: 'models' must be a list of at least one model{got}.")
    base = document.get("base_model")
    base = None if base is None else _model_ref(base, f"{where}: base_model")
    models = tuple(_model(entry, method, f"{where}: models[{i}]") for i, entry in enumerate(listed))
    _check_models(method, models, base, where)
    recipe = Recipe(
        method=method,
        models=models,
        base=base,
        parameters=_parameters(document.get("parameters"), method, f"{where}: parameters"),
        dtype=_dtype(document, "dtype", where),
        out_dtype=_dtype(document, "out_dtype", where),
        source=dict(document),
    )
    try:
        method.check_models(len(recipe.inputs))
    except UsageError as error:
        outside = method.base is Base.ENDPOINT and base not in [m.ref for m in models]
        raise UsageError(f"{where}: {error}{' The base_model counts as one of them.' * outside}") from None
    return recipe


def _method(document: Mapping[str, Any], where: str) -> Method:
    name = document.get("merge_method")
    if name is None:
        raise UsageError(f"{where}: 'merge_method' is missing; add a line such as `merge_method: ties`.")
    if not isinstance(name, str):
        raise UsageError(f"{where}: merge_method must be the name of a method, got {shown(name)}.")
    try:
        return find(name)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _dtype(document: Mapping[str, Any], key: str, where: str) -> DType | None:
    name = document.get(key)
    if name is None:
        return None
    if not isinstance(name, str):
        raise UsageError(f"{where}: {key} must be the name of a floating-point type, got {shown(name)}.")
    return float_dtype(name, f"{where}: {key}")


def _check_models(method: Method, models: tuple[RecipeModel, ...], base: ModelRef | None, where: str) -> None:
    for ref, times in Counter(m.ref for m in models).items():
        if times > 1:
            raise UsageError(f"{where}: the model '{ref}' is listed twice; give it once, with the sum of the weights.")
    if base is None and method.base.required:
        raise UsageError(
            f"{where}: method '{method.name}' needs a 'base_model'; add the model that the others come from."
        )


def _model(entry: Any, method: Method, where: str) -> RecipeModel:
    if isinstance(entry, str):
        return RecipeModel(_model_ref(entry, where))
    if not isinstance(entry, Mapping) or "model" not in entry:
        raise UsageError(f"{where}: an entry must be a path, or a mapping with 'model' and, if needed, 'parameters'.")
    for key in entry:
        if key not in ("model", "parameters"):
            raise UsageError(f"{where}: unknown key {shown(key)}{close_matches(key, ['model', 'parameters']) or '.'}")
    ref = _model_ref(entry["model"], where)
    where = f"{where} ({ref})"
    parameters = _parameters(entry.get("parameters"), method, where)
    for name in parameters:
        if not method.by_name[name].per_model:
            raise UsageError(
                f"{where}: '{name}' has one value for all models; move it to the 'parameters' at the top level."
            )
    return RecipeModel(ref, parameters)


def _model_ref(value: Any, where: str) -> ModelRef:
    if isinstance(value, Mapping):
        return _mapped_ref(value, where)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: a model must be a path or a Hugging Face id, got {shown(value)}.")
    if not os.path.exists(os.path.expanduser(value)):
        if "+" in value:
            raise UsageError(
                f"{where}: '{value}' is not a directory. LoRA adapters after a '+' are not supported yet: merge the "
                "adapter into its model first."
            )
        path, found, revision = value.partition("@")
        if found:
            return ModelRef(path, revision)
    return ModelRef(value)


def _mapped_ref(value: Mapping[str, Any], where: str) -> ModelRef:
    """mergekit's long form: {model: {path, revision}, lora, override_architecture}."""
    if value.get("lora") is not None:
        raise UsageError(f"{where}: 'lora' is not supported yet: merge the adapter into its model first.")
    if value.get("override_architecture") is not None:
        raise UsageError(
            f"{where}: 'override_architecture' is not supported: remove it. Models fit if their tensors have the same "
            "names."
        )
    inner = value.get("model", value)
    if not isinstance(inner, Mapping):
        inner = {"path": inner}
    known = {"path", "revision"} if inner is value else {"model", "lora", "override_architecture"}
    unknown = [*(k for k in value if k not in known), *(k for k in inner if k not in ("path", "revision"))]
    if unknown:
        raise UsageError(f"{where}: unknown key {shown(unknown[0])}; a model has 'path' and 'revision'.")
    path, revision = inner.get("path"), inner.get("revision")
    if revision is None:
        return _model_ref(path if not isinstance(path, Mapping) else None, where)
    if not isinstance(path, str) or not isinstance(revision, str):
        raise UsageError(f"{where}: 'path' and 'revision' of a model must be strings; put them in quotes.")
    return ModelRef(path, revision)


def _parameters(value: Any, method: Method, where: str) -> dict[str, Setting]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: parameters must be a mapping from names to values, got {shown(value)}.")
    references = {c.name for c in method.auxiliary}
    return {
        name: Constant(_model_ref(v, f"{where}: {name}"))
        if name in references
        else parse_setting(v, method.parameter(name, where), where)
        for name, v in value.items()
    }
