"""A config.json that is none, or whose values are not what a merge expects of them."""

import json

from attack import attack
from helpers import CONFIG

FILE = "model/config.json"
INVALID = "not valid JSON"


def refused(name, content, *texts):
    attack("config", name, FILE, content, *texts)


def read(name, content):
    attack("config", name, FILE, content)


def config(**values):
    return json.dumps({**CONFIG, **values})


refused("empty", "", INVALID)
refused("not JSON", "{'a': 1}", INVALID)
refused("not UTF-8", b'{"a": "\xff"}', INVALID)
refused("surrogate in UTF-8", '{"a": "\ud800"}', INVALID)
refused("UTF-16", config().encode("utf-16"), INVALID)
refused("byte order mark", "\ufeff" + config(), INVALID)
refused("zero bytes", bytes(100), INVALID)
refused("a list", "[]", "not a JSON object")
refused("null", "null", "not a JSON object")
refused("deep", "[" * 100_000, "nested too deeply")
refused("deep inside", '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply")
refused("5,000 digits", '{"a":' + "9" * 5000 + "}", INVALID)
read("no keys", "{}")
refused("key twice", '{"torch_dtype":"float32","torch_dtype":"float64"}', "'torch_dtype' twice")
read("half a surrogate pair", r'{"a": "\ud800", "\udfff": 1}')
read("NUL in a text", r'{"a\u0000": "\u0000"}')
read("text of 1 MB", config(a="n" * 10**6))
refused("number beyond float64", '{"a": 1e999}', "1e999")
for value in (None, 1, [], {}, ["float32"], {"torch_dtype": {}}, "no dtype", "\x1b[2J"):
    read(f"dtype is {value!r}", config(torch_dtype=value, dtype=value, text_config={"dtype": value}))
for value in (None, 0, [], "", {}):
    read(f"quantization is {value!r}", config(quantization_config=value))
