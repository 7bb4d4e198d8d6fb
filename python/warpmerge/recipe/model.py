"""A recipe as people write it, checked: mergekit's YAML keys, with every unsupported one refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..dtypes import DType, float_dtype
from ..errors import RecipeError, close_matches
from ..methods import Base, Method, find
from .settings import Setting, parse_setting

KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
LATER = {
    "slices": "list whole models under 'models'",
    "modules": "list whole models under 'models'",
    "tokenizer": "all models must share the base's tokenizer, which is copied; remove the key",
    "tokenizer_source": "all models must share the base's tokenizer, which is copied; remove the key",
    "chat_template": "the base's chat template is copied; remove the key",
}


@dataclass(frozen=True)
class ModelRef:
    """A directory, or an id on the Hugging Face hub with an optional revision."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


@dataclass(frozen=True)
class RecipeModel:
    ref: ModelRef
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. `models` are as listed, the base included if it is; `source` is what it was made from."""

    method: Method
    models: tuple[RecipeModel, ...]
    base: ModelRef | None
    parameters: Mapping[str, Setting]
    dtype: DType | None = None
    out_dtype: DType | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """From a YAML file, a dictionary, or a recipe.

        Raises RecipeError with the file, the place in it and what to write instead.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return parse(source, "recipe")
        path = Path(source)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise RecipeError(f"cannot read the recipe {path}: {reason}.") from None
        try:
            document = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise RecipeError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', error)}.") from None
        return parse(document, str(path))

    @property
    def inputs(self) -> tuple[RecipeModel, ...]:
        """The models that are merged, in order: without a reference base, and with an endpoint first."""
        others = tuple(m for m in self.models if m.ref != self.base)
        if self.method.base is Base.REFERENCE:
            return others
        if self.method.base is Base.ENDPOINT:
            return (next((m for m in self.models if m.ref == self.base), RecipeModel(self.base)), *others)
        return self.models

    @property
    def donor(self) -> ModelRef:
        """Whose config, tokenizer, tensor names and integer tensors the output has."""
        return self.base or self.models[0].ref

    def to_yaml(self) -> str:
        return yaml.safe_dump(_plain(self.source), sort_keys=False, allow_unicode=True, default_flow_style=None)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse(document: Any, where: str) -> Recipe:
    if not isinstance(document, Mapping):
        raise RecipeError(f"{where}: a recipe is a mapping with the keys {', '.join(KEYS)}.")
    for key in document:
        if key in LATER and document[key] is not None:
            raise RecipeError(f"{where}: '{key}' is not supported yet: {LATER[key]}.")
        if key not in KEYS and key not in LATER:
            raise RecipeError(f"{where}: unknown key {key!r}{close_matches(key, KEYS) or '.'} Keys: {', '.join(KEYS)}.")
    if "merge_method" not in document:
        raise RecipeError(f"{where}: 'merge_method' is missing.")
    method = find(document["merge_method"])
    listed = document.get("models")
    if not isinstance(listed, list) or not listed:
        raise RecipeError(f"{where}: 'models' must be a list of at least one model.")
    base = _model_ref(document["base_model"], f"{where}: base_model") if document.get("base_model") else None
    models = tuple(_model(entry, base, method, f"{where}: models[{i}]") for i, entry in enumerate(listed))
    _check_models(method, models, base, where)
    recipe = Recipe(
        method=method,
        models=models,
        base=base,
        parameters=_parameters(document.get("parameters"), method, f"{where}: parameters"),
        dtype=float_dtype(document["dtype"], f"{where}: dtype") if document.get("dtype") else None,
        out_dtype=float_dtype(document["out_dtype"], f"{where}: out_dtype") if document.get("out_dtype") else None,
        source=dict(document),
    )
    try:
        method.check_models(len(recipe.inputs))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return recipe


def _check_models(method: Method, models: tuple[RecipeModel, ...], base: ModelRef | None, where: str) -> None:
    refs = [m.ref for m in models]
    for ref in refs:
        if refs.count(ref) > 1:
            raise RecipeError(f"{where}: the model '{ref}' is listed twice; give it once, with the sum of the weights.")
    if base is None and method.base is not Base.DONOR:
        raise RecipeError(f"{where}: method '{method.name}' needs a 'base_model'.")


def _model(entry: Any, base: ModelRef | None, method: Method, where: str) -> RecipeModel:
    if isinstance(entry, str):
        return RecipeModel(_model_ref(entry, where))
    if not isinstance(entry, Mapping) or "model" not in entry:
        raise RecipeError(f"{where}: each entry is a mapping with 'model' and, if needed, 'parameters'.")
    for key in entry:
        if key not in ("model", "parameters"):
            raise RecipeError(f"{where}: unknown key {key!r}{close_matches(key, ['model', 'parameters']) or '.'}")
    ref = _model_ref(entry["model"], where)
    where = f"{where} ({ref})"
    parameters = _parameters(entry.get("parameters"), method, where)
    for name in parameters:
        if not method.by_name[name].per_model:
            raise RecipeError(f"{where}: '{name}' holds for all models; move it to the top-level 'parameters'.")
    return RecipeModel(ref, parameters)


def _model_ref(value: Any, where: str) -> ModelRef:
    if isinstance(value, Mapping):
        if value.get("lora"):
            raise RecipeError(
                f"{where}: a LoRA reference is not supported yet: merge the adapter into its model first."
            )
        inner = value.get("model", value)
        if isinstance(inner, Mapping):
            if not isinstance(inner.get("path"), str):
                raise RecipeError(f"{where}: a model reference needs a 'path'.")
            return ModelRef(inner["path"], inner.get("revision"))
        value = inner
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{where}: a model is a path or a Hugging Face id, got {value!r}.")
    if "+" in value and not Path(value).exists():
        raise RecipeError(
            f"{where}: '{value}' names a LoRA adapter, which is not supported yet: merge it into its model first."
        )
    if "@" in value and not Path(value).exists():
        path, _, revision = value.partition("@")
        return ModelRef(path, revision)
    return ModelRef(value)


def _parameters(value: Any, method: Method, where: str) -> dict[str, Setting]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: parameters are a mapping of names to values, got {value!r}.")
    return {name: parse_setting(v, method.parameter(name, where), where) for name, v in value.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
