"""What goes wrong in a merge, as users of the command line see it: one short message, the right status, no output."""

import json
import os

import numpy as np
import pytest
import warpmerge as wm
from helpers import (
    INDEX,
    SINGLE,
    array,
    bf16,
    contents,
    llama,
    looks_complete,
    read_model,
    run_cli,
    run_process,
    write_model,
    write_recipe,
)
from warpmerge.errors import CheckpointError, MergeError, OutputError, UsageError, close_matches, shown
from warpmerge.plan.file_plan import make_plan
from warpmerge.recipe import Recipe
from warpmerge.units import parse_size, show_size

NORM = "model.norm.weight"


def spoil(**changes):
    """The tensors of model b with some replaced; None: removed."""
    tensors = {**llama(2), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in tensors.items() if value is not None}


def with_value(value, dtype="float32"):
    """Model b with a single bad element in its last layer."""
    norm = np.array(llama(2)[NORM], dtype)
    norm[5] = value
    return {**llama(2, dtype=dtype), NORM: norm}


def weights(path, edit):
    content = bytearray((path / "b" / SINGLE).read_bytes())
    (path / "b" / SINGLE).write_bytes(edit(content))


def header(path, edit):
    """Edits the header of model b as a document, its length kept by padding or cutting the data."""

    def rewrite(content):
        end = 8 + int.from_bytes(content[:8], "little")
        document = json.loads(content[8:end])
        edit(document)
        text = json.dumps(document).encode()
        return len(text).to_bytes(8, "little") + text + content[end:]

    weights(path, rewrite)


def set_recipe(path, **changes):
    recipe = json.loads((path / "r.yml").read_text())
    (path / "r.yml").write_text(json.dumps({k: v for k, v in (recipe | changes).items() if v is not None}))


def parameters(**changes):
    return lambda path: set_recipe(path, parameters={"weight": 0.5, "density": 0.5, **changes})


def swap(path):
    (path / "b").rename(path / "c")
    (path / "b").write_text("a file")


def offsets(path, place):
    header(path, lambda document: document[NORM].update(data_offsets=place))


