"""Names that hold commands to a terminal, line breaks or markup: nothing printed and no card has them raw."""

import dataclasses
import json
import os
import re

import pytest
import warpmerge as wm
import yaml
from helpers import INDEX, contents, llama, run_cli, write_model, write_recipe
from warpmerge import cli, errors
from warpmerge.errors import CheckpointError, DeviceError, MergeError, OutputError, UsageError, printable, shown
from warpmerge.methods import REGISTRY

pytestmark = pytest.mark.timeout(60)
NAMES = {
    "escape": "a\x1b]0;title\x07\x1b[2J",
    "C1": "a\x9b2J",
    "right to left": "a\u202egnp.exe",
    "isolate": "\u2066a\u2069",
    "zero width": "a\u200bb\ufeff",
    "line break": "a\nerror: all is lost",
    "carriage return": "a\rerror: all is lost",
    "line separator": "a\u2028b\x85c",
    "not UTF-8": os.fsdecode(b"a\xff"),
    "front matter": "a\n---\n# b",
    "fence": "a\n```\n# b",
    "backticks": "```a` ``b",
    "markup": "![a](http:x) <script> [b](javascript:c)",
    "yaml": "'a\": {b} # c",
}


def is_clean(text):
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture(params=NAMES)
def odd(request, tmp_path):
    """Models and output in directories whose names have the text, and a recipe that names them."""
    folder = tmp_path / NAMES[request.param].replace("/", "")
    for seed, name in enumerate("ab"):
        write_model(folder / name, llama(seed))
    document = {"merge_method": "ties", "base_model": str(folder / "a"), "models": [str(folder / "b")]}
    text = NAMES[request.param]
    document["parameters"] = {"weight": [{"filter": text, "value": 1.0}, {"value": 0.5}]}
    recipe = tmp_path / "r.yml"
    recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder, recipe, document


def lines(text):
    return text.count("\n")


def test_what_the_command_line_prints(odd, tmp_path):
    folder, recipe, _ = odd
    for arguments, count in [
        (("plan", recipe), 14),
        (("merge", recipe, folder / "out", "--dry-run"), 1),
        (("merge", recipe, folder / "out", "--no-sync"), 1),
        (("verify", folder / "out"), 1),
        (("merge", recipe, folder / "json", "--no-sync", "--json"), 1),
    ]:
        done = run_cli(*arguments)
        assert (done.status, done.stderr) == (0, "")
        assert is_clean(done.stdout) and lines(done.stdout) == count
    (folder / "b" / "model.safetensors").unlink()
    for arguments in [
        ("plan", recipe),
        ("merge", recipe, folder / "other"),
        ("merge", folder / "nothing.yml", folder / "other"),
        ("verify", folder / "nothing"),
        ("merge", recipe, folder / "a"),
        ("plan", recipe, "--device", folder.name),
        ("plan", recipe, "--memory", folder.name),
    ]:
        done = run_cli(*arguments)
        assert done.status in (1, 2) and done.stdout == ""
        assert is_clean(done.stderr) and done.stderr.startswith("error: ") and lines(done.stderr) == 1


def test_the_card_says_what_the_recipe_says(odd):
    folder, recipe, document = odd
    assert run_cli("merge", recipe, folder / "out", "--no-sync").status == 0
    text = (folder / "out" / "README.md").read_text(encoding="utf-8")
    assert is_clean(text)
    # As Hugging Face finds the front matter, and as CommonMark finds the end of a fenced block.
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert yaml.safe_load(front[1])["base_model"] == [str(folder / "a"), str(folder / "b")]
    fence = re.search(r"^(`{3,})yaml\n", text, re.MULTILINE)
    block, rest = re.split(rf"^`{{{len(fence[1])},}}\n", text[fence.end() :], maxsplit=1, flags=re.MULTILINE)
    assert yaml.safe_load(block) == document
    assert rest.startswith("\nSeed 0.")
    listed = text[: fence.start()].split("Models:\n\n")[1].split("\n\n")[0].split("\n")
    assert len(listed) == 2
    for line, path in zip(listed, (folder / "a", folder / "b"), strict=True):
        ticks, shown_path = re.fullmatch(r"- (`+) ?(.*?) ?\1(?: \(base\))?", line).groups()
        assert shown_path == printable(str(path))
        assert ticks not in re.findall("`+", shown_path)


