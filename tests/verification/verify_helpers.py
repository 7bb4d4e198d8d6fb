"""Damage to a finished merge."""

import json

NORM, FIRST = "model.norm.weight", "model.embed_tokens.weight"


def flip(path, tensor):
    """Flips the lowest bit of a tensor's last byte."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + json.loads(content[8:start])[tensor]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(content)


def edit_manifest(out, edit):
    """`edit` changes the document."""
    document = json.loads((out / "warpmerge.json").read_text())
    edit(document)
    (out / "warpmerge.json").write_text(json.dumps(document))
