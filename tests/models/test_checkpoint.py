"""Model directories as inputs: where they are found, what their index may say, which models fit together."""

import itertools
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from helpers import INDEX, SINGLE, bf16, file_bytes, llama, write_model, write_safetensors
from warpmerge import system
from warpmerge.errors import CheckpointError, MergeError, UsageError
from warpmerge.models import Checkpoint, allow_open_files
from warpmerge.models.checkpoint import resolve
from warpmerge.plan.file_plan import make_plan
from warpmerge.recipe import ModelRef, Recipe


def small(value=1.0):
    return {"a.weight": np.full((2, 3), value, np.float32), "b.weight": np.full(4, value, np.float32)}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "name", ["plain", "with spaces", "ünï-çø∂é 🦊", "a+b@c#d%20", "-dash", "new\nline", b"not-utf8-\xff"]
)
def test_directories_of_any_name_are_opened(tmp_path, shards, name):
    path = tmp_path / os.fsdecode(name)
    write_model(path, small(), shards=shards)
    checkpoint = Checkpoint(str(path))
    assert {n: e.shape for n, (_, e) in checkpoint.entries.items()} == {"a.weight": (2, 3), "b.weight": (4,)}
    assert len(checkpoint.shards) == shards
    for shard, entry in checkpoint.entries.values():
        assert shard.file.read(entry.offset, entry.nbytes) == np.float32(1).tobytes() * entry.count
    checkpoint.close()


def test_the_home_directory_and_links_are_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "m", small())
    assert resolve(ModelRef("~/m")) == tmp_path / "m"
    # As the hub's cache has it: the directory holds links to files that lie elsewhere.
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in (tmp_path / "m").iterdir():
        (snapshot / file.name).symlink_to(file)
    assert set(Checkpoint(str(snapshot)).entries) == set(small())


@pytest.mark.parametrize(
    ("path", "error", "parts"),
    [
        ("{}/modle", UsageError, ["'{}/modle'", "not a directory", "did you mean 'model'"]),
        ("{}/nowhere/model", UsageError, ["not a directory"]),
        ("{}/model/model.safetensors", UsageError, ["is a file", "name the directory"]),
        ("{}/empty", CheckpointError, ["{}/empty", INDEX, SINGLE]),
        ("{}/pickle", CheckpointError, ["{}/pickle", "pytorch_model", "convert it to safetensors"]),
        ("{}/" + "x" * 300, UsageError, ["not a directory"]),
        ("a\0b", UsageError, ["not a directory"]),
        ("~nobody-of-this-name/m", UsageError, ["not a directory"]),
        ("org/model", UsageError, ["'org/model'", "Hugging Face hub"]),
        ("no such model!", UsageError, ["Hugging Face hub", "not a valid id"]),
        ("{}/model@main", UsageError, ["no revisions"]),
    ],
)
def test_models_that_are_not_there(tmp_path, path, error, parts):
    write_model(tmp_path / "model", small())
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model-00001-of-00001.bin").touch()
    path, _, revision = path.format(tmp_path).partition("@")
    with pytest.raises(error) as caught:
        resolve(ModelRef(path, revision or None))
    for part in parts:
        assert part.format(tmp_path) in str(caught.value)


