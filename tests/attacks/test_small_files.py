"""Configs and manifests that strangers wrote: what they hold is refused while the merge is planned, or harmless."""

import json
import os
import time

import pytest
import yaml
from helpers import INDEX, SINGLE, contents, file_bytes, llama, run_cli, run_process, write_model, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from warpmerge import system
from warpmerge.errors import CheckpointError
from warpmerge.models import Shard
from warpmerge.models.documents import CONFIG_LIMIT, DEPTH, DIGITS, parse_json, yaml_text

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, llama(seed), files={"vocab.txt": "a b c"})
    models = [str(tmp_path / name) for name in "ab"]
    write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    return tmp_path


def nested(levels):
    return '{"a":' * levels + "1" + "}" * levels


CONFIGS = {
    "objects": (nested(DEPTH + 1), "nested too deeply"),
    "lists": ('{"a":' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
    "lists without end": ('{"a":' + "[" * 1_000_000, "nested too deeply"),
    "brackets after escaped quotes": (r'{"a\\":"\\\"",' + f'"b":{nested(300)}}}', "nested too deeply"),
    "key twice": ('{"a": 1, "a": 2}', "'a' twice"),
    "inner key twice": ('{"b": [{"a": 1, "\\u0061": 2}]}', "'a' twice"),
    "integer": ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
    "negative integer": ('{"a": -' + "9" * DIGITS + "}", "digits"),
    "huge number": ('{"a": 1e999}', "too large"),
    "NUL": ('{"a": "\0"}', "not valid JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "not valid JSON"),
    "UTF-16": ("{}".encode("utf-16"), "not valid JSON"),
    "a list": ("[1]", "not a JSON object"),
    "empty": ("", "not valid JSON"),
    "unclosed string": ('{"a": "' + "[" * 200, "not valid JSON"),
    "unbalanced": ("}" * 200 + "{" * 200, "not valid JSON"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_configs_are_found_while_the_merge_is_planned(models, name):
    text, reason = CONFIGS[name]
    (models / "a" / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for done in (run_cli("plan", models / "r.yml"), run_cli("merge", models / "r.yml", models / "out")):
        assert (done.status, done.stdout) == (1, "")
        assert f"{models / 'a' / 'config.json'}: " in done.stderr and reason in done.stderr
        assert len(done.stderr) < 400 + len(str(models))
    assert not (models / "out").exists()


def test_configs_that_are_odd_and_harmless_are_taken_over(models):
    """As Python writes them: infinities, halves of surrogate pairs, brackets in texts, the deepest allowed."""
    text = r'{"time_step_limit": [0.0, Infinity, NaN], "\ud800": "\u0000\u202e", "b": "' + "[{" * 200 + '",'
    text += f'"n": {"9" * (DIGITS - 1)}, "deep": {nested(DEPTH - 1)}}}'
    (models / "a" / "config.json").write_text(text)
    assert run_cli("merge", models / "r.yml", models / "out").status == 0
    written = json.loads((models / "out" / "config.json").read_text())
    assert written.pop("torch_dtype") == "float32"
    assert repr(written) == repr(json.loads(text))


def sparse(path, nbytes):
    path.touch()
    os.truncate(path, nbytes)


@pytest.mark.parametrize(
    ("name", "nbytes"), [("a/config.json", CONFIG_LIMIT + 1), ("r.yml", 1 << 30), (f"a/{INDEX}", 1 << 40)]
)
def test_small_files_that_are_large_are_not_read(models, name, nbytes):
    if name.endswith(INDEX):
        (models / "a" / SINGLE).unlink()
    sparse(models / name, nbytes)
    started = time.perf_counter()
    done = run_cli("merge", models / "r.yml", models / "out")
    assert time.perf_counter() - started < 5
    assert done.status in (1, 2) and "it has more than" in done.stderr and name in done.stderr


def test_no_nesting_ends_the_process_however_high_python_is_told_to_climb(models):
    (models / "a" / "config.json").write_text('{"a":' * 1_000_000)
    (models / "deep.yml").write_text("[" * 1_000_000)
    (models / "aliases.yml").write_text("- &a0 x\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 5000)))
    setup = "import sys\nsys.setrecursionlimit(10**7)"
    for recipe in ("r.yml", "deep.yml", "aliases.yml"):
        done = run_process("plan", models / recipe, setup=setup)
        assert done.status in (1, 2) and "nested too deeply" in done.stderr


def test_a_header_is_read_as_strictly(tmp_path):
    """Header and metadata: the fallback reader of odd headers must not take long, or end the process."""
    path = tmp_path / SINGLE
    for header, reason in [
        (nested(200), "nested too deeply"),
        ("{" + "".join(f'"{i}":0,' for i in range(200_000)) + '"199999":0}', "'199999' twice"),
    ]:
        path.write_bytes(file_bytes(header))
        with pytest.raises(CheckpointError, match=reason):
            Shard(path)


def test_a_file_that_shrinks_while_its_header_is_read(models):
    """Fewer bytes come than the file has by its size."""

    class Shrinks(system.System):
        def pread(self, fd, nbytes, offset):
            return super().pread(fd, nbytes, offset)[: None if nbytes <= 8 else 10] if offset < 18 else b""

    with system.using(Shrinks()), pytest.raises(CheckpointError, match="changed while it was being read"):
        Shard(models / "a" / SINGLE)


MANIFESTS = {
    "deep": '{"tensors":' * 300 + "1" + "}" * 300,
    "key twice": '{"tensors": {"x": 1, "x": 1}}',
    "integer": '{"tensors": ' + "9" * 5000 + "}",
    "no object": "[]",
    "tensors are a list": '{"tensors": [[]]}',
    "tensors are text": '{"tensors": "x"}',
    "record is a list": '{"tensors": {"x": []}}',
    "NaN": '{"tensors": {}, "a": NaN}',
    "not UTF-8": b"\xff",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_bad_manifests(models, name):
    """`verify` calls them damaged. `--overwrite` believes nothing that they say."""
    assert run_cli("merge", models / "r.yml", models / "out", "--no-sync").status == 0
    text = MANIFESTS[name]
    (models / "out" / "warpmerge.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = run_cli("verify", models / "out")
    assert (done.status, "warpmerge.json is damaged" in done.stderr) == (1, True)
    (models / "a" / "vocab.txt").unlink()
    assert run_cli("merge", models / "r.yml", models / "out", "--overwrite", "--no-sync").status == 0
    assert (models / "out" / "vocab.txt").exists()


def test_what_a_manifest_says_of_a_tensor_is_shown_shortly(models):
    assert run_cli("merge", models / "r.yml", models / "out", "--no-sync").status == 0
    path = models / "out" / "warpmerge.json"
    manifest = json.loads(path.read_text())
    manifest["tensors"]["model.norm.weight"] |= {"dtype": "\x1b[2J" * 1000, "shape": [1] * 100_000}
    manifest["tensors"]["\x1b[2J" * 1000] = manifest["tensors"]["model.norm.weight"]
    path.write_text(json.dumps(manifest))
    done = run_cli("verify", models / "out")
    assert done.status == 1 and "'model.norm.weight' is float32 [8], but" in done.stderr
    assert "\x1b" not in done.stderr and all(len(line) < 10_000 for line in done.stderr.splitlines())


# Names in a manifest's `files`, of files that the test makes. A merge can have written the first row only.
OURS = ["vocab.txt", "extra.json", "README.md", "config.json", "model-00001-of-00002.safetensors"]
OTHERS = ["notes.md", "data.csv", ".bashrc", ".hidden.json", "model-of-mine.safetensors", "x.index.json", "a\nb.txt"]
FOREIGN = ["../keep.txt", "sub/inner.txt", "/etc/hostname", ".", "..", "", "a\0b", "\ud800", "x" * 5000, 7, None, ["a"]]


def test_overwriting_removes_what_a_merge_can_have_written_and_nothing_else(models):
    out = models / "out"
    assert run_cli("merge", models / "r.yml", out, "--no-sync").status == 0
    (models / "keep.txt").write_text("kept")
    (out / "sub").mkdir()
    (out / "sub" / "inner.txt").write_text("kept")
    for name in [*OURS, *OTHERS]:
        (out / name).write_text("old")
    (out / "link.txt").symlink_to(models / "keep.txt")
    (out / "folder.txt").mkdir()
    (out / "unsaid.txt").write_text("kept")
    manifest = json.loads((out / "warpmerge.json").read_text())
    manifest["files"] = [*OURS, *OTHERS, *FOREIGN, "link.txt", "folder.txt"]
    (out / "warpmerge.json").write_text(json.dumps(manifest))
    for name in "ab":
        (models / name / "vocab.txt").unlink()
    assert run_cli("merge", models / "r.yml", out, "--overwrite", "--no-sync").status == 0
    kept = {*OTHERS, "sub", "link.txt", "folder.txt", "unsaid.txt"}
    assert set(os.listdir(out)) == kept | {"README.md", "config.json", "mergekit_config.yml", "warpmerge.json", SINGLE}
    assert (models / "keep.txt").read_text() == (out / "sub" / "inner.txt").read_text() == "kept"
    assert contents(out)["notes.md"] == b"old"


def test_texts_survive_yaml_and_no_line_of_it_is_a_texts():
    texts = [
        "\x1b[2J",
        "\u202e",
        "a\n---\nb",
        "```",
        "\x85\u2028",
        "\ud800",
        "é🦊",
        "yes",
        "1",
        "",
        " ",
        "\0",
        "#",
        "a: b",
    ]
    for document in [{"k": texts}, *[{"k": t} for t in texts], {t: 1 for t in texts}]:
        text = yaml_text(document)
        assert all(line.isprintable() for line in text.split("\n"))
        assert not [line for line in text.split("\n") if line.strip() == "---"]
        assert yaml.safe_load(text) == document


TEXTS = st.text(st.sampled_from(list('\\"[]{}ab,:\n')), max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3),
    max_leaves=12,
)


def levels(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


def test_nesting_is_measured_whatever_the_texts_hold(monkeypatch):
    seen = set()

    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    @given(VALUES, st.integers(1, 6))
    def check(value, depth):
        monkeypatch.setattr("warpmerge.models.documents.DEPTH", depth)
        raw = json.dumps(value).encode()
        if levels(value) <= depth:
            assert parse_json(raw) == value
        else:
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_json(raw)
        seen.add(levels(value) <= depth)

    check()
    assert seen == {True, False}


@pytest.mark.parametrize(
    "text",
    ["{}", "[1, 2.5, -0, 1e5, null, true]", '"[[["', r'["\\", "\"[", "\\\\"]', '{"": {"": [[]]}}', nested(DEPTH)],
)
def test_json_is_read_as_python_reads_it(text):
    assert parse_json(text.encode()) == json.loads(text)