def test_names_of_tensors_in_errors(tmp_path):
    name = "x\x1b[2J\u202e\n" + "y" * 100_000
    write_model(tmp_path / "a", {name: llama(0)["model.norm.weight"]})
    write_model(tmp_path / "b", llama(0))
    path = write_recipe(
        tmp_path / "r.yml",
        {"merge_method": "linear", "models": [str(tmp_path / m) for m in "ab"], "parameters": {"weight": 1}},
    )
    done = run_cli("plan", path)
    assert done.status == 1 and is_clean(done.stderr) and lines(done.stderr) == 1
    assert len(done.stderr) < errors.LONGEST + 100
    write_model(tmp_path / "c", llama(0), shards=2)
    (tmp_path / "c" / INDEX).write_text('{"weight_map": {"a": "\\u001b[2J.safetensors"}}')
    done = run_cli("verify", tmp_path / "c")
    assert done.status == 1 and is_clean(done.stderr)


def test_what_verify_finds_in_a_manifest_of_others(tmp_path):
    name = "x\x1b[2J\u202e\nerror: y"
    write_model(tmp_path / "a", {name: llama(0)["model.norm.weight"]})
    recipe = {"merge_method": "linear", "models": [str(tmp_path / "a")], "parameters": {"weight": 1}}
    wm.merge(recipe, tmp_path / "out", sync=False)
    assert run_cli("verify", tmp_path / "out").status == 0
    write_model(tmp_path / "out", {"z\x9b\n": llama(0)["model.norm.weight"]})
    done = run_cli("verify", tmp_path / "out")
    assert (done.status, lines(done.stderr), is_clean(done.stderr)) == (1, 3, True)


def test_plug_ins_and_devices(registry, monkeypatch):
    """Plug-ins are programs and may print what they like; by mistake they do not."""
    ties = REGISTRY["ties"]
    odd = "\x1b[2J\u202e"
    REGISTRY["odd"] = dataclasses.replace(ties, name="odd", summary=odd, formula=f"a\n{odd}", differences={odd: [odd]})
    for arguments in [("methods",), ("methods", "odd"), ("methods", odd)]:
        done = run_cli(*arguments)
        assert is_clean(done.stdout) and is_clean(done.stderr) and "\\x1b" in done.stdout + done.stderr
    monkeypatch.setattr("warpmerge.backends.gpus", lambda: [odd])
    assert "\\x1b[2J\\u202e" in run_cli("info").stdout
    monkeypatch.setattr("warpmerge.demo.run", lambda directory, echo: echo(odd) or pytest.fail("no result"))
    with pytest.raises(pytest.fail.Exception):
        run_cli("demo")


@pytest.mark.parametrize(
    "arguments", [("\x1b[2J",), ("plan", "--\x1b[2J"), ("plan", "r", "--threads", "\x1b[2J"), ("methods", "a", "\x1b")]
)
def test_wrong_command_lines(arguments):
    done = run_cli(*arguments)
    assert done.status == 2 and is_clean(done.stderr) and "\\x1b" in done.stderr


@pytest.mark.parametrize("kind", [MergeError, UsageError, CheckpointError, OutputError, DeviceError])
def test_messages_of_errors_are_printable_wherever_they_are_shown(kind):
    """In notebooks and logs too, so the class does it."""
    assert str(kind("tensor '\x1b\n\u202e\ud800é🦊'")) == r"tensor '\x1b\n\u202e\ud800é🦊'"
    assert len(str(kind("x" * 10**6))) < errors.LONGEST + 10
    assert str(kind()) == "" and f"{kind('a')}" == "a"


def test_values_in_messages():
    assert shown(10**5000) == "an integer of 16610 bits"
    assert shown("\x1b\n") == r"'\x1b\n'"
    assert printable("a b é") == "a b é" and printable("\0\t\x7f") == r"\x00\t\x7f"


def test_cells_of_tables_are_one_line():
    text = cli.table(["\x1b", "n"], [["a\nb", "\u202e"], ["x", "22"]])
    assert is_clean(text) and lines(text) == 3


def test_nothing_of_a_name_is_lost_in_the_manifest(odd):
    folder, recipe, _ = odd
    assert run_cli("merge", recipe, folder / "out", "--no-sync").status == 0
    manifest = json.loads(contents(folder / "out")["warpmerge.json"])
    assert {i["path"] for i in manifest["inputs"]} == {os.path.realpath(folder / "a"), os.path.realpath(folder / "b")}
