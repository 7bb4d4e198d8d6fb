"""What `verify` merges again with the reference: every method, every way to write a recipe, models that have moved."""

import json
import shutil
from time import sleep

import numpy as np
import pytest
import torch
import warpmerge as wm
from digests import whole
from helpers import SINGLE, bf16, llama, run_cli, write_model, write_ties
from verify_helpers import NORM, edit_manifest, flip
from warpmerge.engine import loop


def assert_same(out):
    report = wm.verify(out, recompute="all")
    assert report.problems == ()
    assert len(report.recomputed.names) == report.tensors and report.recomputed.nbytes == report.nbytes


@pytest.mark.parametrize("method", whole.TABLES)
def test_every_method(method):
    for _, document, seed in whole.file_cases(method, whole.TABLES[method]):
        assert_same(whole.merged_files(document, seed=seed, shard_size=6000))


@pytest.mark.parametrize("threads", [1, 2])
def test_matrices_are_computed_with_the_threads_that_are_asked_for(tmp_path, threads):
    """Sums of products may differ with their number."""
    rng = np.random.default_rng(0)
    paths = [
        str(write_model(tmp_path / f"{k}", {"w": rng.standard_normal((384, 256)).astype("float32")})) for k in range(3)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        document = {"merge_method": "tsv", "base_model": paths[0], "models": paths[1:]}
        wm.merge(document, tmp_path / "out", threads=threads)
        assert wm.verify(tmp_path / "out", recompute="all", threads=threads).problems == ()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("title", whole.recipes())
def test_every_way_to_write_a_recipe(title):
    document, options = whole.recipes()[title]
    assert_same(whole.merged_files(document, **options))


@pytest.fixture
def models(tmp_path):
    write_ties(tmp_path)
    wm.merge(tmp_path / "r.yml", tmp_path / "out")
    return tmp_path


def own(seed):
    """Tensors that a method does not merge, or merges without changing them."""
    shared = np.random.default_rng(0)
    ids, odd = shared.integers(0, 9, 5), np.array([np.nan, np.inf, -0.0, 1], "float32")
    made = llama(seed, dtype="bfloat16", tied=False)
    made["lm_head.weight"] = made["model.embed_tokens.weight"]
    return {**made, "ids": ids, "odd": odd, "zeros": np.zeros((3, 4), "float32"), "none": np.zeros((0, 4), "float32")}


@pytest.mark.parametrize("out_dtype", [None, "float16", "float32"])
@pytest.mark.parametrize("method", ["linear", "dare_ties"])
def test_tensors_that_are_not_merged(tmp_path, method, out_dtype):
    """Integers, NaN in all models, zeros, nothing, and a head stored twice. NaN is not copied to another dtype."""
    paths = [str(write_model(tmp_path / f"{k}", own(k))) for k in range(3)]
    document = {
        "merge_method": method,
        "base_model": paths[0],
        "models": paths[1:],
        "parameters": {"weight": 0.5, "nonfinite": "propagate" if out_dtype else "error"},
        "out_dtype": out_dtype,
    }
    wm.merge(document, tmp_path / "out", seed=3)
    assert_same(tmp_path / "out")


@pytest.mark.parametrize("name", list(llama(0)))
def test_one_bit_that_differs_is_found(models, name):
    """Even if the manifest agrees with it."""
    flip(models / "out" / SINGLE, name)
    found = wm.verify(models / "out").problems
    report = wm.verify(models / "out", recompute="all")
    count = llama(0)[name].size
    wrong = f"tensor '{name}': 1 of {count} elements are not what the reference computes"
    assert set(report.problems) == {*found, wrong}


def test_another_seed_or_parameter_is_found(tmp_path):
    write_ties(tmp_path)
    document = {
        "merge_method": "dare_linear",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "a")],
        "parameters": {"weight": 0.5, "density": 0.5},
    }
    wm.merge(document, tmp_path / "out", seed=5)
    assert_same(tmp_path / "out")
    edit_manifest(tmp_path / "out", lambda m: m.update(seed=6))
    assert len(wm.verify(tmp_path / "out", recompute="all").problems) == len(llama(0))
    edit_manifest(tmp_path / "out", lambda m: (m.update(seed=5), m["recipe"]["parameters"].update(weight=0.25)))
    assert len(wm.verify(tmp_path / "out", recompute="all").problems) == len(llama(0))


def test_a_number_of_tensors_is_chosen_by_a_seed(models):
    chosen = [wm.verify(models / "out", recompute=3, seed=seed).recomputed.names for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2] and len(set(chosen[0])) == 3
    report = wm.verify(models / "out", recompute=3)
    assert wm.verify(models / "out", recompute="3", seed=report.seed).recomputed == report.recomputed
    assert len(wm.verify(models / "out", recompute=99).recomputed.names) == len(llama(0))
    assert wm.verify(models / "out").recomputed is None


