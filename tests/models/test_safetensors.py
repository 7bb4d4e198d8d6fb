"""The file format: headers that lie, headers of other programs, and headers of our own, with the safetensors library as
judge."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from helpers import bf16, file_bytes, header_of, read_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from warpmerge.dtypes import BY_SAFETENSORS
from warpmerge.errors import CheckpointError
from warpmerge.models.safetensors import MAX_HEADER, layout, read_header

GOOD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": bf16([1.5, -2]), "c": np.array([True, False])}


def entry(begin, end, shape=None, dtype="U8", **more):
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end], **more}


def one(**fields):
    """A header with one tensor of 4 bytes, some of its fields replaced."""
    return file_bytes({"t": {**entry(0, 4), **fields}}, bytes(4))


def two(first, second, size):
    return file_bytes({"first": entry(*first), "second": entry(*second)}, bytes(size))


# Each: the content of a file, and what the message must contain.
BAD = {
    "empty": (b"", ["0 bytes", "too few"]),
    "seven bytes": (b"\2\0\0\0\0\0\0", ["7 bytes", "too few"]),
    "no header": (bytes(8), ["not valid JSON"]),
    "cut in the header": (file_bytes({"t": entry(0, 4)})[:20], ["truncated"]),
    "cut in the data": (one()[:-1], ["truncated"]),
    "data missing": (file_bytes({"t": entry(0, 4)}), ["truncated"]),
    "data too long": (one() + b"\0", ["bytes that no tensor owns"]),
    "huge header length": (file_bytes("{}", length=2**63), ["header claims 9,223,372,036,854,775,808 bytes"]),
    "all ones": (b"\xff" * 64, ["header claims"]),
    "a pickle": (b"\x80\x02}q\x00." + bytes(100), ["header claims"]),
    "not JSON": (file_bytes("{'a': 1}"), ["not valid JSON"]),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), ["not valid JSON", "utf-8"]),
    "a list": (file_bytes("[]"), ["not a JSON object"]),
    "null": (file_bytes("null"), ["not a JSON object"]),
    "deep": (file_bytes("[" * 100_000), ["nested too deeply"]),
    "deep inside": (file_bytes('{"t":' * 50_000 + "1" + "}" * 50_000), ["nested too deeply"]),
    "NaN": (one(shape=[math.nan]), ["NaN is not a JSON value"]),
    "infinity in extra fields": (one(extra=math.inf), ["Infinity is not a JSON value"]),
    "half a surrogate pair": (file_bytes(r'{"\ud800": 1}'), ["not valid JSON", "surrogates"]),
    "half a surrogate pair in metadata": (file_bytes(r'{"__metadata__": {"a": "\udfff"}}'), ["surrogates"]),
    "name twice": (
        file_bytes(f'{{"t":{json.dumps(entry(0, 4))},"t":{json.dumps(entry(0, 4))}}}', bytes(4)),
        ["'t' twice"],
    ),
    "field twice": (file_bytes('{"t":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"1"), ["twice"]),
    "metadata twice": (file_bytes('{"__metadata__":{},"__metadata__":{}}'), ["'__metadata__' twice"]),
    "metadata is a list": (file_bytes({"__metadata__": []}), ["__metadata__"]),
    "metadata is false": (file_bytes({"__metadata__": False}), ["__metadata__"]),
    "metadata of numbers": (file_bytes({"__metadata__": {"n": 1}}), ["__metadata__", "strings"]),
    "tensor is a number": (file_bytes({"t": 1}), ["'t'", "lacks"]),
    "tensor is null": (file_bytes({"t": None}), ["'t'", "lacks"]),
    "no dtype": (file_bytes({"t": {"shape": [], "data_offsets": [0, 1]}}, b"1"), ["'t'", "lacks its dtype"]),
    "unknown dtype": (one(dtype="F5"), ["'t'", "'F5'", "not supported"]),
    "dtype is a list": (one(dtype=["U8"]), ["'t'", "['U8']"]),
    "shape is a number": (one(shape=4), ["'t'", "impossible shape 4"]),
    "negative length": (one(shape=[-4]), ["'t'", "impossible shape [-4]"]),
    "two negative lengths": (one(shape=[-2, -2]), ["impossible shape"]),
    "boolean length": (one(shape=[True, 4]), ["impossible shape"]),
    "fractional length": (one(shape=[4.0]), ["impossible shape"]),
    "minus zero": (file_bytes('{"t":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), ["impossible shape"]),
    "length as text": (one(shape=["4"]), ["impossible shape"]),
    "5000 digits": (one(shape=[int("9" * 4000)]), ["impossible shape"]),
    "65 bits": (one(shape=[2**64, 0]), ["impossible shape"]),
    "product overflows": (one(shape=[2**40, 2**40, 0]), ["impossible shape"]),
    "shape too large": (one(shape=[5]), ["'t'", "needs 5 bytes", "gives it 4"]),
    "shape too small": (one(shape=[]), ["'t'", "needs 1 bytes", "gives it 4"]),
    "offsets is null": (one(data_offsets=None), ["impossible data_offsets"]),
    "one offset": (one(data_offsets=[4]), ["impossible data_offsets"]),
    "three offsets": (one(data_offsets=[0, 2, 4]), ["impossible data_offsets"]),
    "negative offset": (one(data_offsets=[-4, 0]), ["impossible data_offsets [-4, 0]"]),
    "boolean offset": (one(data_offsets=[False, 4]), ["impossible data_offsets"]),
    "fractional offset": (one(data_offsets=[0.0, 4.0]), ["impossible data_offsets"]),
    "offsets reversed": (one(data_offsets=[4, 0]), ["impossible data_offsets [4, 0]"]),
    "offset beyond the file": (one(data_offsets=[1000, 1004]), ["gap"]),
    "largest offsets": (one(data_offsets=[2**63 - 5, 2**63 - 1]), ["gap"]),
    "overlap": (two((0, 4), (2, 6), 6), ["'second'", "overlaps"]),
    "same place": (two((0, 4), (0, 4), 4), ["'second'", "overlaps"]),
    "one inside another": (two((0, 8), (2, 4), 8), ["'second'", "overlaps"]),
    "gap": (two((0, 4), (6, 8), 8), ["'second'", "gap"]),
    "gap at the start": (two((2, 4), (4, 8), 8), ["'first'", "gap"]),
}


STRICTER = {"name twice"}  # the library keeps the last of the two, and so another tensor than the writer may have meant


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    content, expected = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert len(message) < 300 + len(str(path))
    for part in [str(path), *expected]:
        assert part in message
    if name not in STRICTER:
        with pytest.raises(SafetensorError):
            library(path)


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