def test_a_cached_model_without_weights_is_downloaded(tmp_path, monkeypatch):
    """The hub's cache may hold no more than a config; a failed download says why."""
    (tmp_path / "cached").mkdir()
    write_model(tmp_path / "downloaded", small())
    asked = []

    def download(name, *, revision, local_files_only, allow_patterns):
        asked.append((name, revision, local_files_only))
        return str(tmp_path / ("cached" if local_files_only else "downloaded"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve(ModelRef("org/model", "v1")) == tmp_path / "downloaded"
    assert asked == [("org/model", "v1", True), ("org/model", "v1", False)]
    write_model(tmp_path / "cached", small())
    assert resolve(ModelRef("org/model")) == tmp_path / "cached"


def sharded(path, change):
    """A model of two shards whose index `change` has edited, or replaced by what it returns."""
    write_model(path, small(), shards=2)
    document = json.loads((path / INDEX).read_text())
    changed = change(document["weight_map"])
    (path / INDEX).write_text(changed if isinstance(changed, str) else json.dumps(document))
    return path


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: "{", ["not valid JSON"]),
        (lambda m: "[" * 100_000, ["nested too deeply"]),
        (lambda m: "9" * 5000, ["not valid JSON"]),
        (lambda m: "[]", ["not a JSON object"]),
        (lambda m: "{}", ["'weight_map'"]),
        (lambda m: '{"weight_map": []}', ["'weight_map'"]),
        (lambda m: '{"weight_map": null}', ["'weight_map'"]),
        (lambda m: '{"weight_map": {}}', ["holds no tensors"]),
        (lambda m: m.update({"a.weight": None}), ["'a.weight'", "None"]),
        (lambda m: m.update({"a.weight": [FIRST]}), ["'a.weight'", "that is no file"]),
        (lambda m: m.update({"a.weight": f"../m/{FIRST}"}), ["'a.weight'", "that is no file in this directory"]),
        (lambda m: m.update({"a.weight": "/etc/passwd"}), ["'/etc/passwd'", "in this directory"]),
        (lambda m: m.update({"a.weight": ".."}), ["'..'", "in this directory"]),
        (lambda m: m.update({"a.weight": "."}), ["'.'", "in this directory"]),
        (lambda m: m.update({"a.weight": ""}), ["''", "in this directory"]),
        (lambda m: m.update({"a.weight": "gone.safetensors"}), ["gone.safetensors", "missing", "Download"]),
        (lambda m: m.update({"a.weight": "x" * 300}), ["missing"]),
        (lambda m: m.update({"a.weight": "a\0b"}), ["missing"]),
        (lambda m: m.update({"a.weight": "\ud800"}), ["missing"]),
        (lambda m: m.update({"a.weight": SECOND}), ["'a.weight'", f"is in {SECOND}, but it is not"]),
        (lambda m: m.update({"c.weight": FIRST}), ["'c.weight'", f"is in {FIRST}, but it is not"]),
    ],
)
def test_bad_indexes(tmp_path, change, parts):
    path = sharded(tmp_path / "m", change)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(str(path))
    for part in [str(path), *parts]:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_damaged_shards_are_named(tmp_path):
    path = write_model(tmp_path / "m", small(), shards=2)
    write_safetensors(path / SECOND, small())
    with pytest.raises(CheckpointError, match=f"'a.weight' is in both {FIRST} and {SECOND}"):
        Checkpoint(str(path))
    (path / SECOND).write_bytes((path / FIRST).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{SECOND}: .* truncated"):
        Checkpoint(str(path))
    (path / SECOND).unlink()
    (path / SECOND).mkdir()
    with pytest.raises(CheckpointError, match=f"the file {SECOND} is missing"):
        Checkpoint(str(path))
    (path / SECOND).rmdir()
    (path / SECOND).symlink_to("gone")
    with pytest.raises(CheckpointError, match=f"the file {SECOND} is missing"):
        Checkpoint(str(path))


def test_files_that_cannot_be_read(tmp_path):
    """Permissions do not hold for root, so the refusal is made here."""
    path = write_model(tmp_path / "m", small())

    class Refuses(system.System):
        def open(self, path, flags, mode=0o666):
            raise PermissionError(13, "Permission denied")

    with system.using(Refuses()), pytest.raises(CheckpointError, match=r"read .*model.safetensors: Permission denied"):
        Checkpoint(str(path))


@pytest.mark.parametrize("change", ["shorter", "longer", "other", "rewritten"])
def test_files_that_change_after_their_header_was_read(tmp_path, change):
    path = write_model(tmp_path / "m", small()) / SINGLE
    shard, _ = Checkpoint(str(path.parent)).entries["a.weight"]
    content = path.read_bytes()
    if change == "other":
        path.unlink()
    path.write_bytes({"shorter": content[:-4], "longer": content + bytes(4)}.get(change, content))
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        shard.file.read(0, 8)


def test_a_single_file_wins_over_an_index_as_in_transformers(tmp_path):
    path = write_model(tmp_path / "m", small(1), shards=2)
    write_safetensors(path / SINGLE, {"other.weight": np.zeros(1, np.float32)})
    assert set(Checkpoint(str(path)).entries) == {"other.weight"}


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, b"\xff"])
def test_a_bad_config_is_found_before_the_merge(tmp_path, content):
    write_model(tmp_path / "a", small(), files={"config.json": content})
    with pytest.raises(CheckpointError, match=r"config.json: not (valid JSON|a JSON object)"):
        plan(tmp_path, a=None)


def plan(folder, *, method="linear", base=None, dtype=None, **models):
    """The plan of a merge of models in `folder`, written first where their tensors are given."""
    for name, tensors in models.items():
        if tensors is not None:
            write_model(folder / name, tensors)
    document = {"merge_method": method, "models": [str(folder / name) for name in models]}
    document |= {"parameters": {} if method == "passthrough" else {"weight": 1.0}}
    document |= {"base_model": str(folder / base)} if base else {}
    return make_plan(Recipe.load(document | ({"dtype": dtype} if dtype else {})))


I32, I64, F8 = np.ones(4, np.int32), np.ones(4, np.int64), ("F8_E4M3", (4,), bytes(4))
B = {"b.weight": small()["b.weight"]}


