"""The safetensors file format: reading and checking headers, and making headers for output.

A file is an 8-byte little-endian header length, the header (JSON, padded with spaces) and the data. Offsets in the
header count from the start of the data. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import _core, system
from ..dtypes import BY_SAFETENSORS, DTYPES, DType
from ..errors import CheckpointError, shown
from .documents import parse_float, parse_json

MAX_HEADER = 100_000_000  # the limit of the reference implementation
PAGE = 4096
LARGEST = 2**63 - 1  # of an offset, a length or a number of elements


class TensorEntry(NamedTuple):
    """The place of a tensor in a file: `offset` is counted in bytes from the start of the file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def count(self) -> int:  # type: ignore[override]
        return math.prod(self.shape)


class Columns(NamedTuple):
    """Tensors in the order of their data. Each attribute has one item per tensor, so that many tensors cost little.

    kinds: indices into DTYPES. offsets: from the start of the file. sizes: in bytes.
    """

    names: Sequence[str]
    kinds: bytes
    shapes: Sequence[tuple[int, ...]]
    offsets: array[int]
    sizes: array[int]

    @classmethod
    def of(cls, entries: Sequence[TensorEntry]) -> Columns:
        return cls(
            [e.name for e in entries],
            bytes(DTYPES.index(e.dtype) for e in entries),
            [e.shape for e in entries],
            array("q", [e.offset for e in entries]),
            array("q", [e.nbytes for e in entries]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        if len(parts) == 1:
            return parts[0]
        offsets, sizes = array("q"), array("q")
        for part in parts:
            offsets.extend(part.offsets)
            sizes.extend(part.sizes)
        names = [name for part in parts for name in part.names]
        shapes = [shape for part in parts for shape in part.shapes]
        return cls(names, b"".join(p.kinds for p in parts), shapes, offsets, sizes)

    def entry(self, row: int) -> TensorEntry:
        kind, shape = DTYPES[self.kinds[row]], self.shapes[row]
        return TensorEntry(self.names[row], kind, shape, self.offsets[row], self.sizes[row])

    def entries(self) -> list[TensorEntry]:
        dtypes = map(DTYPES.__getitem__, self.kinds)
        return list(map(TensorEntry, self.names, dtypes, self.shapes, self.offsets, self.sizes))

    def by_name(self) -> dict[str, TensorEntry]:
        return dict(zip(self.names, self.entries(), strict=True))


_SCANNED = [(d.safetensors, d.itemsize) for d in DTYPES]


def read_columns(path: Path) -> tuple[Columns, dict[str, str]]:
    """The tensors of a file in the order of their data, and its metadata.

    Raises CheckpointError if a length, an offset, a dtype or a shape is impossible, or tensors overlap, leave gaps,
    share a name or do not fill the file exactly.
    """
    raw, size = _header_of(path)
    start = 8 + len(raw)
    found = _core.scan_header(raw, start, size, _SCANNED)
    if found is None:
        header, metadata = _parse(raw, path)
        return Columns.of(_entries(path, header, start, size)), metadata
    document, names, kinds, shapes, offsets, sizes = found
    metadata = _parse(b'{"__metadata__":' + document + b"}", path)[1] if document else {}
    return Columns(names, kinds, shapes, array("q", offsets), array("q", sizes)), metadata


def read_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The columns of a file as records by name, and its metadata. Raises CheckpointError as `read_columns` does."""
    columns, metadata = read_columns(path)
    return columns.by_name(), metadata


def _header_of(path: Path) -> tuple[bytes, int]:
    """The bytes of the header, and the size of the file."""
    file = system.open_regular(path)
    try:
        size = system.calls.fstat(file).st_size
        prefix = system.read_at(file, 8, 0)
        if len(prefix) < 8:
            raise CheckpointError(
                f"{path}: {size} bytes are too few for a safetensors file; it is truncated or empty. Copy it again."
            )
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER or 8 + length > size:
            raise CheckpointError(
                f"{path}: the header claims {length:,} bytes but the file has {size:,}; it is truncated, or it is not "
                "a safetensors file."
            )
        raw = system.read_at(file, length, 8)
    finally:
        system.close(file)
    if len(raw) < length:
        raise CheckpointError(f"{path} changed while it was being read; run the merge again.")
    return raw, size


def _entries(path: Path, header: Mapping[str, Any], start: int, size: int) -> list[TensorEntry]:
    entries = [_entry(path, name, fields, start) for name, fields in header.items()]
    entries.sort(key=lambda e: (e.offset, e.nbytes))
    expected = start
    for entry in entries:
        if entry.offset != expected:
            what = "overlaps the tensor before it" if entry.offset < expected else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor '{entry.name}' {what}; the header is wrong.")
        expected += entry.nbytes
    if expected != size:
        problem = "is truncated. Copy it again" if expected > size else "has bytes that no tensor owns"
        raise CheckpointError(
            f"{path}: by its header the file has {expected:,} bytes, but it has {size:,}; it {problem}."
        )
    return entries


def _parse(raw: bytes, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors' part of a header, and the metadata: JSON, as strictly as the reference implementation reads it."""
    try:
        header = parse_json(raw, integer=_integer)
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(header, ensure_ascii=False).encode()  # fails on halves of surrogate pairs, which JSON can spell
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error}).") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object.")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a JSON object of strings.")
    return header, metadata


