"""The output directory: what a finished merge leaves in it, and where it must not be."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import warpmerge as wm
import yaml
from helpers import (
    CONFIG,
    FILES,
    INDEX,
    SINGLE,
    array,
    contents,
    llama,
    looks_complete,
    read_model,
    run_process,
    write_model,
)
from output_helpers import FIXTURES, SHARDED, expected, merge
from safetensors import safe_open
from warpmerge import _core, system
from warpmerge.models.staging import STAGING

(models,) = FIXTURES


def test_a_merge_of_files_imports_neither_numpy_nor_torch(models):
    code = """if True:
        import sys, warpmerge as wm
        wm.merge(sys.argv[1], sys.argv[2], device="cpu", sync=False)
        wm.backends.choose()
        sys.exit(", ".join({"numpy", "torch"} & sys.modules.keys()) or 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, models / "r.yml", models / "out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("old", "new"), [(SHARDED, ()), ((), SHARDED), (SHARDED, ("--shard-size", "2kB"))])
def test_overwriting_leaves_nothing_of_the_old_model(models, old, new):
    assert merge(models, *old).status == 0
    (models / "out" / "thesis.txt").write_text("the user's own")
    for name in ["tokenizer.json", "modeling_own.py"]:  # the new base has neither
        (models / "base" / name).unlink()
    refused = merge(models, *new)
    assert (refused.status, "--overwrite" in refused.stderr) == (1, True)
    assert merge(models, *new, "--overwrite").status == 0
    found = contents(models / "out")
    assert found.pop("thesis.txt") == b"the user's own"
    assert found == expected(models, *new)


def test_a_directory_in_the_way_of_a_file_is_found_before_the_old_model_is_touched(models):
    assert merge(models).status == 0
    (models / "out" / "config.json").unlink()
    (models / "out" / "config.json").mkdir()
    refused = merge(models, "--overwrite")
    assert (refused.status, "config.json is a directory" in refused.stderr) == (1, True)
    assert looks_complete(models / "out")


INPUTS = {"input": "a", "link": "link", "nested": "a/merged", "dots": "b/../a", "through a link": "link/merged"}


@pytest.mark.parametrize("how", INPUTS)
def test_an_input_is_never_the_output(models, how):
    (models / "link").symlink_to("a")
    before = contents(models)
    for options in [(), ("--overwrite",), ("--overwrite", "--dry-run")]:
        refused = merge(models, *options, out=INPUTS[how])
        assert refused.status == 1
        problem = "lies in the input" if "merged" in INPUTS[how] else "is also an input"
        assert problem in refused.stderr and "choose another directory" in refused.stderr
    assert contents(models) == before


def test_a_directory_that_holds_an_inputs_files_is_never_the_output(models):
    """As in the hub's cache, where a model's directory holds links to files elsewhere."""
    (models / "blobs").mkdir()
    shutil.move(models / "b" / SINGLE, models / "blobs" / SINGLE)
    (models / "b" / SINGLE).symlink_to(models / "blobs" / SINGLE)
    before = contents(models / "blobs")
    refused = merge(models, "--overwrite", out="blobs")
    assert (refused.status, "choose another directory" in refused.stderr) == (1, True)
    assert contents(models / "blobs") == before


def test_outputs_that_cannot_be_made(models):
    (models / "file").write_text("a file")
    (models / "dangling").symlink_to("nowhere")
    (models / "staged").mkdir()
    (models / "staged" / STAGING).symlink_to(models / "a")
    before = contents(models)
    for out in ["file", "file/below", "dangling", "staged", "x" * 300]:
        refused = merge(models, "--overwrite", out=out)
        assert refused.status == 1
        assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
        assert str(models / out) in refused.stderr
    assert contents(models) == before
    for out in ["empty", "new/below/ünï 🦊"]:
        (models / "empty").mkdir(exist_ok=True)
        assert merge(models, out=out).status == 0


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fallocate", "pwrite", "fdatasync", "fsync"])
def test_no_space_left(models, monkeypatch, where):
    with monkeypatch.context() as patch:
        if where == "pwrite":
            _core.watch(lambda call, *_: errno.ENOSPC if call == where else 0)
        else:
            patch.setattr(system.calls, where, full)
        failed = merge(models)
        _core.watch(None)
    assert (failed.status, failed.stdout) == (1, "")
    assert failed.stderr.startswith(f"error: no space left for the output in {models / 'out'}")
    assert not looks_complete(models / "out")
    assert merge(models, "--resume").status == 0
    assert contents(models / "out") == expected(models)


def test_too_little_space_is_found_before_anything_is_read(models, monkeypatch):
    free = shutil.disk_usage(models)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    failed = merge(models)
    assert failed.status == 1
    assert "1.00 kB free" in failed.stderr and "6.24 kB are needed" in failed.stderr
    assert not (models / "out").exists()


def test_a_limit_on_the_size_of_files(models):
    setup = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500))\n"
    failed = run_process("merge", models / "r.yml", models / "out", setup=setup)
    assert (failed.status, failed.stdout) == (1, "")
    assert "cannot write to" in failed.stderr and "File too large" in failed.stderr
    assert not (models / "out").exists()


