"""Headers of safetensors files that lie, and odd ones that tell the truth."""

import itertools
import json
import math

from attack import attack
from helpers import file_bytes
from warpmerge.dtypes import BY_SAFETENSORS

FILE = "model/model.safetensors"
# Where the safetensors library reads a file that warpmerge refuses, and why warpmerge does.
STRICTER = {
    "name twice": "the library keeps the last of the two: another tensor than the writer may have meant",
    "name twice, once escaped": "the same",
    "field of another program twice": "the same",
    "metadata key twice": "the same",
    "tensor as a list": "the library's parser takes a list for a structure; the format does not say so",
    "dtype as an object": "the library's parser takes an object for a name; the format does not say so",
    "length of 64 bits": "no array has such a length, even if another is 0",
    "field of another program, deep": "the library goes down 127 levels, no reader of warpmerge more than 100",
    "half a byte for each element": "no dtype of warpmerge",
    "dtype of other hardware": "no dtype of warpmerge",
}


def entry(begin, end, shape=None, dtype="U8", **more):
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end], **more}


def one(**fields):
    """A header with one tensor of 4 bytes, some of its fields replaced."""
    return file_bytes({"t": {**entry(0, 4), **fields}}, bytes(4))


def two(first, second, size):
    return file_bytes({"first": entry(*first), "second": entry(*second)}, bytes(size))


def text(fields, size=0, name='"t"'):
    """A header with one tensor, its fields spelled as JSON text."""
    return file_bytes(f"{{{name}:{fields}}}".encode(errors="surrogatepass"), bytes(size))


def extra(value):
    """A tensor of one byte with a field of another program, spelled as JSON text."""
    return text(f'{{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":{value}}}', 1)


def named(spelled, size=1):
    return text('{"dtype":"U8","shape":[],"data_offsets":[0,1]}', size, spelled)


def shaped(lengths, size=0, dtype="U8"):
    """A tensor of `size` bytes whose lengths are spelled as JSON text."""
    return text(f'{{"dtype":"{dtype}","shape":[{lengths}],"data_offsets":[0,{size}]}}', size)


def placed(offsets, size=4):
    return text(f'{{"dtype":"U8","shape":[4],"data_offsets":[{offsets}]}}', size)


def refused(name, content, *texts):
    attack("header", name, FILE, content, *texts)


def read(name, content):
    attack("header", name, FILE, content)


INVALID = "not valid JSON"
ONE = '{"t":' + json.dumps(entry(0, 4)) + "}"

# Lengths of the file and of the header.
refused("empty", b"", "0 bytes", "too few")
refused("seven bytes", b"\2\0\0\0\0\0\0", "7 bytes", "too few")
refused("no header", bytes(8), INVALID)
refused("cut in the header", one()[:20], "truncated")
refused("cut in the data", one()[:-1], "truncated")
refused("data missing", file_bytes({"t": entry(0, 4)}), "truncated")
refused("trailing bytes", one() + b"\0", "bytes that no tensor owns")
refused("trailing bytes that are a file", one() + one(), "bytes that no tensor owns")
refused("header length of 2**63", file_bytes("{}", length=2**63), "header claims 9,223,372,036,854,775,808 bytes")
refused("header length of 2**64 - 8", file_bytes("{}", length=2**64 - 8), "header claims")  # 8 + it is 2**64
refused("header length of 2**64 - 1", file_bytes("{}", length=2**64 - 1), "header claims")
refused("header length into the data", file_bytes({"t": entry(0, 4)}, b"    ", length=2**32), "header claims")
refused("header length with the data", file_bytes(ONE, b"\0\0\0\0", length=len(ONE) + 4), INVALID)
refused("header length that is negative", b"\xfe" + b"\xff" * 7 + b"{}", "header claims")
refused("all ones", b"\xff" * 64, "header claims")
refused("a pickle", b"\x80\x02}q\x00." + bytes(100), "header claims")

