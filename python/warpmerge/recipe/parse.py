"""Reads and checks the document of a recipe. The keys are those of mergekit's YAML.

A recipe may have several faults: all are reported at once. What another tool would take without effect is a notice;
what no tool knows is an error with the nearest known word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..dtypes import DType, float_dtype
from ..errors import UsageError, close_matches, shown
from ..methods import Base, Method, find
from ..models.reference import ModelRef
from .references import model_ref
from .settings import Constant, Setting, parse_setting
from .slices import RecipeModel, Slice
from .tokenizer import ChatTemplate, Tokenizer, read_template, read_tokenizer

KEYS: tuple[str, ...] = ("merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype")
KEYS += ("out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name")
ENTRY, SOURCE = ("model", "parameters"), ("model", "layer_range", "parameters")
SLICE = ("sources", "parameters", "base_model", "residual_weight")
MODULE = ("models", "slices", "parameters")
# Parameters of mergekit's methods, past ones too: it takes each of them everywhere.
MERGEKIT = {"alpha", "density", "embed_slerp", "eps", "epsilon", "filter_wise", "gamma", "int8_mask", "lambda"}
MERGEKIT |= {"max_iter", "normalize", "normalize_weights", "nuslerp_flatten", "nuslerp_row_wise", "r", "rescale"}
MERGEKIT |= {"scale", "select_topk", "t", "tol", "weight"}


class Parsed(NamedTuple):
    """What a document says: the first attributes of a Recipe."""

    method: Method
    slices: tuple[Slice, ...]
    base: ModelRef | None
    dtype: DType | None
    out_dtype: DType | None
    notices: tuple[str, ...]
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None


def parse(document: Any, where: str) -> Parsed:
    """Reads a document of plain values. Raises UsageError with all that is wrong."""
    if not isinstance(document, Mapping):
        raise UsageError(f"{where}: a recipe must be a mapping with the keys {', '.join(KEYS)}.")
    reader = _Reader(where)
    parsed = reader.recipe(document)
    if parsed is None or reader.problems:
        raise UsageError(*reader.problems)
    return parsed


class _Reader:
    """`problems` and `notices`: what was found so far, a sentence each."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []
        self.notices: list[str] = []
        self.method: Any = None

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """What is wrong in the block does not keep the rest from being read."""
        try:
            yield
        except UsageError as error:
            self.problems.append(str(error))

    def recipe(self, document: Mapping[str, Any]) -> Parsed | None:
        where = self.where
        with self._noting():
            self.method = _method(document, where)
        self._check_keys(document, KEYS, where)
        tokenizer = read_tokenizer(document, where, self._noting)
        template = None
        with self._noting():
            template = read_template(document, where)
        if self.method is None:
            return None
        base = dtype = out_dtype = None
        with self._noting():
            base = self._base(document, where)
        with self._noting():
            dtype = _dtype(document, "dtype", where)
        with self._noting():
            out_dtype = _dtype(document, "out_dtype", where)
        scope = self._parameters(document.get("parameters"), f"{where}: parameters")
        slices = self._slices(document, base, (scope,), where)
        for part in slices if not self.problems else ():
            with self._noting():
                self._check(part)
        if not slices:
            return None
        notices = tuple(dict.fromkeys(self.notices))
        return Parsed(self.method, slices, base, dtype, out_dtype, notices, tokenizer, template)

    def _slices(
        self, document: Mapping[str, Any], base: ModelRef | None, scopes: tuple[Mapping[str, Setting], ...], where: str
    ) -> tuple[Slice, ...]:
        """Those of a recipe or of a module."""
        given = [key for key in ("models", "slices", "modules") if document.get(key)]
        if len(given) > 1:
            self.problems.append(f"{where}: give one of {' and '.join(map(repr, given))}, not both.")
            return ()
        if given == ["modules"]:
            return self._module(document["modules"], base, scopes, where)
        kind = given[0] if given else next((k for k in ("slices", "models") if document.get(k) is not None), "models")
        listed = document.get(kind)
        if not isinstance(listed, list) or not listed:
            got = "" if listed is None else f", got {shown(listed)}"
            one = "slice" if kind == "slices" else "model"
            self.problems.append(f"{where}: '{kind}' must be a list of at least one {one}{got}.")
            return ()
        if kind == "slices":
            found = [self._slice(entry, base, scopes, f"{where}: slices[{n}]") for n, entry in enumerate(listed)]
            return tuple(part for part in found if part is not None)
        models = self._models(listed, f"{where}: models", ENTRY)
        return (Slice(self.method, models, base, scopes),) if models else ()

    def _module(
        self, modules: Any, base: ModelRef | None, scopes: tuple[Mapping[str, Setting], ...], where: str
    ) -> tuple[Slice, ...]:
        if not isinstance(modules, Mapping) or len(modules) != 1:
            got = f"{len(modules)} of them" if isinstance(modules, Mapping) else shown(modules)
            self.problems.append(
                f"{where}: 'modules' with one module is supported, got {got}; list whole models under 'models', which "
                "merges all modules."
            )
            return ()
        [(name, module)] = modules.items()
        where = f"{where}: modules: {name}"
        if not isinstance(module, Mapping):
            self.problems.append(f"{where}: a module must be a mapping with 'models' or 'slices'.")
            return ()
        self._check_keys(module, MODULE, where)
        own = self._parameters(module.get("parameters"), f"{where}: parameters")
        return self._slices(module, base, (own, *scopes), where)

    def _slice(
        self, entry: Any, base: ModelRef | None, scopes: tuple[Mapping[str, Setting], ...], where: str
    ) -> Slice | None:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("sources"), list) or not entry["sources"]:
            self.problems.append(
                f"{where}: a slice must be a mapping with 'sources', a list of models with layer ranges."
            )
            return None
        self._check_keys(entry, SLICE, where)
        if entry.get("residual_weight") is not None:
            self.notices.append(f"{where}: 'residual_weight' has no effect.")
        with self._noting():
            base = self._base(entry, where) or base
        own = self._parameters(entry.get("parameters"), f"{where}: parameters")
        models = self._models(entry["sources"], f"{where}: sources", SOURCE)
        return Slice(self.method, models, base, (own, *scopes)) if models else None

    def _models(self, listed: list[Any], where: str, keys: tuple[str, ...]) -> tuple[RecipeModel, ...]:
        models = []
        for number, entry in enumerate(listed):
            with self._noting():
                models.append(self._model(entry, f"{where}[{number}]", keys))
        seen = set()
        for ref in (m.ref for m in models):
            if ref in seen:
                problem = f"the model '{ref}' is listed twice; give it once, with the sum of the weights."
                self.problems.append(f"{where.rpartition(':')[0]}: {problem}")
            seen.add(ref)
        lengths = {m.layers[1] - m.layers[0] for m in models if m.layers is not None}
        if len(lengths) > 1:
            ranges = ", ".join(str(list(m.layers)) for m in models if m.layers is not None)
            self.problems.append(f"{where}: the layer ranges of a slice must be of one length, got {ranges}.")
        return tuple(models) if len(models) == len(listed) else ()

    def _model(self, entry: Any, where: str, keys: tuple[str, ...]) -> RecipeModel:
        layered = "layer_range" in keys
        if isinstance(entry, str) and not layered:
            return RecipeModel(model_ref(entry, where))
        if not isinstance(entry, Mapping) or "model" not in entry:
            needed = "'model' and 'layer_range'" if layered else "'model'"
            kind = "a mapping with" if layered else "a path, or a mapping with"
            raise UsageError(f"{where}: an entry must be {kind} {needed} and, if needed, 'parameters'.")
        if not layered and entry.get("layer_range") is not None:
            self.notices.append(
                f"{where}: 'layer_range' has no effect under 'models': all layers are merged. Use 'slices' for a part."
            )
            entry = {key: value for key, value in entry.items() if key != "layer_range"}
        ref = model_ref(entry["model"], where)
        where = f"{where} ({ref})"
        self._check_keys(entry, keys, where)
        parameters = self._parameters(entry.get("parameters"), where)
        shared = [
            name for name in parameters if name in self.method.by_name and not self.method.by_name[name].per_model
        ]
        for name in shared:
            self.notices.append(f"{where}: '{name}' has no effect here: it has one value for all models.")
        own = {name: setting for name, setting in parameters.items() if name not in shared}
        return RecipeModel(ref, own, _layers(entry.get("layer_range"), where) if layered else None)

    def _parameters(self, value: Any, where: str) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        if value is None:
            return found
        if not isinstance(value, Mapping):
            self.problems.append(f"{where}: parameters must be a mapping from names to values, got {shown(value)}.")
            return found
        references = {kind.name for kind in self.method.auxiliary}
        for name, given in value.items():
            with self._noting():
                if name in references:
                    found[name] = Constant(model_ref(given, f"{where}: {name}"))
                elif name in self.method.by_name or name not in MERGEKIT:
                    found[name] = parse_setting(given, self.method.parameter(name, where), where)
                else:
                    self.notices.append(f"{where}: '{name}' has no effect: method '{self.method.name}' lacks it.")
        return found

    def _base(self, document: Mapping[str, Any], where: str) -> ModelRef | None:
        base = document.get("base_model")
        return None if base is None else model_ref(base, f"{where}: base_model")

    def _check_keys(self, document: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
        for key in document:
            if key in keys:
                continue
            if key in MERGEKIT:
                self.notices.append(f"{where}: '{key}' has no effect here; parameters stand under 'parameters'.")
                continue
            near = close_matches(key, keys)
            self.problems.append(f"{where}: unknown key {shown(key)}{near or '.'} Keys: {', '.join(keys)}.")

    def _check(self, part: Slice) -> None:
        """Whether the method can merge the models of a slice."""
        method, base, where = self.method, part.base, self.where
        if base is None and method.base.required:
            raise UsageError(
                f"{where}: method '{method.name}' needs a 'base_model'; add the model that the others come from."
            )
        outside = base is not None and base not in [m.ref for m in part.models]
        if outside and not part.is_whole and method.base is not Base.METADATA:
            raise UsageError(
                f"{where}: the base_model '{base}' must be one of the sources of each slice; add it with its "
                "layer_range."
            )
        if part.reference is not None and [m.ref for m in part.inputs] == [base]:
            self.notices.append(f"{where}: only the base '{base}' is listed, so the result is the base.")
        try:
            method.check_models(len(part.inputs))
        except UsageError as error:
            counts = method.base is Base.ENDPOINT and outside
            raise UsageError(f"{where}: {error}{' The base_model counts as one of them.' * counts}") from None


def _layers(value: Any, where: str) -> tuple[int, int]:
    ends = [_layer(end) for end in value] if isinstance(value, list) and len(value) == 2 else [None]
    if None in ends or not 0 <= ends[0] <= ends[1]:  # type: ignore[operator]
        raise UsageError(
            f"{where}: layer_range must be [first, end], two numbers of layers of which the end is not included, got "
            f"{shown(value)}."
        )
    return ends[0], ends[1]  # type: ignore[return-value]


def _layer(value: Any) -> int | None:
    """A number of a layer; it may be written as text, or as a number with a point."""
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and 0 <= number < 10**9 else None


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
