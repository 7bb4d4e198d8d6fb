"""Output tensors, as the engine hands them to a backend: where their inputs lie and where their results go.

Jobs are kept in columns: a checkpoint of experts has 100,000 tensors, and what costs a microsecond for each of them
costs a tenth of a second. Tensors that differ in nothing but name, shape and place form a group. A TensorTask is one of
them while it is under way.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

from .dtypes import DType
from .methods import Method, TensorInfo
from .models.view_columns import ListColumn, ViewColumn
from .models.views import View
from .requests import Combine, Copy, ElectAndSum, Map, Measure, TensorFunction, WeightedSum, WrittenFunction
from .twins import Twins

Shape = tuple[int, ...]


class MemorySink(NamedTuple):
    address: int
    owner: Any = None

    def write(self, data: memoryview) -> None:
        """Puts the whole result's bytes in place."""
        memoryview((ctypes.c_uint8 * data.nbytes).from_address(self.address)).cast("B")[:] = data


class DeviceSink(NamedTuple):
    """Memory of the device on which the inputs lie."""

    address: int
    owner: Any = None


class FileSink(NamedTuple):
    file: Any  # a _core.File
    offset: int
    background: Any = None  # native Background that starts writing back, or None

    def write(self, data: memoryview) -> None:
        self.file.write(data, self.offset)


Sink = MemorySink | DeviceSink | FileSink


