"""Which methods there are: the built-in ones, those that a program registers, and those of installed plug-ins.

A plug-in is an entry point of the group `warpmerge.methods`; see docs/plugins.md.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import RecipeError, close_matches
from .auxiliary import AuxiliaryTensor
from .base import Base, Method, as_steps
from .checked import checked
from .parameters import NONFINITE, Parameter, choice
from .passes import Counted

Function = TypeVar("Function", bound=Callable[..., Any])  # of a TensorInfo and the values of the parameters
GROUP = "warpmerge.methods"
# Words of merge_tensors, merge_state_dicts and Pool.merge, and parameters that every method gets by itself.
RESERVED = {
    *("backend", "base", "into", "method", "name", "nonfinite", "out_dtype", "seed", "self", "semantics"),
    *("state_dicts", "tensors"),
}
REGISTRY: dict[str, Method] = {}
_failures: dict[str, str] = {}
_looked = False
_lock = threading.RLock()  # reentrant: a plug-in may ask for methods while it is loaded


def method(
    name: str,
    *,
    base: Base,
    parameters: Sequence[Parameter] = (),
    passes: Callable[[Mapping[str, Any]], int] | int | None = None,
    reads: str = "",
    notes: str | Sequence[str] = (),
    differences: Mapping[str, str | Sequence[str]] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    auxiliary: Sequence[AuxiliaryTensor] = (),
    **more: Any,
) -> Callable[[Function], Function]:
    """Registers a function of a TensorInfo and the parameters' values as a merge method.

    The function returns what combines the tensor's inputs. One that measures them first is a generator: it yields what
    it asks, and is sent the answer. The first line of its documentation is the method's summary.

    base: what `base_model` is to the method. parameters: made by number, integer, boolean and choice. reads: how often
    the inputs are read, in words, if it depends on the parameters. passes: the same as a number, or a function of the
    parameters' values; only for a method whose number of measurements depends on what it measures, since the steps it
    takes show it else. models: the least and the largest (or None) number of models. check: called with the values and
    the number of models, raises RecipeError if they do not go together. auxiliary: tensors that it needs of each model
    beside its weights; only where the base is a metadata source. memory: of one that holds more of a tensor than tiles,
    a bound on those bytes for a shape and number of models. formula, paper, notes, differences: for people. presets:
    named sets of options; the first one is the default and best empty.

    copies: whether it takes tensors as they are, whatever their dtype.

    Raises RecipeError if another function has registered the name.
    """
    parameters = (*(c.parameter() for c in auxiliary), *parameters)
    if auxiliary and base is not Base.METADATA:
        raise RecipeError(
            f"merge method '{name}' has auxiliary tensors, so it takes no deltas: set base=Base.METADATA."
        )
    _check_parameters(name, parameters)
    meant = _converted(name, parameters, presets or {})
    if meant:
        parameters = (*parameters, _semantics(list(meant)))

    def register(steps: Function) -> Function:
        taken = as_steps(steps)
        made = Method(
            name,
            (inspect.getdoc(steps) or "").partition("\n")[0],
            base,
            parameters=(*parameters, NONFINITE),
            steps=taken,
            passes=_passes(passes, Counted(taken, parameters, auxiliary, more.get("models", (1, None)))),
            reads_text=reads,
            notes=_listed(notes),
            differences={source: _listed(what) for source, what in (differences or {}).items()},
            presets=meant,
            auxiliary=tuple(auxiliary),
            **more,
        )
        _check_new(made)
        REGISTRY[name] = made if made.built_in else replace(made, steps=checked(name, base, made.steps))
        return steps

    return register


def _passes(
    declared: Callable[[Mapping[str, Any]], int] | int | None, counted: Counted
) -> Callable[[Mapping[str, Any]], int]:
    if declared is None:
        return counted
    if isinstance(declared, int):
        number = declared
        return lambda values: number
    return declared


def _listed(text: str | Sequence[str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _check_parameters(method_name: str, parameters: Sequence[Parameter]) -> None:
    if not isinstance(method_name, str) or not method_name:
        raise RecipeError(f"the name of a merge method is a string, got {method_name!r}.")
    names = [p.name for p in parameters]
    for name in names:
        if name in RESERVED or names.count(name) > 1:
            why = "is reserved" if name in RESERVED else "is given twice"
            raise RecipeError(f"merge method '{method_name}': the parameter name '{name}' {why}; choose another.")


def _converted(
    method_name: str, parameters: Sequence[Parameter], presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    by_name = {p.name: p for p in parameters}
    try:
        return {preset: {k: by_name[k].convert(v) for k, v in sets.items()} for preset, sets in presets.items()}
    except (KeyError, ValueError) as error:
        raise RecipeError(f"merge method '{method_name}': a preset is wrong: {error}.") from None


def _semantics(presets: list[str]) -> Parameter:
    return choice(
        "semantics",
        presets,
        default=presets[0],
        help="which implementation's defaults to use for options you do not set",
    )


def _check_new(made: Method) -> None:
    """Raises RecipeError if the name is taken. A definition that is run again replaces itself."""
    old = REGISTRY.get(made.name)
    if old is not None and (old.module, old.steps.__qualname__) != (made.module, made.steps.__qualname__):
        raise RecipeError(
            f"merge method '{made.name}' is already registered by {old.steps.__qualname__} of the module {old.module}; "
            f"give the method of {made.module} another name."
        )


def find(name: object) -> Method:
    """The method of this name; plug-ins are looked for if there is no other. Raises RecipeError."""
    if not isinstance(name, str):
        raise RecipeError(f"the name of a merge method is a string, got {name!r}.")
    if name not in REGISTRY:
        load_plugins()
    if name not in REGISTRY:
        failed = "".join(f" The plug-in {plugin} could not be loaded: {why}." for plugin, why in _failures.items())
        near = close_matches(name, REGISTRY)
        raise RecipeError(f"unknown merge method {name!r}{near or '.'} `warpmerge methods` lists all methods.{failed}")
    return REGISTRY[name]


def list_methods() -> tuple[Method, ...]:
    """All methods by name, those of plug-ins included."""
    load_plugins()
    return tuple(REGISTRY[name] for name in sorted(REGISTRY))


def load_plugins() -> Mapping[str, str]:
    """Loads the plug-ins that are installed, the first time. Returns those that could not be loaded, and why."""
    global _looked
    with _lock:
        if not _looked:
            _looked = True
            from importlib.metadata import entry_points

            for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
                _load(entry)
        return _failures


def _load(entry: Any) -> None:
    before = set(REGISTRY)
    try:
        entry.load()
    except (Exception, SystemExit) as error:
        package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _failures[f"'{entry.name}'{package}"] = reason.rstrip(".: ")
        # Python has forgotten a module that failed half-way; what it had registered must not stay either.
        for name in REGISTRY.keys() - before:
            if REGISTRY[name].module not in sys.modules:
                del REGISTRY[name]