def test_a_write_that_fails_in_a_worker(models):
    """Past the header, whose size the limit allows, and with no space reserved, which would find it earlier."""
    setup = (
        "import resource\n"
        "from warpmerge import system\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500))\n"
        "system.reserve = lambda fd, nbytes: None\n"
    )
    failed = run_process("merge", models / "r.yml", models / "out", setup=setup)
    assert (failed.status, failed.stdout) == (1, "")
    assert failed.stderr == f"error: cannot write to {models / 'out'}: File too large.\n"
    assert not (models / "out").exists()


def test_file_systems_that_cannot_reserve_space(models, monkeypatch):
    whole = expected(models, *SHARDED)

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(system.calls, "fallocate", unsupported)
    assert merge(models, *SHARDED).status == 0
    assert contents(models / "out") == whole


@pytest.mark.parametrize("options", [(), SHARDED])
def test_what_a_finished_merge_leaves(models, options):
    assert merge(models, *options).status == 0
    out = models / "out"
    names = {p.name for p in out.iterdir()}
    weights = {n for n in names if n.endswith(".safetensors")}
    copied = {n for n in FILES if n not in ("README.md", "trainer_state.json", "notes.log")}
    assert names == weights | copied | {"config.json", "README.md", "warpmerge.json", "mergekit_config.yml"} | (
        {INDEX} if options else set()
    )
    assert all((out / n).read_text() == FILES[n] for n in copied)
    assert len(weights) == (5 if options else 1)
    seen = {}
    for name in weights:
        content = (out / name).read_bytes()
        assert (8 + int.from_bytes(content[:8], "little")) % 4096 == 0
        with safe_open(out / name, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            seen |= {key: (name, file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 - not a dict
    assert {k: (v.dtype, v.shape) for k, (_, v) in seen.items()} == {k: (v.dtype, v.shape) for k, v in llama(0).items()}
    if options:
        index = json.loads((out / INDEX).read_text())
        assert index["weight_map"] == {key: name for key, (name, _) in seen.items()}
        assert index["metadata"]["total_size"] == sum(v.nbytes for _, v in seen.values())
    assert "lm_head.weight" not in seen  # tied in the inputs, stored once in the output
    for name, found in read_model(out).items():
        assert np.array_equal(array(found), seen[name][1])


def test_the_card(models):
    assert merge(models).status == 0
    _, front, body = (models / "out" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["base_model"] == [str(models / n) for n in ("base", "a", "b")]
    assert front["library_name"] == "transformers" and "merge" in front["tags"]
    recipe = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == yaml.safe_load((models / "r.yml").read_text())
    assert "ties" in body


@pytest.mark.parametrize("name", ['a: "b" #c', "🦊 ünï", "- x", b"not-utf8-\xff", "a'b{c}"])
def test_the_card_of_models_with_odd_names(tmp_path, name):
    path = write_model(tmp_path / os.fsdecode(name), llama(0))
    recipe = {"merge_method": "linear", "models": [str(path)], "parameters": {"weight": 1}}
    wm.merge(recipe, tmp_path / "out", sync=False)
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["base_model"] == [str(path)]
    assert wm.verify(tmp_path / "out").problems == ()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, {**CONFIG, "torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"a": {"b": 1}}, {"a": {"b": 1}, "torch_dtype": "bfloat16"}),
        ({"dtype": None, "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32"}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}},
        ),
        (None, None),
    ],
)
def test_the_config_names_the_outputs_dtype(tmp_path, config, expected):
    write_model(tmp_path / "a", llama(0), config=config)
    recipe = {"merge_method": "linear", "models": [str(tmp_path / "a")], "parameters": {"weight": 1}}
    wm.merge(recipe | {"out_dtype": "bfloat16"}, tmp_path / "out", sync=False)
    path = tmp_path / "out" / "config.json"
    assert (json.loads(path.read_text()) if path.exists() else None) == expected
    assert {raw[0] for raw in read_model(tmp_path / "out").values()} == {"BF16"}


def test_the_output_can_be_merged_again(models):
    assert merge(models, *SHARDED).status == 0
    recipe = {"merge_method": "passthrough", "models": [str(models / "out")]}
    wm.merge(recipe, models / "copy", sync=False)
    assert read_model(models / "copy") == read_model(models / "out")