# Each: what is done to a good TIES merge of base, a and b in {}, the status, and what the message must name.
CASES = {
    "misspelt model": (lambda p: (p / "b").rename(p / "bb"), 2, ["'{}/b'", "did you mean 'bb'"]),
    "misspelt method": (lambda p: set_recipe(p, merge_method="tise"), 2, ["'tise'", "did you mean 'ties'"]),
    "misspelt parameter": (parameters(densty=1), 2, ["'densty'", "did you mean 'density'"]),
    "missing parameter": (lambda p: set_recipe(p, parameters={}), 2, ["'ties'", "'weight'", "'{}/a'"]),
    "density": (parameters(density=1.2), 2, ["'density'", "[0, 1]", "1.2"]),
    "negative weight": (parameters(weight=-1), 2, ["negative weight", "normalize: false"]),
    "no base": (lambda p: set_recipe(p, base_model=None), 2, ["'ties'", "base_model"]),
    "slerp of three": (lambda p: set_recipe(p, merge_method="slerp", parameters={"t": 0.5}), 2, ["exactly 2", "got 3"]),
    "slices": (lambda p: set_recipe(p, slices=[{"sources": []}]), 2, ["'models' and 'slices'", "not both"]),
    "lora": (lambda p: set_recipe(p, models=[f"{p}/a+lora", f"{p}/b"]), 2, ["adapter 'lora' is not a directory"]),
    "linear, weights cancel": (
        lambda p: set_recipe(
            p,
            merge_method="linear",
            models=[{"model": f"{p}/{m}", "parameters": {"weight": w}} for m, w in [("a", 1), ("b", -1)]],
            parameters={},
        ),
        2,
        ["sum to zero", "normalize: false"],
    ),
    "broken YAML": (lambda p: (p / "r.yml").write_text("models: [a\nb: c"), 2, ["r.yml", "line 2"]),
    "duplicate key": (lambda p: (p / "r.yml").write_text("models: []\nmodels: []"), 2, ["line 2", "'models'", "twice"]),
    "no recipe": (lambda p: (p / "r.yml").unlink(), 2, ["{}/r.yml", "No such file"]),
    "recipe is a directory": (lambda p: ((p / "r.yml").unlink(), (p / "r.yml").mkdir()), 2, ["not a regular file"]),
    "model is a file": (swap, 2, ["'{}/b'", "is a file", "directory"]),
    "pickle": (lambda p: (p / "b" / SINGLE).rename(p / "b" / "pytorch_model.bin"), 1, ["{}/b", "convert it"]),
    "no weights": (lambda p: (p / "b" / SINGLE).unlink(), 1, ["{}/b", "neither"]),
    "no tensors": (lambda p: write_model(p / "b", {}), 1, ["{}/b", "no tensors"]),
    "empty file": (lambda p: weights(p, lambda c: b""), 1, ["{}/b/model.safetensors", "truncated or empty"]),
    "truncated": (lambda p: weights(p, lambda c: c[:-1]), 1, ["{}/b/model.safetensors", "truncated"]),
    "appended": (lambda p: weights(p, lambda c: c + b"x"), 1, ["{}/b/model.safetensors", "no tensor owns"]),
    "header length": (lambda p: weights(p, lambda c: b"\xff" * 8 + c[8:]), 1, ["header claims"]),
    "header text": (lambda p: weights(p, lambda c: c[:8] + b"x" + c[9:]), 1, ["not valid JSON"]),
    "wrong size": (
        lambda p: header(p, lambda h: h[NORM].update(shape=[9])),
        1,
        [f"'{NORM}'", "36 bytes", "gives it 32"],
    ),
    "negative offset": (lambda p: offsets(p, [-32, 0]), 1, [f"'{NORM}'", "data_offsets [-32, 0]"]),
    "overlap": (lambda p: offsets(p, [0, 32]), 1, ["overlaps", "header is wrong"]),
    "index names no file": (
        lambda p: (
            (p / "b" / SINGLE).unlink(),
            (p / "b" / INDEX).write_text(json.dumps({"weight_map": {NORM: "model-00001-of-00001.safetensors"}})),
        ),
        1,
        ["{}/b", "model-00001-of-00001.safetensors", "missing"],
    ),
    "index leads outside": (
        lambda p: (
            (p / "b" / SINGLE).unlink(),
            (p / "b" / INDEX).write_text(json.dumps({"weight_map": {NORM: "../a/model.safetensors"}})),
        ),
        1,
        ["{}/b", "../a/model.safetensors", "in this directory"],
    ),
    "a tensor is lacking": (lambda p: write_model(p / "b", spoil(model__norm__weight=None)), 1, ["'{}/b' lacks", NORM]),
    "a tensor too many": (lambda p: write_model(p / "b", spoil(extra=bf16([1]))), 1, ["'{}/b' has", "'extra'"]),
    "shapes": (
        lambda p: write_model(p / "b", spoil(model__norm__weight=np.zeros(9, np.float32))),
        1,
        [f"'{NORM}' is [8] in model '{{}}/base' but [9] in model '{{}}/b'"],
    ),
    "quantized": (
        lambda p: [write_model(p / m, spoil(q=("F8_E4M3", (1,), b"0"))) for m in ("base", "a", "b")],
        1,
        ["'q'", "quantized", "dequantize"],
    ),
    "bad config": (lambda p: (p / "base" / "config.json").write_text("{"), 1, ["base/config.json", "not valid JSON"]),
    "nan": (
        lambda p: write_model(p / "b", with_value(np.nan)),
        1,
        [f"'{NORM}'", "NaN", "1 of 8 in '{}/b'", "nonfinite"],
    ),
    "infinity": (lambda p: write_model(p / "b", with_value(-np.inf)), 1, [f"'{NORM}'", "infinite", "1 of 8 in '{}/b'"]),
    "half infinity": (lambda p: write_model(p / "b", with_value(np.inf, "float16")), 1, [f"'{NORM}'", "1 of 8"]),
    "nan in the base": (lambda p: write_model(p / "base", with_value(np.nan)), 1, ["1 of 8 in '{}/base'"]),
}
LATE = {"nan", "infinity", "half infinity", "nan in the base"}  # seen only when the weights are read