def _integer(text: str) -> int | float:
    """An integer of up to 64 bits; -0 and longer ones become floats, so that a later check refuses them."""
    return parse_float(text) if text == "-0" or len(text) > 20 else int(text)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _entry(path: Path, name: str, fields: Any, start: int) -> TensorEntry:
    where = f"{path}: tensor '{name}'"
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise CheckpointError(f"{where}: the header lacks its dtype, shape or data_offsets.")
    dtype = BY_SAFETENSORS.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where}: the dtype {shown(fields['dtype'])} is not supported.")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not isinstance(shape, list) or not all(map(_is_index, shape)):
        raise CheckpointError(f"{where}: impossible shape {shown(shape)}.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_index, offsets)):
        raise CheckpointError(f"{where}: impossible data_offsets {shown(offsets)}.")
    begin, end = offsets
    count = 1
    for length in shape:
        count *= length
        if count > LARGEST:  # even if a later length is 0: others multiply in 64 bits
            raise CheckpointError(f"{where}: impossible shape {shown(shape)}.")
    if begin > end:
        raise CheckpointError(f"{where}: impossible data_offsets {offsets}.")
    if count * dtype.itemsize != end - begin:
        raise CheckpointError(
            f"{where}: shape {shown(shape)} of {dtype} needs {count * dtype.itemsize:,} bytes, "
            f"the header gives it {end - begin:,}."
        )
    return TensorEntry(name, dtype, tuple(shape), start + begin, end - begin)


def layout(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, Columns, int]:
    """Header bytes for tensors in the given order, the place of each tensor, and the size of the file.

    The header is padded with spaces so that the data starts on a page.
    """
    names, kinds, shapes = [], bytearray(), []
    offsets, sizes = array("q"), array("q")
    written = [json.dumps("__metadata__") + ":" + _json(dict(metadata))]
    known: dict[tuple[DType, tuple[int, ...]], tuple[int, int, str]] = {}
    at = 0
    for name, dtype, shape in tensors:
        kind = known.get((dtype, shape))
        if kind is None:
            fields = f':{{"dtype":"{dtype.safetensors}","shape":{_json(list(shape))},"data_offsets":['
            kind = known[dtype, shape] = DTYPES.index(dtype), math.prod(shape) * dtype.itemsize, fields
        number, nbytes, fields = kind
        names.append(name)
        kinds.append(number)
        shapes.append(shape)
        offsets.append(at)
        sizes.append(nbytes)
        end = at + nbytes
        written.append(f"{_quoted(name)}{fields}{at},{end}]}}")
        at = end
    encoded = ("{" + ",".join(written) + "}").encode()
    length = -(-(8 + len(encoded)) // PAGE) * PAGE - 8
    prefix = length.to_bytes(8, "little") + encoded.ljust(length)
    start = len(prefix)
    offsets = array("q", [start + offset for offset in offsets])
    return prefix, Columns(names, bytes(kinds), shapes, offsets, sizes), start + at


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_quoted = json.encoder.encode_basestring