@pytest.mark.parametrize(
    ("a", "b", "parts"),
    [
        (small(), B, ["'{}/b' lacks the tensor 'a.weight' of model '{}/a'", "same architecture"]),
        (small(), {**B, "a.wieght": I64}, ["lacks the tensor 'a.weight'", "did you mean 'a.wieght'"]),
        (small(), {"c": I64}, ["lacks the tensor 'a.weight'", "(and 1 more)"]),
        (small(), {**small(), "c": I64}, ["'{}/b' has the tensor 'c', which model '{}/a' lacks", "tied"]),
        (small(), {**small(), "a.weight": np.zeros((3, 2), np.float32)}, ["'a.weight' is [2, 3] in", "but [3, 2] in"]),
        (small(), {**small(), "a.weight": np.zeros(6, np.float32)}, ["[2, 3]", "[6]", "'{}/a'", "'{}/b'"]),
        ({"embed.w": np.zeros((2, 2), np.half)}, {"embed.w": np.zeros((3, 2), np.half)}, ["vocabularies differ"]),
        ({"i": I32}, {"i": I64}, ["'i' is int32 in model '{}/a' but int64 in model '{}/b'"]),
        ({"i": I32}, {"i": I32.astype(np.float32)}, ["'i' is int32 in model '{}/a' but float32 in model '{}/b'"]),
        ({"i": F8}, {"i": F8}, ["'i' is quantized (float8_e4m3fn)", "dequantize"]),
        ({"i": bf16([1] * 4)}, {"i": F8}, ["'i' is bfloat16 in model '{}/a' but float8_e4m3fn in model '{}/b'"]),
    ],
)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_models_that_do_not_fit(tmp_path, a, b, parts, method):
    with pytest.raises(CheckpointError) as caught:
        plan(tmp_path, method=method, base="a" if method != "linear" else None, a=a, b=b)
    for part in parts:
        assert part.format(tmp_path, tmp_path) in str(caught.value)


def test_packed_integers_of_quantized_models_are_refused(tmp_path):
    """Without the check, the base's packed weights would be paired with merged scales."""
    packed = {**small(), "qweight": I32}
    write_model(tmp_path / "b", packed, config={"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(CheckpointError, match=r"b' is quantized .*'qweight' is int32.*dequantize"):
        plan(tmp_path, a=packed, b=None)
    assert len(plan(tmp_path, method="passthrough", b=None).jobs) == 3
    assert len(plan(tmp_path, a=packed, c=packed).jobs) == 3


def test_floats_of_different_dtypes_fit(tmp_path):
    """The base's dtype is the output's, unless the recipe says otherwise."""
    models = {"a": {"w": np.zeros(2, np.float16)}, "b": {"w": bf16([0, 0])}, "c": {"w": np.zeros(2, np.float64)}}
    assert [g.out_dtype.name for g in plan(tmp_path, **models).jobs.groups] == ["float16"]
    assert [g.out_dtype.name for g in plan(tmp_path, base="b", **models).jobs.groups] == ["bfloat16"]
    assert [(g.out_dtype.name, g.fp64) for g in plan(tmp_path, dtype="float32", **models).jobs.groups] == [
        ("float32", True)
    ]


def test_jobs_follow_the_files(tmp_path):
    """Names and order are those of the metadata source's files, whatever the order of the other models."""
    write_model(tmp_path / "a", llama(0), shards=3)
    made = plan(tmp_path, a=None, b=dict(reversed(llama(1).items())))
    assert list(made.jobs.names) == list(llama(0))
    assert len(made.shards) == 1


@pytest.mark.parametrize("size", [1, 255, 256, 512, 543, 544, 800, 1056, 10**9])
def test_shards_hold_as_many_tensors_as_fit(tmp_path, size):
    """Those of the model have 512, 256, 512, 32, 256, 512, 32 and 32 bytes."""
    write_model(tmp_path / "a", llama(0))
    recipe = {"merge_method": "passthrough", "models": [str(tmp_path / "a")]}
    made = make_plan(Recipe.load(recipe), shard_size=size)
    groups = [
        [n for n, s in zip(made.layout.sizes, made.shard_of, strict=True) if s == i] for i in range(len(made.shards))
    ]
    assert [nbytes for group in groups for nbytes in group] == [512, 256, 512, 32, 256, 512, 32, 32]
    assert all(sum(group) <= size or len(group) == 1 for group in groups)
    assert all(sum(group) + following[0] > size for group, following in itertools.pairwise(groups))
    assert [shard.nbytes for shard in made.shards] == [4096 + sum(group) for group in groups]
    count = len(groups)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert [shard.name for shard in made.shards] == names


def test_the_limit_of_open_files_is_raised_where_it_must(tmp_path):
    """In a process of its own: 300 shards with room for 64 files."""
    tensors = {f"t{i:03}": np.full(1, i, np.float32) for i in range(300)}
    write_model(tmp_path / "m", tensors, shards=300)
    code = (
        "import resource, sys, warpmerge\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))\n"
        "recipe = {'merge_method': 'linear', 'models': [sys.argv[1]], 'parameters': {'weight': 1}}\n"
        "warpmerge.merge(recipe, sys.argv[2], shard_size=1, sync=False)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "m", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 300


def test_the_limit_of_open_files_is_never_lowered():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_open_files(1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_huge_header_length_costs_nothing(tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    (path / SINGLE).write_bytes(file_bytes("{}", length=2**62))
    with pytest.raises(MergeError, match="header claims"):
        Checkpoint(str(path))