@pytest.fixture
def merge(tmp_path):
    for seed, name in enumerate(["base", "a", "b"]):
        write_model(tmp_path / name, llama(seed))
    models = [str(tmp_path / "a"), str(tmp_path / "b")]
    recipe = {"merge_method": "ties", "base_model": str(tmp_path / "base"), "models": models}
    write_recipe(tmp_path / "r.yml", json.dumps(recipe))
    parameters()(tmp_path)
    return tmp_path


def check(finished, status, parts, folder):
    assert (finished.status, finished.stdout) == (status, "")
    assert finished.stderr.startswith("error: ") and finished.stderr.endswith((".\n", "?\n"))
    assert finished.stderr.count("\n") == 1
    assert len(finished.stderr) < 420 + 2 * len(str(folder))
    for part in parts:
        assert part.replace("{}", str(folder)) in finished.stderr


@pytest.mark.parametrize("name", CASES)
def test_bad_merges(merge, name):
    spoiled, status, parts = CASES[name]
    spoiled(merge)
    before = contents(merge)
    for option in ["--no-sync", "--overwrite", "--resume", "--json", "--quiet"]:
        check(run_cli("merge", merge / "r.yml", merge / "out", option), status, parts, merge)
        assert not (merge / "out").exists()
    if name not in LATE:
        check(run_cli("plan", merge / "r.yml"), status, parts, merge)
        check(run_cli("merge", merge / "r.yml", merge / "out", "--dry-run"), status, parts, merge)
    assert contents(merge) == before


def test_the_good_merge_behind_the_cases(merge):
    assert run_cli("merge", merge / "r.yml", merge / "out").status == 0


@pytest.mark.parametrize(("policy", "value"), [("propagate", np.nan), ("base", None)])
def test_what_the_message_about_nan_advises_works(merge, policy, value):
    write_model(merge / "b", with_value(np.nan))
    write_model(merge / "a", llama(0))  # the same as the base: what remains of b's bad element is a's
    parameters(nonfinite=policy)(merge)
    assert run_cli("merge", merge / "r.yml", merge / "out").status == 0
    found = array(read_model(merge / "out")[NORM])[5]
    assert np.isnan(found) if value is np.nan else found == llama(0)[NORM][5]