class Tensors:
    """Names, shapes and numbers of elements of many tensors, in columns, and the seed of their draws."""

    def __init__(self, names: Sequence[str], shapes: Sequence[Shape], seed: int = 0) -> None:
        self.names, self.shapes, self.seed = names, shapes, seed
        self.counts = array("q", map(math.prod, shapes))
        self.native: Any = None  # for a backend: its own form of the columns
        self.twins: Twins | None = None  # those that draw alike
        self._sums: dict[tuple[int, ...], Sequence[int]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def sums(self, columns: Sequence[ViewColumn]) -> Sequence[int]:
        """Of each row the bytes that a pass over these columns reads; made once for groups that have them in common."""
        key = tuple(map(id, columns))
        if key not in self._sums:
            sizes = [column.read_bytes for column in columns]
            self._sums[key] = sizes[0] if len(sizes) == 1 else array("q", map(sum, zip(*sizes, strict=True)))
        return self._sums[key]


class Jobs:
    """Output tensors and the groups into which they fall.

    Attributes:
        names, shapes, counts: of each tensor; counts are numbers of elements.
        groups: the groups; `group_of` has the place of each row's. A group does not know its jobs: what it refers to is
            freed when the last reference goes, not when Python looks for circles.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.names, self.shapes, self.counts = tensors.names, tensors.shapes, tensors.counts
        self.groups: list[Group] = []
        self.group_of: array[int] = array("i")

    def __len__(self) -> int:
        return len(self.names)

    def group(self, row: int) -> Group:
        return self.groups[self.group_of[row]]

    def merged(self) -> list[int]:
        """The rows that a method merges; the others are copied."""
        return [row for row, number in enumerate(self.group_of) if self.groups[number].method is not None]

    def read_bytes(self, row: int) -> int:
        """Bytes that one pass over the tensor reads."""
        return self.group(row).read_bytes[row]


class Group:
    """What many tensors have in common, so that it is decided once and handed to a backend once.

    Attributes:
        tensors: the group's tensors are rows of these.
        method: None: the tensors are copied.
        values: of the method's parameters.
        inputs: a column of views for each merged model, then those of auxiliary tensors.
        base: the column of the reference, if deltas are taken from one.
        out_dtype: of the results.
        fp64: whether to compute in float64.
        auxiliary: shapes of the auxiliary tensors.
        agreeing: columns whose views must hold the same bytes as the first input: tensors that are never averaged.
        labels: names of the inputs, the base's last.
        read_bytes: of each row of `tensors` the bytes that one pass reads.
    """

    def __init__(
        self,
        tensors: Tensors,
        method: Method | None,
        values: Mapping[str, Any],
        inputs: Sequence[ViewColumn],
        base: ViewColumn | None,
        out_dtype: DType,
        labels: Sequence[str],
        *,
        fp64: bool = False,
        auxiliary: tuple[Shape, ...] = (),
        agreeing: Sequence[ViewColumn] = (),
    ) -> None:
        self.tensors, self.method, self.values = tensors, method, values
        self.inputs, self.base, self.out_dtype = tuple(inputs), base, out_dtype
        self.labels, self.fp64, self.auxiliary, self.agreeing = labels, fp64, auxiliary, tuple(agreeing)
        self.models = len(self.inputs) - len(auxiliary)
        self.native: Any = None  # for a backend: its own form of the group
        self._only: dict[int, Group] = {}
        self._combines: dict[Shape | None, Combine] = {}
        self._apart = False

    @cached_property
    def columns(self) -> list[ViewColumn]:
        """All that a pass reads."""
        return [*self.inputs, *self.agreeing, *([self.base] if self.base else [])]

    @cached_property
    def read_bytes(self) -> Sequence[int]:
        return self.tensors.sums(self.columns)

    def only(self, index: int) -> Group:
        """The group whose single input is this one."""
        if index not in self._only:
            inputs, labels = [self.inputs[index]], [self.labels[index]]
            self._only[index] = Group(
                self.tensors, self.method, self.values, inputs, None, self.out_dtype, labels, fp64=self.fp64
            )
        return self._only[index]

    def info(self, row: int, kind: type[TensorInfo] = TensorInfo) -> TensorInfo:
        """What a method may know of a tensor."""
        of = self.tensors
        stream = None if of.twins is None else partial(self._stream, row)
        shape, count = of.shapes[row], of.counts[row]
        return kind(of.names[row], count, self.models, of.seed, shape, self.fp64, self.auxiliary, stream)

    def _stream(self, row: int) -> str:
        twins = cast(Twins, self.tensors.twins)
        return self.tensors.names[twins.first(row, self.columns)]

    def combine(self, row: int) -> Combine | None:
        """The combination, if the method gives one without a measurement. None: each tensor takes steps of its own.

        The method is asked once for all tensors that it cannot tell apart by what it has looked at: for the group, or
        for one shape.
        """
        for known in (None, self.tensors.shapes[row]):
            if known in self._combines:
                return self._combines[known]
        if self._apart or self.method is None or len(self.tensors) == 1:
            return None
        info = cast(Watched, self.info(row, Watched))
        steps = self.method.steps(info, self.values)
        try:
            next(steps)
        except StopIteration as end:
            if isinstance(end.value, SHARED) and "name" not in info.seen:
                alike = self.tensors.shapes[row] if info.seen & {"shape", "count"} else None
                self._combines[alike] = self.carried_out(end.value)
                return self._combines[alike]
        steps.close()
        self._apart = True
        return None

    def carried_out(self, combine: Combine) -> Combine:
        """The combination as backends get it."""
        if isinstance(combine, TensorFunction):
            return WrittenFunction(combine.function, combine.on_deltas)
        if isinstance(combine, Map) and self.values["nonfinite"] == "propagate":
            return combine.propagating()
        return combine


SHARED = (WeightedSum, ElectAndSum, Map, Copy)  # a TensorFunction may look at the tensor later


class Watched(TensorInfo):
    """Notes in `seen` which of the attributes that differ between tensors are looked at."""

    seen: set[str]

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name == "seen":
            return own.setdefault("_seen", set())
        if name in own or name == "__dict__":
            own.setdefault("_seen", set()).update(own if name == "__dict__" else [name])
        return object.__getattribute__(self, name)


class TensorTask:
    """One row of a group under way. `sinks`: where the result goes; several for a sweep, one per output; none to be
    measured only."""

    __slots__ = ("_base", "_info", "_inputs", "group", "narrows", "residency", "row", "sinks")

    def __init__(self, group: Group, row: int, sinks: Sequence[Sink] = (), narrows: TensorTask | None = None) -> None:
        self.group, self.row, self.sinks = group, row, sinks
        self.residency: Any = None  # for a device backend: what holds the operands in device memory
        self.narrows = narrows  # the task that this one narrows: device memory is registered under that one
        self._info: TensorInfo | None = None
        self._inputs: list[View] | None = None
        self._base: View | None = None

    @classmethod
    def alone(
        cls,
        info: TensorInfo,
        method: Method | None,
        values: Mapping[str, Any],
        inputs: Sequence[View],
        base: View | None,
        out_dtype: DType,
        sinks: Sequence[Sink],
        labels: Sequence[str],
        *,
        fp64: bool = False,
    ) -> TensorTask:
        """The task of a tensor that is not one of many."""
        shape = (info.count,) if info.shape is None else info.shape
        made = Group(
            Tensors([info.name], [shape], info.seed),
            method,
            values,
            [ListColumn([view]) for view in inputs],
            None if base is None else ListColumn([base]),
            out_dtype,
            labels,
            fp64=fp64,
            auxiliary=info.auxiliary,
        )
        return cls(made, 0, sinks)

    @property
    def info(self) -> TensorInfo:
        if self._info is None:
            self._info = self.group.info(self.row)
        return self._info

    @property
    def inputs(self) -> list[View]:
        """Of the K merged models, then of the auxiliary tensors."""
        if self._inputs is None:
            self._inputs = [column.view(self.row) for column in self.group.inputs]
        return self._inputs

    @property
    def base(self) -> View | None:
        """Of the reference."""
        if self._base is None and self.group.base is not None:
            self._base = self.group.base.view(self.row)
        return self._base

    @property
    def method(self) -> Method | None:
        return self.group.method

    @property
    def values(self) -> Mapping[str, Any]:
        return self.group.values

    @property
    def out_dtype(self) -> DType:
        return self.group.out_dtype

    @property
    def labels(self) -> Sequence[str]:
        return self.group.labels

    @property
    def fp64(self) -> bool:
        return self.group.fp64

    @property
    def nbytes(self) -> int:
        """Bytes that one pass reads."""
        return self.group.read_bytes[self.row]


def same_bytes(views: list[View]) -> bool:
    """Whether all hold the same bytes; they must be of one size."""
    first, *others = (view.chunks(4 << 20) for view in views)
    return all(part == wanted for wanted, *parts in zip(first, *others, strict=True) for part in parts)


class Outcome(NamedTuple):
    """What a request came to: a measurement, or the digest of the written tensor (None for results in memory).

    `nonfinite` counts NaN and infinite elements per input, then of the base; last, results that are NaN or infinite
    although all that they are made of is finite. Empty if there are none.
    """

    value: Any
    nonfinite: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Any, counts: Iterable[int]) -> Outcome:
        found = tuple(counts)
        return cls(value, found if any(found) else ())


Request = Measure | Combine
Work = tuple[TensorTask, Request]