def test_tensors_that_the_recipe_does_not_make(models):
    extra = {**llama(0), "x": np.ones(2, "float32"), NORM: np.ones(4, "float32")}
    del extra["model.embed_tokens.weight"]
    write_model(models / "out", extra)
    problems = wm.verify(models / "out", recompute="all").problems
    for part in (
        "tensor 'x' is not one that the recipe makes",
        "tensor 'model.embed_tokens.weight', which the recipe makes, is missing",
        f"tensor '{NORM}' is float32 [4], but the recipe makes float32 [8]",
    ):
        assert part in problems


# --- where the models are ---------------------------------------------------------------------------------------------


def test_relative_paths_hold_from_anywhere(models, monkeypatch, tmp_path_factory):
    """The manifest has the directories, however the recipe spells them."""
    monkeypatch.chdir(models)
    document = {
        "merge_method": "task_arithmetic",
        "base_model": "./base",
        "models": ["base", {"model": "a", "parameters": {"weight": 0.5}}, {"model": {"model": {"path": "./b/"}}}],
        "parameters": {"weight": 0.25},
    }
    wm.merge(document, "sum")
    assert_same("sum")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert_same(models / "sum")


@pytest.mark.parametrize("module", [False, True])
def test_slices_of_layers(models, monkeypatch, tmp_path_factory, module):
    monkeypatch.chdir(models)
    slices = [
        {"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "./b", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [0, 1]}, {"model": "a", "layer_range": [1, 2]}]},
    ]
    parts = {"modules": {"text": {"slices": slices}}} if module else {"slices": slices}
    wm.merge({"merge_method": "linear", "parameters": {"weight": 0.5}, **parts}, "stacked")
    assert_same("stacked")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert_same(models / "stacked")


def test_auxiliary_tensors_are_found(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, llama(seed))
        write_model(tmp_path / f"fisher_{name}", {n: np.abs(t) for n, t in llama(seed + 5).items()}, config=None)
    models = [{"model": m, "parameters": {"fisher": f"fisher_{m}"}} for m in "ab"]
    wm.merge({"merge_method": "fisher", "models": models}, "out")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert_same(tmp_path / "out")


@pytest.mark.parametrize(
    ("moves", "given"),
    [
        ({"a": "c/x"}, {"{}/a": "{}/c/x"}),
        ({"a": "x", "b": "y"}, {"{}/a": "{}/x", "{}/b": "{}/y"}),
        ({"a": "c/a", "b": "c/b", "base": "c/base"}, {"{}": "{}/c"}),
        ({"a": "x", "b": "c/b", "base": "c/base"}, {"{}": "{}/c", "{}/a": "{}/x"}),
    ],
)
def test_models_that_have_moved(models, moves, given):
    for old, new in moves.items():
        (models / new).parent.mkdir(exist_ok=True)
        shutil.move(models / old, models / new)
    with pytest.raises(wm.CheckpointError, match="any more; say where it is with --model OLD=NEW"):
        wm.verify(models / "out", recompute=1)
    there = {old.format(models): new.format(models) for old, new in given.items()}
    assert wm.verify(models / "out", recompute="all", models=there).problems == ()
    options = [part for old, new in there.items() for part in ("--model", f"{old}={new}")]
    assert run_cli("verify", models / "out", "--recompute", "2", *options).status == 0


def test_a_model_that_the_merge_did_not_have(models):
    with pytest.raises(wm.UsageError, match=r"names no model '.*/aa'; did you mean '.*/a'"):
        wm.verify(models / "out", recompute=1, models={f"{models}/aa": models / "b"})


@pytest.mark.parametrize("models_there", [["a"], {"a": 1}, {"a": "x\0"}, {"a": "\ud800"}, 5])
def test_what_is_no_mapping_of_paths(models, models_there):
    with pytest.raises(wm.UsageError, match="models must be a mapping from old to new paths"):
        wm.verify(models / "out", recompute=1, models=models_there)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write_model(folder, llama(1), shards=1),
        lambda folder: write_model(folder, llama(1) | {"x": np.ones(1)}, shards=2),
        lambda folder: shutil.copytree(folder.with_name("b"), folder, dirs_exist_ok=True),
        lambda folder: [f.write_bytes(f.read_bytes().replace(b'"pt"', b'"np"')) for f in folder.glob("*.safetensors")],
    ],
)
def test_a_model_that_is_another_one_now(models, change):
    """Other files, other sizes, or other headers of the same size."""
    change(models / "a")
    with pytest.raises(wm.CheckpointError, match=r"is not the file of '.*/a' that was merged.*--model OLD=NEW"):
        wm.verify(models / "out", recompute=1)


def test_weights_that_have_changed_show_as_bits(models):
    write_model(models / "b", llama(7))
    assert len(wm.verify(models / "out", recompute="all").problems) == len(llama(0))