def test_integers_that_differ_need_a_base(tmp_path):
    for i, name in enumerate(["a", "b", "c"]):
        write_model(tmp_path / name, {"w": np.ones(2, np.float32), "ids": np.array([1, i // 2])})
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}, "models": [str(tmp_path / n) for n in "ab"]}
    wm.merge(recipe, tmp_path / "agreed", sync=False)
    recipe["models"].append(str(tmp_path / "c"))
    with pytest.raises(
        CheckpointError, match=r"'ids' \(int64\) differs between '.*a' and '.*c'.* base_model"
    ) as caught:
        wm.merge(recipe, tmp_path / "out", sync=False)
    assert not looks_complete(tmp_path / "out")
    check(
        run_cli("merge", write_recipe(tmp_path / "r.yml", recipe), tmp_path / "out"), 1, [str(caught.value)], tmp_path
    )
    for base, ids in [("a", [1, 0]), ("c", [1, 1])]:
        wm.merge(recipe | {"base_model": str(tmp_path / base)}, tmp_path / f"from-{base}", sync=False)
        assert array(read_model(tmp_path / f"from-{base}")["ids"]).tolist() == ids


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_an_input_that_is_cut_short_during_the_merge(merge, method):
    """What a file no longer has is an error, not a crash of the process (so in one of its own)."""
    for name in ["base", "a", "b"]:
        write_model(merge / name, {"w": np.ones(1 << 20, np.float32)})
    set_recipe(merge, merge_method=method, parameters={"weight": 1} | ({"density": 0.5} if method == "ties" else {}))
    setup = """
import os
from pathlib import Path
from warpmerge import _core
def cut(call, fd, offset, nbytes, data):
    if call == "pread" and Path(os.readlink(f"/proc/self/fd/{fd}")).parent.name == "b":
        os.truncate(f"/proc/self/fd/{fd}", 8192)
    return 0
_core.watch(cut)
"""
    failed = run_process("merge", merge / "r.yml", merge / "out", setup=setup)
    check(failed, 1, ["changed while it was being read"], merge)
    assert not (merge / "out").exists()


def test_odd_tensors_are_merged(tmp_path):
    """Empty ones, scalars, odd names; in a model of one shard and in one of many."""
    names = ["", " ", "a/../../b", "a\nb", 'q"\\', "é🦊", "\x7f\x00", "n" * 5000]
    tensors = {n: np.array([i, 2], np.float32) for i, n in enumerate(names)}
    tensors |= {
        "empty": np.zeros((0, 3), np.float16),
        "scalar": np.array(2.5),
        "flag": np.array(True),
        "last": bf16([[]]),
    }
    for shards in (1, 12):
        write_model(tmp_path / f"a{shards}", tensors, shards=shards)
    recipe = {
        "merge_method": "linear",
        "models": [str(tmp_path / "a1"), str(tmp_path / "a12")],
        "parameters": {"weight": 1},
    }
    for size in ("5GB", 1):
        out = tmp_path / f"out-{size}"
        wm.merge(recipe, out, shard_size=size, sync=False)
        assert read_model(out) == read_model(tmp_path / "a1")
        assert wm.verify(out).problems == ()


def test_names_cannot_command_the_terminal(tmp_path):
    """Escape sequences in a tensor's name are spelt out."""
    write_model(tmp_path / "a", {"\x1b[31mred\r": np.zeros(1, np.float32)})
    write_model(tmp_path / "b", {"other": np.zeros(1, np.float32)})
    models = [str(tmp_path / "a"), str(tmp_path / "b")]
    recipe = write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models})
    failed = run_cli("merge", recipe, tmp_path / "out")
    assert failed.status == 1
    assert r"'\x1b[31mred\r'" in failed.stderr
    assert "\x1b" not in failed.stderr and "\r" not in failed.stderr


def test_a_failed_plan_leaves_no_file_open(merge):
    write_model(merge / "b", spoil(model__norm__weight=None))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CheckpointError):
        make_plan(Recipe.load(merge / "r.yml"))
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("text", "size"),
    [(7, 7), ("1", 1), ("5GB", 5 * 10**9), ("4GiB", 4 << 30), (" 1.5 kb ", 1500), ("5B", 5 * 10**9), ("2Mi", 2 << 20)],
)
def test_sizes(text, size):
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize(
    "text", [0, -1, True, None, "", "0", "-5GB", "GB", "5 GB 1", "1e9", "9" * 400, "0.1", "5XB", "nan"]
)
def test_bad_sizes(text):
    with pytest.raises(UsageError, match=r"memory: .* is not a size; write for example 5GB"):
        parse_size(text, "memory")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (10**6 - 1, "1.00 MB"),
        (1234567, "1.23 MB"),
        (5e17, "5.00e+05 TB"),
    ],
)
def test_shown_sizes(count, text):
    assert show_size(count) == text


def test_messages_stay_short():
    assert close_matches("lienar", ["linear", "slerp"]) == "; did you mean 'linear'?"
    assert close_matches("xyz", ["linear"]) == close_matches(None, []) == ""
    assert len(shown("x" * 10**6)) <= 110 and len(shown([[["x"] * 99] * 99] * 99)) < 200 and shown("a") == "'a'"
    assert [e.exit_status for e in (MergeError, UsageError, CheckpointError, OutputError)] == [1, 2, 1, 1]
