"""The command line: options, exit statuses, what goes to which stream, and `verify`."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import click
import numpy as np
import pytest
import warpmerge
from helpers import (
    INDEX,
    SINGLE,
    contents,
    llama,
    read_model,
    run_cli,
    run_process,
    write_recipe,
    write_safetensors,
    write_ties,
)
from warpmerge import _core, cli
from warpmerge.methods import REGISTRY


@pytest.fixture
def models(tmp_path):
    return write_ties(tmp_path)


def ok(*arguments):
    """Standard output of a command that must succeed and say nothing on the other stream."""
    done = run_cli(*arguments)
    assert (done.status, done.stderr) == (0, "")
    return done.stdout


COMMANDS = ["demo", "diff", "info", "merge", "methods", "plan", "verify"]


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(command, flag):
    assert ok(*command, flag).startswith(f"Usage: warpmerge {''.join(command)}")


def test_commands():
    listed = re.findall(r"^  (\w+)  ", ok("--help").split("Commands:")[1], re.MULTILINE)
    assert listed == COMMANDS
    assert ok("--version").strip() == f"warpmerge, version {warpmerge.__version__}"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "Usage: warpmerge"),
        (["merg"], "No such command 'merg'"),
        (["merge"], "Missing argument 'RECIPE'"),
        (["merge", "r.yml"], "Missing argument 'OUT_DIR'"),
        (["merge", "r.yml", "out", "more"], "unexpected extra argument"),
        (["merge", "r.yml", "out", "--overwritten"], "No such option"),
        (["merge", "r.yml", "out", "--threads", "0"], "--threads"),
        (["merge", "r.yml", "out", "--threads", "two"], "--threads"),
        (["merge", "r.yml", "out", "--seed", "1.5"], "--seed"),
        (["plan"], "Missing argument 'RECIPE'"),
        (["verify"], "Missing argument 'OUT_DIR'"),
        (["diff", "a"], "Missing argument 'B'"),
        (["diff", "{}/a", "{}/b", "--top", "-1"], "--top"),
        (["verify", "{}/out", "--sample", "5"], "sample: '5' is not a share; write for example 5%"),
        (["verify", "{}/out", "--sample", "101%"], "sample: '101%' is not a share"),
        (["verify", "{}/out", "--recompute", "0"], "recompute: 0 is not a number of tensors; write for example 10"),
        (["verify", "{}/out", "--recompute", "some"], "recompute: 'some' is not a number of tensors"),
        (["verify", "{}/out", "--model", "a=b"], "models says for recompute"),
        (["verify", "{}/out", "--recompute", "1", "--model", "=b"], "--model: '=b' is not of the form OLD=NEW"),
        (["methods", "tiess"], "did you mean 'ties'"),
        (["merge", "{}/r.yml", "{}/out", "--memory", "much"], "memory: 'much' is not a size"),
        (["merge", "{}/r.yml", "{}/out", "--memory", "1kB"], "memory: 1.00 kB is too little: "),
        (["merge", "{}/r.yml", "{}/out", "--shard-size", "0"], "shard_size: '0' is not a size"),
        (["merge", "{}/r.yml", "{}/out", "--device", "gpu"], "device 'gpu'"),
        (["merge", "{}/r.yml", "{}/out", "--backend", "cppu"], "did you mean 'cpu'"),
        (["plan", "{}/r.yml", "--backend", "cppu"], "did you mean 'cpu'"),
        (["plan", "{}/r.yml", "--memory", "0"], "memory: '0' is not a size"),
        (["plan", "{}/none.yml"], "No such file"),
    ],
)
def test_wrong_usage(models, arguments, part):
    done = run_cli(*(a.format(models) for a in arguments))
    assert (done.status, done.stdout) == (2, "")
    assert part in done.stderr
    assert not (models / "out").exists()


def test_a_merge_reports_in_one_line_or_not_at_all(models):
    line = ok("merge", models / "r.yml", models / "out")
    assert line.count("\n") == 1
    assert line.startswith(f"ties: 8 tensors, 6.24 kB written to {models / 'out'} in ")
    assert ok("merge", models / "r.yml", models / "quiet", "--quiet") == ""
    assert contents(models / "out") == contents(models / "quiet")


@pytest.mark.parametrize("options", [["--json"], ["--json", "--quiet"], ["--json", "--dry-run"]])
def test_json_is_one_document(models, options):
    report = json.loads(ok("merge", models / "r.yml", models / "out", *options))
    dry = "--dry-run" in options
    assert report["method"] == "ties" and report["tensors"] == 8 and report["shards"] == 1
    assert report["out"] == str(models / "out") and report["dry_run"] is dry and report["resumed_shards"] == 0
    if not dry:
        assert report["bytes_written"] == (models / "out" / SINGLE).stat().st_size
    plan = json.loads(ok("plan", models / "r.yml", "--json"))
    assert [m["role"] for m in plan["models"]] == ["input", "input", "base"]
    for key in ("bytes_read", "bytes_written", "memory", "shards"):
        assert plan[key] == report[key]


@pytest.mark.parametrize("command", [["plan", "{}/r.yml"], ["merge", "{}/r.yml", "{}/out", "--dry-run"]])
def test_plans_and_dry_runs_write_nothing(models, command):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [models, *models.rglob("*")]}

    before = state()
    output = ok(*(a.format(models) for a in command), "--shard-size", "600")
    assert state() == before
    assert "12.9 kB" in output and "5" in output  # two passes; shards


def test_a_dry_run_refuses_what_the_merge_would(models):
    (models / "out").mkdir()
    (models / "out" / "x").touch()
    done = run_cli("merge", models / "r.yml", models / "out", "--dry-run")
    assert (done.status, "is not empty" in done.stderr) == (1, True)


def test_options_that_never_change_the_result(models):
    ok("merge", models / "r.yml", models / "out")
    for number, options in enumerate(
        [["--threads", "1"], ["--threads", "7"], ["--memory", "6MB"], ["--backend", "torch"], ["--no-sync"]]
    ):
        ok("merge", models / "r.yml", models / f"out{number}", *options)
        assert contents(models / f"out{number}") == contents(models / "out")


def test_the_seed_changes_what_is_dropped(models):
    recipe = models / "r.yml"
    recipe.write_text(recipe.read_text().replace("ties", "dare_linear"))
    for out, seed in [("a0", 0), ("b0", 0), ("a1", 1), ("negative", -1), ("huge", 2**64 - 1)]:
        ok("merge", recipe, models / out, "--seed", seed)
    assert contents(models / "a0") == contents(models / "b0")
    assert read_model(models / "a0") != read_model(models / "a1")
    assert read_model(models / "negative") == read_model(models / "huge")  # one number modulo 2^64


def test_methods_and_info():
    listed = ok("methods")
    for name, method in REGISTRY.items():
        assert re.search(rf"^{name} ", listed, re.MULTILINE)
        described = ok("methods", name)
        assert all(re.search(rf"^{p.name} ", described, re.MULTILINE) for p in method.parameters)
    info = ok("info")
    assert warpmerge.__version__ in info and re.search(r"^cpu +yes", info, re.MULTILINE)


def flip(path, tensor):
    """Flips the lowest bit of a tensor's last byte."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + json.loads(content[8:start])[tensor]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(content)