@pytest.mark.parametrize("path", ["out", "b"])
def test_a_file_that_is_written_to_while_it_is_read_is_an_error(models, monkeypatch, path):
    file = models / path / SINGLE
    content = file.read_bytes()
    real = loop.run

    def run(*arguments, **options):
        real(*arguments, **options)
        sleep(0.05)  # the clock of files ticks every few milliseconds
        with open(file, "r+b") as opened:
            opened.write(content)

    monkeypatch.setattr(loop, "run", run)
    with pytest.raises(wm.CheckpointError, match=rf"{path}/model\.safetensors changed while it was being read"):
        wm.verify(models / "out", recompute=1)


# --- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("recipe"),
        lambda m: m.pop("inputs"),
        lambda m: m.update(seed="x"),
        lambda m: m.update(seed=True),
        lambda m: m.update(recipe=[]),
        lambda m: m.update(inputs={"a": 1}),
        lambda m: m.update(warpmerge=1),
        lambda m: m["inputs"].append(1),
        lambda m: m["inputs"][0].update(path=1),
        lambda m: m["inputs"][0].update(path="a\0b"),
        lambda m: m["inputs"][0].update(path="\ud800"),
        lambda m: m["inputs"][0].update(model=None),
        lambda m: m["inputs"][0].update(files=3),
        lambda m: m["inputs"][0]["files"][0].update(bytes="1"),
        lambda m: m["inputs"][0]["files"][0].pop("name"),
    ],
)
def test_a_damaged_manifest_is_an_error(models, edit):
    edit_manifest(models / "out", edit)
    with pytest.raises(wm.CheckpointError, match=r"warpmerge\.json is damaged"):
        wm.verify(models / "out", recompute=1)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda r: r.update(merge_method="tiess"), "did you mean 'ties'"),
        (lambda r: r.pop("merge_method"), "cannot be used"),
        (lambda r: r.update(models=5), "cannot be used"),
        (lambda r: r.update(models=[]), "must be a list of at least one model"),
        (lambda r: r.update(models=[{"weight": 1}]), "cannot be used"),
        (lambda r: r.update(models=["zzz"]), "does not say where the model 'zzz' was"),
        (lambda r: r.update(base_model="a\0b"), "does not say where the model"),
        (lambda r: r.update(base_model="\ud800"), "does not say where the model"),
        (lambda r: r.update(base_model={"model": {"revision": 1}}), "cannot be used"),
        (lambda r: r.update(parameters=[1]), "parameters must be a mapping"),
        (lambda r: r["parameters"].update(density=[]), "density"),
        (lambda r: r["parameters"].update(density="a"), "density"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_an_error(models, edit, part):
    edit_manifest(models / "out", lambda m: edit(m["recipe"]))
    with pytest.raises(wm.CheckpointError, match=part):
        wm.verify(models / "out", recompute=1)


def test_without_torch(models, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(wm.UsageError, match="backend 'torch' is not available: torch is not installed"):
        wm.verify(models / "out", recompute=1)
    assert wm.verify(models / "out").problems == ()


def test_the_reason_that_bits_may_differ_is_named(models):
    flip(models / "out" / SINGLE, NORM)
    edit_manifest(models / "out", lambda m: m.update(warpmerge="0.0.9"))
    assert "(merged by warpmerge 0.0.9, compared by" in wm.verify(models / "out", recompute="all").problems[-1]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_was_merged_again(models):
    done = run_cli("verify", models / "out", "--recompute", "2", "--seed", "4")
    names = wm.verify(models / "out", recompute=2, seed=4).recomputed.names
    assert (done.status, done.stderr) == (0, "")
    first, second, *listed, last = done.stdout.splitlines()
    assert first.endswith("all as in the manifest") and second.startswith("merged again: 2 tensors, ")
    assert listed == [f"  {name}" for name in names] and last == "chosen with --seed 4"


def test_the_command_says_how_to_see_it_again(models):
    flip(models / "out" / SINGLE, NORM)
    done = run_cli("verify", models / "out", "--recompute", "8", "--seed", "4", "--json")
    assert done.status == 1
    assert "2 problems in what was compared and merged again. --seed 4 chooses the same tensors again." in done.stderr
    report = json.loads(done.stdout)
    assert report["recomputed"] == {"tensors": 8, "nbytes": 2144} and report["seed"] == 4
    assert sorted(report["problems"]) == sorted(done.stderr.splitlines()[:2])


def test_half_precision_models(tmp_path):
    """bfloat16 tensors are compared element by element."""
    paths = [str(write_model(tmp_path / f"{k}", {"w": bf16(np.arange(8.0) + k)})) for k in range(2)]
    wm.merge({"merge_method": "linear", "models": paths, "parameters": {"weight": 1}}, tmp_path / "out")
    flip(tmp_path / "out" / SINGLE, "w")
    problem = wm.verify(tmp_path / "out", recompute="all").problems[-1]
    assert problem == "tensor 'w': 1 of 8 elements are not what the reference computes"
