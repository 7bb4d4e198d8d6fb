"""Indexes that lead elsewhere, lie about the shards, or are no indexes. The model has two shards of one tensor each."""

import json

from attack import attack
from attack_world import FIRST, SECOND, shard
from helpers import INDEX, SINGLE

FILE = f"model/{INDEX}"
GOOD = {"a.weight": FIRST, "b.weight": SECOND}


def index(weight_map, **more):
    return json.dumps({"metadata": {"total_size": 40}, "weight_map": weight_map, **more})


def refused(name, content, *texts):
    attack("index", name, FILE, content, *texts)


def read(name, content):
    attack("index", name, FILE, content)


def names(other):
    """An index that says of the second tensor that it is in this file."""
    return index({**GOOD, "b.weight": other})


def with_file(place, content=None):
    """Makes a file, which has the second tensor, and an index that names it."""

    def make(folder):
        path = folder / "model" / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((folder / "model" / SECOND).read_bytes() if content is None else content)
        (folder / FILE).write_text(names(place))

    return make


def linked(target):
    """The second shard is a link to `target`; a directory if that is None."""

    def make(folder):
        (folder / "model" / SECOND).unlink()
        if target is None:
            (folder / "model" / SECOND).mkdir()
        else:
            (folder / "model" / SECOND).symlink_to(target)

    return make


def absolute(folder):
    (folder / FILE).write_text(names(str(folder / "model" / SECOND)))


def both(folder):
    """Both shards have both tensors."""
    for file in (FIRST, SECOND):
        (folder / "model" / file).write_bytes(shard("a.weight", "b.weight"))


def single_beside(folder):
    """transformers prefers the single file as well."""
    (folder / "model" / SINGLE).write_bytes(shard("a.weight", "b.weight"))
    (folder / FILE).write_text(names("../../x"))


def as_index(content):
    return lambda folder: (folder / FILE).write_text(content)


OUTSIDE = "that is no file in this directory"
refused("file of the directory above", with_file("../outside.safetensors"), "'b.weight'", OUTSIDE)
refused("file in a folder", with_file("folder/shard.safetensors"), OUTSIDE)
refused("file with a dot before it", names(f"./{SECOND}"), OUTSIDE)
refused("absolute path", absolute, OUTSIDE)
refused("system file", names("/etc/passwd"), OUTSIDE)
refused("the directory above", names(".."), OUTSIDE)
refused("the directory itself", names("."), OUTSIDE)
refused("no name", names(""), OUTSIDE)
refused("name with NUL", names(SECOND + "\0"), "missing")
refused("name of 100,000 letters", names("x" * 100_000), "is missing")
refused("surrogate", names("\ud800"), "is missing")
refused("surrogates that are bytes of a name", names("\udcff"), "is missing")
refused("file missing", names("gone.safetensors"), "gone.safetensors is missing")
refused("shard is a directory", linked(None), f"{SECOND} is missing")
refused("shard is a link to nothing", linked("gone"), f"{SECOND} is missing")
refused("shard is a link to itself", linked(SECOND), f"{SECOND} is missing")
refused("shard is a device", linked("/dev/zero"), f"{SECOND} is missing")
refused("the index names itself", names(INDEX), "header claims")
attack("index", "the config as a shard", "model/config.json", as_index(names("config.json")), "header claims")
for value in (None, 1, 1.5, True, [], {}, [SECOND]):
    refused(f"file is {value!r}", names(value), "'b.weight'", OUTSIDE)

refused("empty", "", "not valid JSON")
refused("not JSON", "{", "not valid JSON")
refused("not UTF-8", b'{"weight_map": {"\xff": 1}}', "not valid JSON")
refused("UTF-16", index(GOOD).encode("utf-16"), "not valid JSON")
refused("byte order mark", "\ufeff" + index(GOOD), "not valid JSON")
refused("deep", "[" * 100_000, "nested too deeply")
refused("deep beside the map", '{"x":' + "[" * 100_000, "nested too deeply")
refused("a list", "[]", "not a JSON object")
refused("a number of 5,000 digits", '{"x":' + "9" * 5000 + "}", "not valid JSON")
refused("no map", "{}", "'weight_map'")
refused("map is null", index(None), "'weight_map'")
refused("map is a list", index([["a.weight", FIRST]]), "'weight_map'")
attack("index", "map is empty", "model", as_index(index({})), "holds no tensors")

refused("tensor too many", index({**GOOD, "c.weight": FIRST}), "'c.weight'", "it is not")
refused("tensor in the other shard", index({"a.weight": SECOND, "b.weight": FIRST}), "it is not")
refused("tensor with a name of 1 MB", index({**GOOD, "c" * 10**6: FIRST}), "it is not")
refused("tensor with half a surrogate pair", index({**GOOD, "\ud800": FIRST}), "it is not")
refused(
    "file twice in the map",
    f'{{"weight_map":{{"a.weight":"{FIRST}","b.weight":"y","b.weight":"x"}}}}',
    "'b.weight' twice",
)
attack("index", "tensor in both shards", "model", both, "in both")
read("single file beside it", single_beside)
read("tensor that it does not name", index({"a.weight": FIRST, "b.weight": SECOND}, more=[None] * 9))
read("sizes that lie", json.dumps({"metadata": {"total_size": -(10**30)}, "weight_map": GOOD}))
read("metadata of another kind", json.dumps({"metadata": [], "weight_map": GOOD}))
