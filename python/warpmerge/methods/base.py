"""A merge method: a record of its parameters, and a function that measures, solves and combines.

    @method("ties", base=Base.REFERENCE, parameters=[WEIGHT, DENSITY], ...)
    def ties(tensor, p):
        selected = yield KthLargest(...)      # measure: one read of the inputs; the answer comes back
        ...                                   # solve: float64, on the host
        return ElectAndSum(...)               # combine: one read, one write

Each `yield` is one pass over the inputs, the `return` is the last pass. A method that measures nothing is a plain
function. A method knows no backend.
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError, close_matches
from ..requests import Combine, Measure
from .auxiliary import AuxiliaryTensor
from .parameters import LARGEST, Parameter


class Base(enum.Enum):
    """The role of a recipe's `base_model` for a method.

    Attributes:
        REFERENCE: required; deltas are taken from it.
        OPTIONAL: with a base, deltas are taken from it; without one, the models themselves are merged.
        ENDPOINT: required; it is one of the two models, the one at t = 0.
        METADATA: optional; it gives config, tokenizer, tensor names and integer tensors, nothing else.
    """

    REFERENCE = "required; deltas are taken from it"
    OPTIONAL = "optional; with a base, deltas are taken from it; without one, the models themselves are merged"
    ENDPOINT = "required; one of the two models, the one at t = 0"
    METADATA = "optional; gives the config and tokenizer only"

    @property
    def required(self) -> bool:
        """Whether a recipe without a base is an error."""
        return self in (Base.REFERENCE, Base.ENDPOINT)

    @property
    def is_reference(self) -> bool:
        """Whether deltas are taken from the base. Without a base, `on_deltas` means the models' own elements."""
        return self in (Base.REFERENCE, Base.OPTIONAL)


@dataclass(frozen=True)
class TensorInfo:
    """The tensor that a method merges.

    Attributes:
        name: its name in the output.
        count: number of elements; it may be 0.
        models: K, the number of inputs without a reference base.
        seed: the merge's seed, for random numbers.
        shape: its shape. None: one dimension.
        fp64: True if the compute type is float64, False if it is float32.
        auxiliary: shapes of the auxiliary tensors, the inputs from K on.
        stream: what keys its random numbers, for `stream_key`: its name; for one of several tensors that hold the same
            bytes in every input, the name of the first, so that they stay equal.
    """

    name: str
    count: int
    models: int
    seed: int = 0
    shape: tuple[int, ...] | None = None
    fp64: bool = False
    auxiliary: tuple[tuple[int, ...], ...] = ()
    find_stream: Callable[[], str] | None = field(default=None, repr=False, compare=False)

    @property
    def stream(self) -> str:
        """The name that keys its random numbers."""
        name = self.name
        return name if self.find_stream is None else self.find_stream()

    @property
    def columns(self) -> int:
        """Length of a row: the last dimension. A vector is one row, and a scalar is a row of one element."""
        return self.count if self.shape is None else self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Number of rows; 0 if there are no elements."""
        return self.count // self.columns if self.count else 0

    def __str__(self) -> str:
        return f"tensor '{self.name}'" if self.name else "the tensor"


Steps = Generator[Measure, Any, Combine]


def usual_models(limits: tuple[int, int | None]) -> int:
    """Three models, or the nearest number that the method accepts."""
    least, most = limits
    return max(least, 3 if most is None else min(most, 3))


def as_steps(function: Callable[..., Steps | Combine]) -> Callable[..., Steps]:
    """A method's function as a generator function. A plain function becomes one that yields nothing."""
    if inspect.isgeneratorfunction(function):
        return function

    @functools.wraps(function)
    def steps(tensor: TensorInfo, values: Mapping[str, Any]) -> Steps:
        found = function(tensor, values)
        combine: Combine = (yield from found) if isinstance(found, Generator) else found
        return combine

    return steps