def without(out, tensor):
    tensors = read_model(out)
    del tensors[tensor]
    write_safetensors(out / SINGLE, tensors)


def manifest(out, edit):
    document = json.loads((out / "warpmerge.json").read_text())
    changed = edit(document)
    (out / "warpmerge.json").write_text(json.dumps(document) if changed is None else changed)


NORM, FIRST = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda out: flip(out / SINGLE, NORM), [f"'{NORM}' does not have the digest", "in 1 tensor."]),
        (lambda out: (flip(out / SINGLE, NORM), flip(out / SINGLE, FIRST)), [NORM, FIRST, "in 2 tensors."]),
        (lambda out: without(out, NORM), [f"'{NORM}' is missing", "in 1 tensor."]),
        (
            lambda out: write_safetensors(out / SINGLE, read_model(out) | {"x": np.ones(1)}),
            ["'x' is not in the manifest"],
        ),
        (lambda out: write_safetensors(out / SINGLE, llama(0, width=4)), [f"'{NORM}' is float32 [4]", "in 8 tensors."]),
        (lambda out: os.truncate(out / SINGLE, 5000), [SINGLE, "truncated"]),
        (lambda out: (out / SINGLE).unlink(), ["neither"]),
        (lambda out: (out / "warpmerge.json").unlink(), ["has no warpmerge.json", "not a finished merge"]),
        (lambda out: manifest(out, lambda m: "{"), ["warpmerge.json", "damaged"]),
        (lambda out: manifest(out, lambda m: "[" * 100_000), ["warpmerge.json", "damaged"]),
        (lambda out: manifest(out, lambda m: "[]"), ["damaged"]),
        (lambda out: manifest(out, lambda m: m.pop("tensors") and None), ["damaged"]),
        (lambda out: manifest(out, lambda m: m.update(tensors=[1])), ["damaged"]),
        (lambda out: manifest(out, lambda m: m["tensors"].update({NORM: 1})), ["damaged"]),
        (lambda out: manifest(out, lambda m: m["tensors"][NORM].pop("digest") and None), ["damaged"]),
        (
            lambda out: manifest(out, lambda m: m["tensors"][NORM].update(dtype=[])),
            [f"'{NORM}' is float32 [8], but"],
        ),
        (lambda out: manifest(out, lambda m: m["tensors"][NORM].update(digest=0)), [f"'{NORM}' does not have"]),
    ],
)
def test_verify_finds(models, damage, parts):
    ok("merge", models / "r.yml", models / "out")
    assert ok("verify", models / "out") == f"{models / 'out'}: 8 tensors, 2.14 kB, all as in the manifest\n"
    damage(models / "out")
    done = run_cli("verify", models / "out")
    assert (done.status, done.stdout) == (1, "")
    assert "error: " in done.stderr
    for part in parts:
        assert part in done.stderr