# The text of the header.
refused("another quote", file_bytes("{'a': 1}"), INVALID)
refused("not UTF-8", file_bytes(b'{"\xff": 1}'), INVALID, "utf-8")
refused("not UTF-8 in metadata", file_bytes(b'{"__metadata__":{"a":"\xff"}}'), INVALID, "utf-8")
refused("overlong UTF-8", file_bytes(b'{"\xc0\x80": 1}'), INVALID, "utf-8")
refused("surrogate in UTF-8", named('"\ud800"'), INVALID, "utf-8")
refused("byte order mark", file_bytes("\ufeff" + ONE, bytes(4)), INVALID)
refused("UTF-16", file_bytes(ONE.encode("utf-16-le"), bytes(4)), INVALID)
refused("zero bytes as padding", file_bytes(ONE + "\0\0", bytes(4)), INVALID)
refused("comment", file_bytes("/**/" + ONE, bytes(4)), INVALID)
refused("comma at the end", file_bytes(ONE[:-1] + ",}", bytes(4)), INVALID)
refused("control character in a name", named('"\x01"'), INVALID)
refused("unknown escape", named(r'"\x41"'), INVALID)
refused("half a surrogate pair", named(r'"\ud800"'), INVALID, "surrogates")
refused("surrogate pair reversed", named(r'"\udc00\ud800"'), INVALID, "surrogates")
refused("half a surrogate pair in metadata", file_bytes(r'{"__metadata__": {"a": "\udfff"}}'), "surrogates")
refused("half a surrogate pair in another field", extra(r'"\uD800"'), "surrogates")
refused("a list", file_bytes("[]"), "not a JSON object")
refused("null", file_bytes("null"), "not a JSON object")
refused("deep", file_bytes("[" * 100_000), "nested too deeply")
refused("deep inside", file_bytes('{"t":' * 50_000 + "1" + "}" * 50_000), "nested too deeply")
refused("deep metadata", file_bytes('{"__metadata__":' + '{"a":' * 50_000 + '""' + "}" * 50_001), "nested too deeply")
refused("NaN", one(shape=[math.nan]), "NaN is not a JSON value")
refused("infinity in another field", one(extra=math.inf), "Infinity is not a JSON value")
refused("number beyond float64", extra("1e999"), INVALID, "1e999")
refused("5,000 digits in another field", extra("9" * 5000), INVALID)
read("field of another program", extra('[1,{"a":null}]'))
read("field of another program, 98 levels deep", extra("[" * 98 + "]" * 98))
refused("field of another program, deep", extra("[" * 110 + "]" * 110), "nested too deeply")
refused("field of another program, deeper", extra("[" * 500 + "]" * 500), "nested too deeply")
refused("field of another program twice", extra('1,"x":2'), "'x' twice")

# Names. Only JSON limits them.
refused("name twice", file_bytes(f'{{"t":{json.dumps(entry(0, 4))},"t":{json.dumps(entry(0, 4))}}}', bytes(4)), "'t'")
refused(
    "name twice, once escaped",
    file_bytes(f'{{"t":{json.dumps(entry(0, 4))},"\\u0074":{json.dumps(entry(0, 4))}}}', bytes(4)),
    "'t' twice",
)
refused("long name twice", file_bytes('{"%s":1,"%s":1}' % (("n" * 10**6,) * 2)), "twice")
read("name with NUL", named(r'"a\u0000b"'))
read("name with a slash", named('"/etc/passwd"'))
read("name of the directory above", named('"../../x"'))
read("empty name", named('""'))
read("name of 1 MB", named('"' + "n" * 10**6 + '"'))
read("name in other letters", named('"é🦊\u202e"'))
read("name with a surrogate pair", named(r'"\ud83e\udd8a"'))
read("name with escapes", named(r'"\"\\\/\b\f\n\r\t"'))
read("name that ends the terminal's line", named(r'"\u001b[2J\u0007"'))
read("name of a method", named('"__class__"'))
read("DEL in a name", named('"\x7f"'))
refused("tensor named as metadata", file_bytes({"__metadata__": entry(0, 4)}, bytes(4)), "__metadata__")
refused("metadata name escaped", file_bytes(r'{"__metadata\u005f_":{"a":1}}'), "__metadata__", "strings")