@dataclass(frozen=True)
class Method:
    """A merge method, as `method` registers it.

    Attributes:
        name: its name in recipes.
        summary: one sentence that describes it.
        base: the role of the base.
        parameters: its parameters, `nonfinite` included.
        steps: the method's function as a generator function.
        passes: number of reads of the inputs, as a function of the parameters' values.
        models: least and largest number of inputs, without a reference base; None: no limit.
        check: raises UsageError if values do not go together; called with them and the number of inputs.
        auxiliary: kinds of auxiliary tensors that it needs.
        copies: whether it can take tensors of any dtype as they are.
        memory: for a method that holds more of a tensor than tiles: a bound on those bytes for a shape and a number of
            inputs.
        reads_text: the number of passes in words, if it depends on parameters.
        formula: its formula in the notation of docs/methods.md.
        paper: its source.
        notes: sentences for its description.
        differences: sentences by implementation: how that one differs.
        presets: options by name of an implementation. The first preset is the default.
        by_name: the parameters by name.
    """

    name: str
    summary: str
    base: Base
    parameters: tuple[Parameter, ...]
    steps: Callable[[TensorInfo, Mapping[str, Any]], Steps]
    passes: Callable[[Mapping[str, Any]], int]
    models: tuple[int, int | None] = (1, None)
    check: Callable[[Mapping[str, Any], int], None] = lambda values, models: None
    auxiliary: tuple[AuxiliaryTensor, ...] = ()
    copies: bool = False
    memory: Callable[[tuple[int, ...], int], int] | None = None
    reads_text: str = ""
    formula: str = ""
    paper: str = ""
    notes: tuple[str, ...] = ()
    differences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_name: Mapping[str, Parameter] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {p.name: p for p in self.parameters})

    @property
    def module(self) -> str:
        """Name of the module that defines it."""
        return self.steps.__module__ or "__main__"  # code that is run from text has none

    @property
    def built_in(self) -> bool:
        """Whether it is a part of warpmerge."""
        return self.module.startswith(f"{__package__}.")

    @property
    def reads(self) -> str:
        """The number of passes as text: with the defaults, or in words if it depends on parameters."""
        return self.reads_text or str(self.passes(self.defaults()))

    def defaults(self) -> dict[str, Any]:
        """A value for each parameter, for the usual number of models. Required parameters get some number."""
        models = usual_models(self.models)
        values = {p.name: 0.25 if p.required and p.default is None else p.default for p in self.parameters}
        return {p.name: (values[p.name],) * models if p.per_model else values[p.name] for p in self.parameters}

    def preset(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the preset that `given["semantics"]` names.

        An option whose short form is given is left out. The caller lets given values win over these.
        """
        if not self.presets:
            return {}
        semantics = self.by_name["semantics"]
        chosen = given.get("semantics")
        try:
            options = self.presets[semantics.default if chosen is None else semantics.convert(chosen)]
        except ValueError as error:
            raise UsageError(f"method '{self.name}': 'semantics': {error}.") from None
        short = {p.short_for for p in self.parameters if given.get(p.name) is not None}
        return {name: value for name, value in options.items() if name not in short}

    def check_values(self, values: Mapping[str, Any], models: int, *, on_deltas: bool) -> None:
        """Raises UsageError if the values do not go together, or do not fit the number of models.

        Args:
            values: a valid value for each parameter.
            models: number of inputs, without a reference base.
            on_deltas: whether deltas are taken from a base.
        """
        if values["nonfinite"] == "base" and not on_deltas:
            raise UsageError(
                f"method '{self.name}' has no base to take elements from in place of NaN and infinities; set nonfinite "
                "to 'error' or 'propagate'."
            )
        check_products(self.name, values)
        self.check(values, models)

    def parameter(self, name: str, where: str = "") -> Parameter:
        """The parameter of this name. Raises UsageError if there is none; `where` begins the message."""
        where = where and f"{where}: "
        if name not in self.by_name:
            known = ", ".join(sorted(self.by_name))
            raise UsageError(
                f"{where}method '{self.name}' has no parameter '{name}'"
                f"{close_matches(name, self.by_name) or '.'} It takes: {known}."
            )
        return self.by_name[name]

    def check_models(self, count: int) -> None:
        """Raises UsageError if the method cannot merge `count` inputs, a reference base not counted."""
        least, most = self.models
        if least <= count and (most is None or count <= most):
            return
        wanted = f"exactly {least}" if least == most else f"at least {least}" if most is None else f"{least}-{most}"
        besides = {Base.REFERENCE: " besides the base", Base.OPTIONAL: " (a base not counted)"}.get(self.base, "")
        raise UsageError(
            f"method '{self.name}' merges {wanted} model{'s' if wanted[-2:] != ' 1' else ''}{besides}, got {count}."
        )


ZERO_SHARE = 1e-8  # a sum that is a smaller share of its terms' magnitudes is rounding: it counts as zero


def total(weights: Sequence[float]) -> float:
    """The sum of numbers, rounded once, so that it is the same in every version of Python. Infinity on overflow."""
    try:
        return math.fsum(weights)
    except OverflowError:
        return math.inf


MULTIPLIED = (("weight", "lambda"), ("r", "alpha"))


def check_products(method: str, values: Mapping[str, Any]) -> None:
    """Raises UsageError if the product of parameters that are multiplied with each other may overflow."""
    for names in MULTIPLIED:
        if not all(name in values for name in names):
            continue
        largest = []
        for name in names:
            each = values[name] if isinstance(values[name], tuple) else (values[name],)
            largest.append(max((abs(v) for v in each if isinstance(v, (int, float))), default=0.0))
        product = math.prod(largest)
        if product > LARGEST:
            first, second = names
            raise UsageError(
                f"method '{method}': '{first}' ({largest[0]:g}) times '{second}' ({largest[1]:g}) is {product:g} and "
                f"may overflow; choose numbers whose product is at most {LARGEST:g}."
            )


def check_sum(method: str, weights: Sequence[float], instead: str) -> None:
    """Raises UsageError if weights cannot be divided by their sum, because it overflows or they cancel.

    Args:
        method: name of the method, for the message.
        weights: the weights.
        instead: what to do instead, for the message.
    """
    by = abs(total(weights))
    if not 0 < by < math.inf or by < ZERO_SHARE * total([abs(w) for w in weights]):
        raise UsageError(
            f"method '{method}': the weights sum to zero or overflow, so they cannot be normalized; {instead}."
        )