def test_verify_of_shards(models):
    ok("merge", models / "r.yml", models / "out", "--shard-size", "600")
    ok("verify", models / "out", "--threads", "1")
    shard = json.loads((models / "out" / INDEX).read_text())["weight_map"][NORM]
    flip(models / "out" / shard, NORM)
    done = run_cli("verify", models / "out")
    assert (done.status, f"'{NORM}' does not have the digest" in done.stderr) == (1, True)
    (models / "out" / shard).unlink()
    done = run_cli("verify", models / "out")
    assert (done.status, f"the file {shard} is missing" in done.stderr) == (1, True)


@pytest.mark.parametrize("out", ["nowhere", "r.yml", "base", ""])
def test_verify_of_what_is_no_merge(models, out):
    done = run_cli("verify", models / out)
    assert (done.status, done.stdout) == (1, "")
    assert "has no warpmerge.json" in done.stderr


def test_an_interrupted_verify_waits_for_its_workers(models, monkeypatch):
    """The workers have ended when the command does."""
    ok("merge", models / "r.yml", models / "out")
    calls = []

    class Launch:
        def wait(self, milliseconds):
            calls.append("wait")
            raise KeyboardInterrupt

    class Pool:
        def __init__(self, threads, isa):
            self.copy = _core.Pool(threads, isa).copy

        def submit(self, items):
            return Launch()

        def settle(self):
            calls.append("settle")

    names = {name: getattr(_core, name) for name in dir(_core)}
    monkeypatch.setattr("warpmerge.verification.outputs._core", SimpleNamespace(**{**names, "Pool": Pool}))
    done = run_cli("verify", models / "out")
    assert (done.status, done.stdout, done.stderr.strip()) == (130, "", "interrupted.")
    assert calls == ["wait", "settle"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted."),
        (KeyboardInterrupt("interrupted; nothing was published."), 130, "interrupted; nothing was published."),
        (click.exceptions.Abort(), 130, "interrupted."),
        (MemoryError(), 1, "error: out of memory; pass --memory or fewer --threads."),
        (OSError(5, "I/O error", "/x"), 1, "error: I/O error: /x."),
        (OSError("odd"), 1, "error: odd."),
    ],
)
def test_what_is_not_ours_is_reported_shortly_as_well(monkeypatch, error, status, message):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("warpmerge.api.load", broken)
    done = run_cli("merge", "r.yml", "out")
    assert (done.status, done.stdout, done.stderr.strip()) == (status, "", message)


def test_a_closed_pipe_is_not_a_traceback():
    command = f"{sys.executable} -m warpmerge methods | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_streams_that_cannot_show_a_name(models, encoding):
    out = models / os.fsdecode(b"\xff-\xc3\xbc")
    done = run_process("merge", models / "r.yml", out, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.status, done.stderr) == (0, "")
    assert "ties: 8 tensors" in done.stdout
    assert run_cli("verify", out).status == 0


def test_the_cpu_path_imports_no_torch(models):
    setup = "import sys\nsys.modules['torch'] = sys.modules['triton'] = sys.modules['transformers'] = None"
    assert run_process("merge", models / "r.yml", models / "out", setup=setup).status == 0
    assert run_process("info", setup=setup).status == 0
    recipe = {"merge_method": "widen", "base_model": str(models / "base"), "models": [str(models / "a")]}
    write_recipe(models / "columns.yml", recipe)
    done = run_process("merge", models / "columns.yml", models / "widened", setup=setup)
    assert (done.status, done.stderr) == (0, "")


def test_tables_are_padded():
    assert cli.table(["a", "n"], [["long", "1"], ["x", "22"]], right={1}) == "a      n\n----  --\nlong   1\nx     22"


def test_each_fault_of_a_recipe_is_a_line(tmp_path):
    recipe = tmp_path / "two\nlines.yml"
    recipe.write_text("merge_method: ties\nbase_modle: x\ndtype: bfloat61\nmodels: [a]\n")
    done = run_cli("plan", recipe)
    assert done.status == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ")
    assert all("two\\nlines.yml: " in line for line in lines)
    assert "did you mean 'base_model'" in lines[0] and "bfloat61" in lines[1]
