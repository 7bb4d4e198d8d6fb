"""Manifests beside a finished merge, for `verify`, and for a merge with --overwrite that takes their place."""

import json

from attack import attack
from attack_world import OUT

FILE = f"{OUT}/warpmerge.json"
DAMAGED = "is damaged"


def refused(name, content, *texts):
    attack("manifest", name, FILE, content, *texts)


def read(name, content):
    attack("manifest", name, FILE, content)


def changed(change):
    """The merge's own manifest after `change` has worked on it, or what it returns."""

    def make(folder):
        document = json.loads((folder / FILE).read_text())
        document = change(document) or document
        (folder / FILE).write_text(document if isinstance(document, str) else json.dumps(document))

    return make


def record(**fields):
    """The record of one tensor has other values."""
    return changed(lambda d: d["tensors"]["a.weight"].update(fields))


def files(*names):
    """A manifest that says that these are the merge's files."""
    return changed(lambda d: d.update(files=list(names), shards=[{"name": n, "bytes": 1} for n in names]))


refused("empty", "", DAMAGED)
refused("not JSON", "{", DAMAGED)
refused("not UTF-8", b'{"tensors": {"\xff": 1}}', DAMAGED)
refused("byte order mark", '\ufeff{"tensors": {}}', DAMAGED)
refused("deep", "[" * 100_000, DAMAGED)
refused("deep inside", '{"tensors":' + '{"a":' * 100_000, DAMAGED)
refused("5,000 digits", '{"tensors":' + "9" * 5000 + "}", DAMAGED)
for value in (None, [], "text", 1):
    refused(f"document is {value!r}", json.dumps(value), DAMAGED)
    refused(f"tensors are {value!r}", changed(lambda d, v=value: d.update(tensors=v)), DAMAGED)
    refused(f"record is {value!r}", changed(lambda d, v=value: d["tensors"].update({"a.weight": v})), DAMAGED)
for key in ("dtype", "shape", "digest"):
    refused(f"no {key}", changed(lambda d, k=key: d["tensors"]["a.weight"].pop(k) and None), DAMAGED)
for value in (None, 5, [], {}, "float16", "float32\0", "f" * 10**6):
    refused(f"dtype is {value!r:.20}", record(dtype=value), "'a.weight'", "in the manifest")
for value in (None, 6, "[2, 3]", {}, [3, 2], [2, 3.5], [2, 3, 1], [[2], [3]], [-2, -3], [2**70]):
    refused(f"shape is {value!r:.20}", record(shape=value), "'a.weight'", "in the manifest")
for value in (None, 0, [], {}, "", "0" * 16, "0x0", "-1", "\ud800", "g" * 16, "0" * 10**6, 2**64, 1e300):
    refused(f"digest is {value!r:.20}", record(digest=value), "'a.weight'", "digest")
refused("no tensors", changed(lambda d: d["tensors"].clear()), "'a.weight' is not in the manifest")
refused(
    "tensor too many", changed(lambda d: d["tensors"].update({"../x": d["tensors"]["a.weight"]})), "'../x' is missing"
)
refused("tensor with NUL", changed(lambda d: d["tensors"].update({"\0": d["tensors"]["a.weight"]})), "is missing")
refused("surrogate", changed(lambda d: d["tensors"].update({"\ud800": d["tensors"]["a.weight"]})), "is missing")
read("other keys", changed(lambda d: {"tensors": d["tensors"], "x": [None]}))
read("other version", changed(lambda d: d.update(warpmerge=["9" * 1000])))
read("other shards", changed(lambda d: [r.update(shard="../x") for r in d["tensors"].values()] and None))
for value in (None, 1, "text", {}, [None], [[]], [{}], [1]):
    read(f"files are {value!r}", changed(lambda d, v=value: d.update(files=v, shards=v)))
read("files outside", files("../outside.safetensors", "../model/config.json", "../model"))
read("files of the system", files("/etc/passwd", "/", "/etc/../etc/passwd"))
read("directories as files", files("", ".", "..", "./", "folder"))
read("names that no file can have", files("\0", "x" * 10**6, "\ud800", "a/\0"))


def others_files(folder):
    """The manifest names what its user has put beside the model."""
    names = ("notes.md", "thesis.tex", "photo.jpg", "data.parquet", "model.py.orig", ".env")
    for name in names:
        (folder / OUT / name).write_text("precious")
    files(*names)(folder)


attack("manifest", "files of the user", FILE, others_files)
