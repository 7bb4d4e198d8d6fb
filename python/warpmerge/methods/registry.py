"""The registry of methods: built-in ones, methods that a program registers, and methods of installed plug-ins.

A plug-in is an entry point of the group `warpmerge.methods`; see docs/plugins.md.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import UsageError, close_matches, shown
from .auxiliary import AuxiliaryTensor
from .base import Base, Method, as_steps
from .checked import checked
from .parameters import NONFINITE, Parameter, choice
from .passes import Counted

Function = TypeVar("Function", bound=Callable[..., Any])  # of a TensorInfo and the values of the parameters
GROUP = "warpmerge.methods"
# Arguments of merge_tensors, merge_state_dicts and Pool.merge, and parameters that every method has.
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
    """Registers a function as a merge method.

    warpmerge calls the function with a TensorInfo and a mapping from parameters to values, for each tensor or once for
    tensors whose attributes that it reads are the same. The function returns a combination (`warpmerge.requests`). A
    function that measures first is a generator: it yields each measurement, is sent the answer, and returns the
    combination. The first line of its docstring is the method's summary.

    Args:
        name: the name in recipes and calls.
        base: the role of `base_model`.
        parameters: made by `number`, `integer`, `boolean` and `choice` of `warpmerge.methods`.
        passes: number of reads of the inputs, or a function from the parameters' values to that number. Only for a
            method whose number of measurements depends on an answer; for any other method it is counted.
        reads: the number of passes in words, if it depends on parameters.
        notes: sentences for the method's description.
        differences: sentences by implementation ("mergekit", "the paper", "PEFT"): how that one differs.
        presets: options by name of an implementation, for the parameter `semantics`. The first preset is the default
            and is best empty.
        auxiliary: kinds of tensors that the method needs of each model beside its weights. The base must be
            `Base.METADATA`.
        **more: further fields of `Method`: `models` (least and largest number of inputs), `check`, `copies`, `memory`,
            `formula`, `paper`.

    Returns:
        A decorator that registers a function and returns it unchanged.

    Raises:
        UsageError: another function has registered the name, or a parameter or preset is wrong.

    Example:
        >>> @wm.method("half", base=wm.Base.REFERENCE)
        ... def half(tensor, p):
        ...     return WeightedSum((0.5 / tensor.models,) * tensor.models, on_deltas=True)
    """
    parameters = (*(c.parameter() for c in auxiliary), *parameters)
    if auxiliary and base is not Base.METADATA:
        raise UsageError(f"merge method '{name}' has auxiliary tensors, so it takes no deltas: set base=Base.METADATA.")
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
        raise UsageError(f"the name of a merge method is a string, got {shown(method_name)}.")
    names = [p.name for p in parameters]
    for name in names:
        if name in RESERVED or names.count(name) > 1:
            why = "is reserved" if name in RESERVED else "is given twice"
            raise UsageError(f"merge method '{method_name}': the parameter name '{name}' {why}; choose another.")


def _converted(
    method_name: str, parameters: Sequence[Parameter], presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    by_name = {p.name: p for p in parameters}
    try:
        return {preset: {k: by_name[k].convert(v) for k, v in sets.items()} for preset, sets in presets.items()}
    except (KeyError, ValueError) as error:
        raise UsageError(f"merge method '{method_name}': a preset is wrong: {error}.") from None


def _semantics(presets: list[str]) -> Parameter:
    return choice(
        "semantics",
        presets,
        default=presets[0],
        help="which implementation's defaults to use for options you do not set",
    )


def _check_new(made: Method) -> None:
    """Raises UsageError if another function has the name. A definition that is run again replaces itself."""
    old = REGISTRY.get(made.name)
    if old is not None and (old.module, old.steps.__qualname__) != (made.module, made.steps.__qualname__):
        raise UsageError(
            f"merge method '{made.name}' is already registered by {old.steps.__qualname__} of the module {old.module}; "
            f"give the method of {made.module} another name."
        )


def find(name: object) -> Method:
    """The method of this name. Plug-ins are loaded if no other method has it.

    Raises:
        UsageError: there is none. The message has similar names, and the plug-ins that could not be loaded.
    """
    if not isinstance(name, str):
        raise UsageError(f"the name of a merge method is a string, got {shown(name)}.")
    if name not in REGISTRY:
        load_plugins()
    if name not in REGISTRY:
        failed = "".join(f" The plug-in {plugin} could not be loaded: {why}." for plugin, why in _failures.items())
        near = close_matches(name, REGISTRY)
        raise UsageError(f"unknown merge method {name!r}{near or '.'} `warpmerge methods` lists all methods.{failed}")
    return REGISTRY[name]


def list_methods() -> tuple[Method, ...]:
    """All methods, also those of plug-ins, sorted by name.

    Returns:
        A tuple of Method. `name`, `summary`, `parameters`, `formula` and `paper` describe each one.

    Example:
        >>> [method.name for method in wm.list_methods() if method.base is wm.Base.REFERENCE]
    """
    load_plugins()
    return tuple(REGISTRY[name] for name in sorted(REGISTRY))


def load_plugins() -> Mapping[str, str]:
    """Loads the installed plug-ins, once.

    Returns:
        The reason for each plug-in that could not be loaded, by its name.
    """
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
        # Python forgets a module that fails while it is loaded, so the registry forgets its methods.
        for name in REGISTRY.keys() - before:
            if REGISTRY[name].module not in sys.modules:
                del REGISTRY[name]
