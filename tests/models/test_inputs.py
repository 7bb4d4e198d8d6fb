"""Inputs that change while they are read: an error that names the file, and no output."""

import os

import pytest
import warpmerge as wm
from helpers import INDEX, SINGLE, contents, llama, write_model
from output_helpers import FIXTURES
from warpmerge import system

(models,) = FIXTURES


def rewrite(path):
    """Changes a byte in place."""
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def rewrite_and_restore(path):
    """As somebody does who does not want it to be seen."""
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


CHANGES = {
    "rewritten": rewrite,
    "rewritten, time restored": rewrite_and_restore,
    "replaced": replace,
    "removed": os.unlink,
    "cut": lambda path: os.truncate(path, 100),
    "same bytes": lambda path: path.write_bytes(path.read_bytes()),
}
FILES = ["a/model-00002-of-00002.safetensors", f"b/{SINGLE}", f"a/{INDEX}", "base/config.json", "base/tokenizer.json"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("resume", [False, True])
def test_an_input_that_changes_while_it_is_read(models, file, change, resume):
    changed = []

    def progress(done, total):
        if done and not changed:
            changed.append(file)
            CHANGES[change](models / file)

    out = models / "out"
    with pytest.raises(wm.CheckpointError, match=str(models / file)):
        wm.merge(models / "r.yml", out, shard_size=600, sync=False, resume=resume, progress=progress)
    assert changed and not out.exists()  # no shard is kept: some may be made of both


def test_a_file_that_appears_beside_the_inputs(models):
    """A config that was not there decides about the output's config."""
    (models / "a" / "config.json").unlink()
    with pytest.raises(wm.CheckpointError, match=r"a/config\.json changed"):
        wm.merge(
            models / "r.yml",
            models / "out",
            sync=False,
            progress=lambda *_: (models / "a" / "config.json").write_text("{}"),
        )


def test_a_change_in_the_same_tick_of_the_clock(tmp_path, monkeypatch):
    """The clock of files ticks: a file that was written just now is looked at again when the tick is over."""
    write_model(tmp_path / "a", llama(0))
    path = tmp_path / "a" / SINGLE
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    os.utime(path)
    status = system.settled(path)
    assert len(slept) == 1 and 0 < slept[0] <= system.TICK / 1e9
    monkeypatch.setattr("time.time_ns", lambda: status.st_ctime_ns + system.TICK)
    assert system.settled(path) == status and len(slept) == 1
    monkeypatch.setattr("time.time_ns", lambda: status.st_ctime_ns - 10**12)  # a server whose clock is ahead
    assert system.settled(path) == status and len(slept) == 1


def test_the_manifest_names_what_was_read(models):
    import hashlib
    import json

    wm.merge(models / "r.yml", models / "out", sync=False)
    manifest = json.loads((models / "out" / "warpmerge.json").read_text())
    for record in manifest["inputs"]:
        for file in record["files"]:
            data = contents(models)[os.path.relpath(os.path.join(record["path"], file["name"]), models)]
            header = data[: 8 + int.from_bytes(data[:8], "little")]
            assert file["header_sha256"] == hashlib.sha256(header).hexdigest()
