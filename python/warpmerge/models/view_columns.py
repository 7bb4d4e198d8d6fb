"""A column holds a view for each of many tensors. It keeps no Python object for each.

A row of a column is a tensor. The columns of all models of a merge have the same tensors in the same order. So a job of
a merge is a row number, and its views are those in this row of each column.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from .. import _core
from ..dtypes import DTYPES, DType
from .safetensors import Columns
from .views import FileRegion, Range, View

_CODES = bytes(dtype.code or 0 for dtype in DTYPES).ljust(256, b"\0")  # from an index into DTYPES
ABSENT = -1  # in place of a row: the model has no such tensor
NO_KIND = 255  # in place of a kind, of such a row


class Model(Protocol):
    """What offers tensors: a checkpoint, or tensors in memory."""

    @property
    def title(self) -> str:
        """For messages: "model 'math/'", "model 0", "the base"."""
        ...

    @property
    def names(self) -> Sequence[str]: ...

    def column(self, names: Sequence[str]) -> ViewColumn:
        """The views of these tensors, in this order; rows of names that the model lacks must not be used."""
        ...

    def is_quantized(self) -> bool:
        """Whether the model says of itself that its weights are codes."""
        ...


class ViewColumn(ABC):
    """One view for each row.

    Attributes:
        kinds: indices into DTYPES; NO_KIND where there is no view.
        shapes: of the views.
        read_bytes: that one pass over each view reads.
    """

    kinds: bytes
    shapes: Sequence[tuple[int, ...]]
    read_bytes: array[int]

    @abstractmethod
    def view(self, row: int) -> View: ...

    @abstractmethod
    def native(self) -> Any:
        """A `_core.ViewColumn`. It is good for as long as this column is alive and its files are open."""

    @abstractmethod
    def nbytes(self, row: int) -> int:
        """Of the view's elements."""

    @abstractmethod
    def ranges(self, row: int, start: int = 0, nbytes: int | None = None) -> Iterable[Range]:
        """What a pass over the view's bytes [start, start + nbytes) reads from files: (fd, offset, bytes). None: up to
        the end."""

    def read(self, row: int, start: int, nbytes: int) -> bytes | memoryview:
        """The view's bytes [start, start + nbytes), whole elements. Raises OSError (EFAULT) if they cannot be read."""
        view = self.view(row)
        return view.read(start // view.dtype.itemsize, nbytes // view.dtype.itemsize)

    def dtype(self, row: int) -> DType:
        return DTYPES[self.kinds[row]]


class ListColumn(ViewColumn):
    """Views of any kinds; None for rows that must not be used."""

    def __init__(self, views: Sequence[View | None]) -> None:
        self._views = views
        self.kinds = bytes(DTYPES.index(view.dtype) if view else NO_KIND for view in views)
        self.shapes = [view.shape if view else () for view in views]
        self.read_bytes = array("q", [view.read_bytes if view else 0 for view in views])
        self._native: Any = None

    def view(self, row: int) -> View:
        return cast(View, self._views[row])

    def nbytes(self, row: int) -> int:
        return self.view(row).nbytes

    def native(self) -> Any:
        if self._native is None:
            self._native = _core.ViewColumn(b"", array("i"), array("q"), [])
            for row, view in enumerate(self._views):
                if view is not None:
                    self._native.set(row, view.native())
        return self._native

    def ranges(self, row: int, start: int = 0, nbytes: int | None = None) -> Iterable[Range]:
        return _ranges(self.view(row), start, nbytes)


class FileColumn(ViewColumn):
    """Regions of files. Single rows may be given a view of another kind.

    Args:
        columns: where each tensor lies in its file.
        file_of: of each tensor its file's place in `files`, int32.
        files: of the class `_core.File`.
    """

    def __init__(self, columns: Columns, file_of: array[int], files: Sequence[Any]) -> None:
        self.kinds, self.shapes = columns.kinds, columns.shapes
        self.read_bytes = columns.sizes
        self._offsets, self._file_of, self._files = columns.offsets, file_of, files
        self._others: dict[int, View] = {}
        self._native: Any = None

    def take(self, rows: Sequence[int]) -> FileColumn:
        """These rows in this order; ABSENT rows come out empty."""
        found = Columns(
            (),
            bytes(self.kinds[row] if row >= 0 else NO_KIND for row in rows),
            [self.shapes[row] if row >= 0 else () for row in rows],
            array("q", [self._offsets[row] if row >= 0 else 0 for row in rows]),
            array("q", [self.read_bytes[row] if row >= 0 else 0 for row in rows]),
        )
        taken = FileColumn(found, array("i", [self._file_of[row] if row >= 0 else 0 for row in rows]), self._files)
        taken._others = {place: self._others[row] for place, row in enumerate(rows) if row in self._others}
        return taken

    @classmethod
    def picked(cls, places: Sequence[tuple[FileColumn, int] | None]) -> FileColumn:
        """The given row of the given column as each row. None: there is no view."""
        columns = list({id(place[0]): place[0] for place in places if place is not None}.values())
        firsts = dict(
            zip(map(id, columns), itertools.accumulate((len(c._files) for c in columns), initial=0), strict=False)
        )
        found = Columns(
            (),
            bytes(NO_KIND if place is None else place[0].kinds[place[1]] for place in places),
            [() if place is None else place[0].shapes[place[1]] for place in places],
            array("q", [0 if place is None else place[0]._offsets[place[1]] for place in places]),
            array("q", [0 if place is None else place[0].read_bytes[place[1]] for place in places]),
        )
        files = [0 if place is None else firsts[id(place[0])] + place[0]._file_of[place[1]] for place in places]
        made = cls(found, array("i", files), [file for column in columns for file in column._files])
        made._others = {
            row: place[0]._others[place[1]]
            for row, place in enumerate(places)
            if place is not None and place[1] in place[0]._others
        }
        return made

    def replace(self, others: Mapping[int, View]) -> None:
        """Puts other views in place of the regions of these rows, before the column is used."""
        self._others.update(others)
        kinds, shapes, sizes = bytearray(self.kinds), list(self.shapes), array("q", self.read_bytes)
        for row, view in others.items():
            kinds[row], shapes[row], sizes[row] = DTYPES.index(view.dtype), view.shape, view.read_bytes
        self.kinds, self.shapes, self.read_bytes = bytes(kinds), shapes, sizes

    def view(self, row: int) -> View:
        if row in self._others:
            return self._others[row]
        return FileRegion(self.dtype(row), self.shapes[row], self._files[self._file_of[row]], self._offsets[row])

    def nbytes(self, row: int) -> int:
        return self._others[row].nbytes if row in self._others else self.read_bytes[row]

    def native(self) -> Any:
        if self._native is None:
            self._native = _core.ViewColumn(self.kinds.translate(_CODES), self._file_of, self._offsets, self._files)
            for row, view in self._others.items():
                self._native.set(row, view.native())
        return self._native

    def ranges(self, row: int, start: int = 0, nbytes: int | None = None) -> Iterable[Range]:
        if row in self._others:
            return _ranges(self._others[row], start, nbytes)
        nbytes = self.read_bytes[row] - start if nbytes is None else nbytes
        return ((self._files[self._file_of[row]], self._offsets[row] + start, nbytes),) if nbytes else ()

    def read(self, row: int, start: int, nbytes: int) -> bytes | memoryview:
        if row in self._others:
            return super().read(row, start, nbytes)
        found: bytes = self._files[self._file_of[row]].read(self._offsets[row] + start, nbytes)
        return found


def _ranges(view: View, start: int, nbytes: int | None) -> Iterator[Range]:
    size = view.dtype.itemsize
    return view.ranges(start // size, None if nbytes is None else nbytes // size)
