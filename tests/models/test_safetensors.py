"""The file format: headers of other programs, damaged ones, and our own, with the safetensors library as judge. Headers
that lie are in tests/attacks."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from header_attacks import entry
from helpers import bf16, file_bytes, header_of, read_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from warpmerge.dtypes import BY_SAFETENSORS
from warpmerge.errors import CheckpointError
from warpmerge.models.safetensors import MAX_HEADER, layout, read_header

GOOD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": bf16([1.5, -2]), "c": np.array([True, False])}


def library(path):
    """Names, shapes, dtypes and metadata as the safetensors library reads them."""
    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}, file.metadata() or {}


def ours(path):
    entries, metadata = read_header(path)
    return {n: (e.dtype.safetensors, e.shape) for n, e in entries.items()}, metadata


ODD = {
    "no tensors": {},
    "empty and scalar": {"e": np.zeros((0, 3), np.float16), "s": np.array(2.5), "f": np.zeros((2, 0, 0), np.int8)},
    "odd names": {
        n: np.array([i]) for i, n in enumerate(["", " ", "a/../b", "a\nb", 'q"\\', "é🦊", "\x7f\x00", "a" * 999])
    },
    "every dtype": {c: (c, (2,), bytes(range(2 * d.itemsize))) for c, d in BY_SAFETENSORS.items()},
    "usual": GOOD,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "é": "\n"}])
@pytest.mark.parametrize("padding", [0, 5])
def test_odd_files_are_read_as_the_library_reads_them(tmp_path, name, metadata, padding):
    path = tmp_path / "odd.safetensors"
    header, data = header_of(ODD[name])
    if metadata is not None:
        header["__metadata__"] = metadata
    path.write_bytes(file_bytes(json.dumps(header) + " " * padding, data))
    assert ours(path) == library(path)
    content = path.read_bytes()
    found = {n: content[e.offset : e.offset + e.nbytes] for n, e in read_header(path)[0].items()}
    assert found == {n: raw[2] for n, raw in read_safetensors(path).items()}


def test_tensors_come_in_the_order_of_their_data(tmp_path):
    path = tmp_path / "order.safetensors"
    header = {"late": entry(4, 8), "empty": entry(4, 4), "early": entry(0, 4)}
    path.write_bytes(file_bytes(header, bytes(8)))
    assert list(read_header(path)[0]) == ["early", "empty", "late"]


def test_a_header_is_read_only_if_it_is_not_too_long(tmp_path):
    """The limit of the library holds, before anything of that size is allocated."""
    path = tmp_path / "long.safetensors"
    path.write_bytes((MAX_HEADER + 1).to_bytes(8, "little") + b"{}")
    with open(path, "r+b") as file:
        file.truncate(8 + MAX_HEADER + 1)  # sparse
    with pytest.raises(CheckpointError, match="header claims 100,000,001 bytes"):
        read_header(path)
    with pytest.raises(SafetensorError):
        library(path)


NAMES = st.text(max_size=6) | st.sampled_from(["a", "b", "__metadata__"])
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 8, -1, 2**31, 2**63, 2**64, True, None, 1.0, "1", -0.0, math.nan])
LENGTHS = st.lists(st.integers(0, 4) | NUMBERS, max_size=3)


@st.composite
def files(draw):
    """A good file, or one damaged in its header's values, in its bytes or in its lengths."""
    damage = draw(st.sampled_from(["none", "values", "bytes", "lengths"]))
    dtypes = draw(st.lists(st.sampled_from(["U8", "F32", "BF16", "I64", "F8_E4M3", "C64"]), max_size=4))
    header, at = {}, 0
    for dtype in dtypes:
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = math.prod(shape) * BY_SAFETENSORS[dtype].itemsize
        header[draw(NAMES)] = entry(at, at + size, shape, dtype)
        at += size
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(NAMES, st.text(max_size=3), max_size=2))
    if damage == "values" and header:
        fields = header[draw(st.sampled_from(list(header)))]
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))
        fields[key] = draw(LENGTHS | NUMBERS | st.sampled_from(["F16", "F4", [0, at], [at, at], {}]))
    text = bytearray(json.dumps(header, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass"))
    if damage == "bytes":
        place = draw(st.integers(0, len(text) - 1))
        text[place : place + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", *(bytes([c]) for c in b'09-{" ,\xff')])
        )
    length, data = None, at
    if damage == "lengths":
        length = draw(st.integers(0, len(text) + at + 2) | st.sampled_from([2**31, 2**64 - 1]))
        data = draw(st.integers(0, at + 2))
    return file_bytes(bytes(text), bytes(data), length=length)


def check_agreement(path, content):
    """Either the library reads the same, or the file is refused with our own error."""
    path.write_bytes(content)
    try:
        found = ours(path)
    except CheckpointError:
        return "refused"
    assert found == library(path)
    return "read"


def test_damaged_files_are_refused_or_read_as_the_library_reads_them(tmp_path):
    seen = Counter()

    @settings(max_examples=600, deadline=None, database=None, derandomize=True)
    @given(files())
    def check(content):
        seen[check_agreement(tmp_path / "fuzz.safetensors", content)] += 1

    check()
    assert seen["read"] > 50 and seen["refused"] > 50


def test_every_changed_byte_and_every_cut_of_a_file(tmp_path):
    header, data = header_of(GOOD)
    content = file_bytes({"__metadata__": {"format": "pt"}, **header}, data)
    seen = Counter()
    for place in range(len(content) - len(data)):
        for value in (ord("9"), ord('"'), content[place] ^ 1):
            changed = content[:place] + bytes([value]) + content[place + 1 :]
            seen[check_agreement(tmp_path / "byte.safetensors", changed)] += 1
    for end in range(len(content)):
        assert check_agreement(tmp_path / "cut.safetensors", content[:end]) == "refused"
    assert seen["refused"] > 300 and seen["read"] > 50


def test_written_headers_start_the_data_on_a_page_and_are_read_back(tmp_path):
    path = tmp_path / "out.safetensors"

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(
        st.lists(
            st.tuples(NAMES, st.sampled_from(sorted(BY_SAFETENSORS)), st.lists(st.integers(0, 3), max_size=3)),
            unique_by=lambda t: t[0],
        )
    )
    def check(tensors):
        tensors = [(n, BY_SAFETENSORS[d], tuple(s)) for n, d, s in tensors if n != "__metadata__"]
        header, columns, size = layout(tensors, {"format": "pt"})
        assert len(header) % 4096 == 0
        path.write_bytes(header + bytes(size - len(header)))
        assert read_header(path) == (columns.by_name(), {"format": "pt"})
        assert ours(path) == library(path)

    check()


def test_padding_around_the_end_of_a_page():
    """A header takes one page or two, never less than it needs and never a page too many."""
    pages = Counter()
    for extra in range(3900, 4100):
        header, _, size = layout([("n" * extra, BY_SAFETENSORS["F32"], (1,))], {})
        text = header[8:].rstrip()
        assert int.from_bytes(header[:8], "little") == len(header) - 8
        assert len(header) == -(-(8 + len(text)) // 4096) * 4096
        assert size == len(header) + 4
        pages[len(header)] += 1
    assert set(pages) == {4096, 8192}