# Metadata.
refused("metadata twice", file_bytes('{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' twice")
refused("metadata key twice", file_bytes('{"__metadata__":{"a":"1","a":"2"}}'), "'a' twice")
refused("metadata is a list", file_bytes({"__metadata__": []}), "__metadata__")
refused("metadata is false", file_bytes({"__metadata__": False}), "__metadata__")
refused("metadata of numbers", file_bytes({"__metadata__": {"n": 1}}), "__metadata__", "strings")
refused("nested metadata", file_bytes({"__metadata__": {"n": {"m": "1"}}}), "__metadata__", "strings")
refused("metadata that closes more than it opens", file_bytes('{"__metadata__":{"a":"}"}},"t":1}'), INVALID)
refused("metadata without an end", file_bytes('{"__metadata__":{"a":"}'), INVALID)
read("metadata is null", file_bytes({"__metadata__": None, "t": entry(0, 4)}, bytes(4)))
read("metadata at the end, with braces", file_bytes({"t": entry(0, 1), "__metadata__": {'"}\\': "{"}}, bytes(1)))

# A tensor's fields.
refused("tensor is a number", file_bytes({"t": 1}), "'t'", "lacks")
refused("tensor is null", file_bytes({"t": None}), "'t'", "lacks")
refused("tensor as a list", file_bytes({"t": ["U8", [4], [0, 4]]}, bytes(4)), "'t'", "lacks")
refused("field twice", text('{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}', 1), "twice")
refused("no dtype", file_bytes({"t": {"shape": [], "data_offsets": [0, 1]}}, b"1"), "'t'", "lacks its dtype")
refused("unknown dtype", one(dtype="F5"), "'t'", "'F5'", "not supported")
refused("dtype of 1 MB", one(dtype="F" * 10**6), "'t'", "not supported")
refused("dtype in small letters", one(dtype="u8"), "not supported")
refused("dtype is a list", one(dtype=["U8"]), "'t'", "['U8']")
refused("dtype as an object", one(dtype={"U8": None}), "not supported")
refused("half a byte for each element", one(dtype="F4", shape=[8]), "'F4'", "not supported")
refused("dtype of other hardware", one(dtype="F8_E4M3FNUZ"), "not supported")

# Shapes.
refused("shape is a number", one(shape=4), "'t'", "impossible shape 4")
refused("shape of lists", one(shape=[[4]]), "impossible shape")
refused("negative length", one(shape=[-4]), "'t'", "impossible shape [-4]")
refused("two negative lengths", one(shape=[-2, -2]), "impossible shape")
refused("boolean length", one(shape=[True, 4]), "impossible shape")
refused("fractional length", one(shape=[4.0]), "impossible shape")
refused("length as text", one(shape=["4"]), "impossible shape")
refused("minus zero", shaped("-0"), "impossible shape")
refused("exponent", shaped("1e3", 1000), "impossible shape")
refused("leading zero", shaped("04", 4), INVALID)
refused("plus", shaped("+4", 4), INVALID)
refused("hexadecimal", shaped("0x4", 4), INVALID)
refused("digits of another script", shaped("٤", 4), INVALID)
refused("5,000 digits", shaped("9" * 5000), INVALID)
refused("4,000 zeros and a digit", shaped("0" * 4000 + "4", 4), INVALID)
refused("length of 65 bits", one(shape=[2**64, 0]), "impossible shape")
refused("length of 64 bits", shaped(f"{2**63},0"), "impossible shape")
refused("product overflows to the size", shaped(f"{2**32},{2**32},{2**32 + 4}", 4), "impossible shape")
refused("product overflows, then 0", shaped(f"{2**40},{2**40},0"), "impossible shape")
refused("bytes overflow to the size", shaped(f"{2**61}", dtype="F64"), "'t'", "needs 18,446,744,073,709,551,616 bytes")
refused("shape too large", one(shape=[5]), "'t'", "needs 5 bytes", "gives it 4")
refused("shape too small", one(shape=[]), "'t'", "needs 1 bytes", "gives it 4")
read("0 times huge", shaped(f"0,{2**62},{2**62}"))
read("huge times 0", shaped(f"{2**63 - 1},0", dtype="F64"))
read("a thousand dimensions", shaped(",".join(["1"] * 1000), 1))
read("empty and scalar", file_bytes({"e": entry(0, 0, [0, 3]), "s": entry(0, 1, [])}, bytes(1)))

# Offsets.
refused("offsets are null", one(data_offsets=None), "impossible data_offsets")
refused("offsets as an object", one(data_offsets={"0": 0, "1": 4}), "impossible data_offsets")
refused("one offset", one(data_offsets=[4]), "impossible data_offsets")
refused("three offsets", one(data_offsets=[0, 2, 4]), "impossible data_offsets")
refused("negative offset", one(data_offsets=[-4, 0]), "impossible data_offsets [-4, 0]")
refused("boolean offset", one(data_offsets=[False, 4]), "impossible data_offsets")
refused("fractional offset", one(data_offsets=[0.0, 4.0]), "impossible data_offsets")
refused("offset with an exponent", placed("0,4e0"), "impossible data_offsets")
refused("offset with a leading zero", placed("00,4"), INVALID)
refused("offset of 5,000 digits", placed("0," + "9" * 5000), INVALID)
refused("offset of 65 bits", placed(f"0,{2**64 + 4}"), "impossible data_offsets")
refused("offsets reversed", one(data_offsets=[4, 0]), "impossible data_offsets [4, 0]")
refused("offset beyond the file", one(data_offsets=[1000, 1004]), "gap")
refused("largest offsets", one(data_offsets=[2**63 - 5, 2**63 - 1]), "gap")
refused("offsets into the header", file_bytes({"t": entry(-8, 0)}), "impossible data_offsets")
refused("overlap", two((0, 4), (2, 6), 6), "'second'", "overlaps")
refused("same place", two((0, 4), (0, 4), 4), "'second'", "overlaps")
refused("one inside another", two((0, 8), (2, 4), 8), "'second'", "overlaps")
refused("empty inside another", two((0, 8), (2, 2), 8), "'second'", "overlaps")
refused("gap", two((0, 4), (6, 8), 8), "'second'", "gap")
refused("gap at the start", two((2, 4), (4, 8), 8), "'first'", "gap")
read("out of order", two((4, 8), (0, 4), 8))
SIZES = {code: 2 * dtype.itemsize for code, dtype in BY_SAFETENSORS.items()}
ENDS = dict(zip(SIZES, itertools.accumulate(SIZES.values()), strict=True))
read(
    "every dtype",
    file_bytes({c: entry(ENDS[c] - SIZES[c], ENDS[c], [2], c) for c in SIZES}, b"\0\1" * (sum(SIZES.values()) // 2)),
)
