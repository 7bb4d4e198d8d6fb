"""Auxiliary tensor tensors: what a method needs of each model beside its weights, in files and in memory."""

import json
import re

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import array, bf16, contents, llama, read_model, run_cli, write_model, write_recipe
from kernel_helpers import assert_same_bits
from warpmerge.expr.expression import delta
from warpmerge.methods import AuxiliaryTensor, find
from warpmerge.requests import Copy, Formula, Gram, Map, TensorFunction, WeightedSum

pytestmark = pytest.mark.usefixtures("registry")

MODELS = ("a", "b")


def informations(seed):
    rng = np.random.default_rng(seed + 10)
    return {name: (10.0 ** -rng.uniform(0, 16, t.shape)).astype("float32") for name, t in llama(seed).items()}


def fisher_mean(tensors, fishers):
    """In float64, by the definition."""
    x, f = ([t.astype(np.float64) for t in group] for group in (tensors, fishers))
    return sum(a * b for a, b in zip(f, x, strict=True)) / sum(f)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for seed, name in enumerate(MODELS):
        write_model(tmp_path / name, llama(seed), shards=1 + seed)
        write_model(tmp_path / f"fisher_{name}", informations(seed), shards=2 - seed, config=None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder, name="r.yml", **changes):
    models = [{"model": m, "parameters": {"fisher": f"fisher_{m}"}} for m in MODELS]
    return write_recipe(folder / name, {"merge_method": "fisher", "models": models, **changes})


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_and_state_dicts_give_the_same(folder):
    done = run_cli("merge", recipe(folder), "out", "--no-sync")
    assert (done.status, done.stderr) == (0, "")
    models, fishers = ([of(seed) for seed in range(2)] for of in (llama, informations))
    merged = wm.merge_state_dicts(models, "fisher", fisher=fishers)
    for name, raw in read_model(folder / "out").items():
        tensors, known = ([group[k][name] for k in range(2)] for group in (models, fishers))
        assert raw[2] == merged[name].tobytes()
        assert raw[2] == wm.merge_tensors(tensors, "fisher", fisher=known).tobytes()
        np.testing.assert_allclose(array(raw), fisher_mean(tensors, known), rtol=2e-6, atol=2e-7)
    assert run_cli("verify", "out").status == 0


def test_the_plan_and_the_manifest_show_them(folder):
    path = recipe(folder)
    rows = json.loads(run_cli("plan", path, "--json").stdout)
    shown = {m["role"]: (m["model"], m["bytes"]) for m in rows["models"]}
    size = sum(f.stat().st_size for f in (folder / "fisher_b").glob("*.safetensors"))
    assert shown["fisher of a"][0] == "fisher_a" and shown["fisher of b"] == ("fisher_b", size)
    read = sum(t.nbytes for s in range(2) for t in llama(s).values())
    assert rows["bytes_read"] == 2 * read
    assert "fisher of a" in run_cli("plan", path).stdout
    assert run_cli("merge", path, "out", "--no-sync").status == 0
    inputs = json.loads((folder / "out" / "warpmerge.json").read_text())["inputs"]
    assert [(i["model"], i.get("auxiliary tensor")) for i in inputs] == [
        ("a", None),
        ("b", None),
        ("fisher_a", "fisher of a"),
        ("fisher_b", "fisher of b"),
    ]


def test_resuming_notices_that_they_changed(folder):
    from warpmerge.plan.file_plan import make_plan
    from warpmerge.recipe import Recipe

    def fingerprint():
        plan = make_plan(Recipe.load(recipe(folder)))
        plan.close()
        return plan.fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    write_model(folder / "fisher_b", informations(7), shards=1, config=None)
    assert fingerprint() != before


def test_a_shared_companion_and_the_base_that_donates(folder):
    """A value at the top is that of all models that have none; the base gives the config only."""
    path = recipe(folder, models=["a", "b"], base_model="a", parameters={"fisher": "fisher_a", "weight": 2})
    assert run_cli("merge", path, "out", "--no-sync").status == 0
    for name, raw in read_model(folder / "out").items():
        mean = (llama(0)[name].astype(np.float64) + llama(1)[name]) / 2
        np.testing.assert_allclose(array(raw), mean, rtol=2e-6, atol=2e-7)


def test_nonfinite_companions_are_named(folder):
    broken = informations(1)
    name = "model.layers.0.mlp.up_proj.weight"
    broken[name][0, :3] = np.inf
    write_model(folder / "fisher_b", broken, config=None)
    done = run_cli("merge", recipe(folder), "out", "--no-sync")
    assert done.status == 1 and f"tensor '{name}'" in done.stderr and "3 of 128 in 'fisher of b'" in done.stderr


def test_a_tensor_that_all_models_share_is_copied_although_it_is_not_finite(folder):
    models = [llama(seed) for seed in range(2)]
    for seed, model in enumerate(models):
        model["model.norm.weight"][:] = [np.nan, -np.inf, -0.0, 1, 2, 3, 4, 5]
        write_model(folder / MODELS[seed], model)
    assert run_cli("merge", recipe(folder), "out", "--no-sync").status == 0
    assert read_model(folder / "out")["model.norm.weight"][2] == models[0]["model.norm.weight"].tobytes()


def test_their_types_are_their_own(folder):
    """bfloat16 informations of float32 weights; one of float64 makes the computation so, not the result."""
    for model, tensors in zip(MODELS, (informations(0), informations(1)), strict=True):
        write_model(folder / f"fisher_{model}", {n: bf16(t) for n, t in tensors.items()}, config=None)
    assert run_cli("merge", recipe(folder), "half", "--no-sync").status == 0
    write_model(folder / "fisher_a", {n: t.astype(np.float64) for n, t in informations(0).items()}, config=None)
    assert run_cli("merge", recipe(folder), "wide", "--no-sync").status == 0
    known = [{n: array(t) for n, t in read_model(folder / f"fisher_{m}").items()} for m in MODELS]
    for name, raw in read_model(folder / "wide").items():
        assert raw[0] == "F32"
        expected = fisher_mean([llama(s)[name] for s in range(2)], [k[name] for k in known])
        np.testing.assert_allclose(array(raw), expected, rtol=1.2e-7, atol=1e-30)


LACKS = "fisher of b lacks tensor 'model.norm.weight', but fisher of a has it; add it, filled with zeros"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda f: f.pop("model.norm.weight"), LACKS),
        (
            lambda f: f.update({"model.nrom.weight": f["model.norm.weight"]}),
            "has the tensor 'model.nrom.weight', but the model has no weight of that name",
        ),
        (
            lambda f: f.update({"model.norm.weight": np.ones((2, 4), "float32")}),
            "has the shape [2, 4] in fisher of b; for a weight of shape [8] it must have the shape [8].",
        ),
        (
            lambda f: f.update({"model.norm.weight": np.ones(8, "int32")}),
            "is int32 in fisher of b; it must have a floating-point dtype",
        ),
    ],
)
def test_files_that_do_not_fit(folder, change, part):
    broken = informations(1)
    change(broken)
    write_model(folder / "fisher_b", broken, shards=1, config=None)
    for command in (["plan", recipe(folder)], ["merge", recipe(folder), "out"]):
        done = run_cli(*command)
        assert done.status == 1 and part in done.stderr
    assert not (folder / "out").exists() or not any((folder / "out").iterdir())
    models, fishers = ([of(seed) for seed in range(2)] for of in (llama, informations))
    change(fishers[1])
    with pytest.raises(
        wm.CheckpointError,
        match=re.escape(part.replace("fisher of b", "fisher of model 1").replace("fisher of a", "fisher of model 0")),
    ):
        wm.merge_state_dicts(models, "fisher", fisher=fishers)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"models": ["a", "b"]}, "needs the parameter 'fisher' for the model 'a'"),
        (
            {"models": ["a", "b"], "parameters": {"fisher": ["x", "y"]}},
            "a model must be a path or a Hugging Face id, got",
        ),
        ({"models": ["a", "b"], "parameters": {"fisher": 3}}, "a model must be a path or a Hugging Face id, got 3"),
        ({"models": ["a", "b"], "parameters": {"fisher": "./nowhere"}}, "./nowhere"),
        ({"merge_method": "linear", "parameters": {"weight": 1}}, "method 'linear' has no parameter 'fisher'"),
        ({"merge_method": "regmean"}, "method 'regmean' has no parameter 'fisher'"),
    ],
)
def test_recipes_that_do_not_fit(folder, changes, part):
    done = run_cli("plan", recipe(folder, **changes))
    assert done.status == 2 and part in done.stderr


# --- memory -----------------------------------------------------------------------------------------------------------

X = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3.0, 2.0], [1.0, 0.0]])]
F = [torch.ones(2, 2), torch.full((2, 2), 3.0)]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "needs the parameter 'fisher'"),
        ({"fisher": F[:1]}, "expected one value per model (2), got 1"),
        ({"fisher": 1.0}, "'fisher': expected a path, a Hugging Face id or a state dict, got 1.0"),
        ({"fisher": "folder"}, "'fisher' is a list of one state dict for each model, got 'folder'"),
        ({"fisher": ["x", "y"]}, "tensor 'w' of fisher of model 0 is a str; give torch tensors or numpy arrays"),
        ({"fisher": [F[0], None]}, "fisher of model 1 lacks tensor 'w', but fisher of model 0 has it"),
        ({"fisher": [None, None]}, "fisher of model 0 lacks tensor 'w'; add it"),
        (
            {"fisher": [F[0], F[1][:1]]},
            "tensor 'w' has the shape [1, 2] in fisher of model 1; for a weight of shape [2, 2]",
        ),
        ({"fisher": [F[0], F[1].int()]}, "tensor 'w' is int32 in fisher of model 1"),
    ],
)
def test_calls_that_do_not_fit(given, part):
    with pytest.raises(wm.MergeError, match=re.escape(part)):
        wm.merge_tensors(X, "fisher", name="w", **given)


def test_numpy_and_torch():
    got = wm.merge_tensors(X, "fisher", fisher=F)
    torch.testing.assert_close(got, torch.tensor([[2.5, 2.0], [1.5, 1.0]]))
    again = wm.merge_tensors([x.numpy() for x in X], "fisher", fisher=[f.numpy() for f in F])
    assert isinstance(again, np.ndarray) and (again == got.numpy()).all()


def test_tied_weights_are_tied_if_their_companions_are():
    models = [{"embed": x, "head": x} for x in X]
    tied = wm.merge_state_dicts(models, "fisher", fisher=[{"embed": f, "head": f} for f in F])
    assert tied["embed"].data_ptr() == tied["head"].data_ptr()
    loose = wm.merge_state_dicts(models, "fisher", fisher=[{"embed": f, "head": f.clone()} for f in F])
    assert loose["embed"].data_ptr() != loose["head"].data_ptr()


def test_integer_tensors_have_none():
    models = [{"w": x, "steps": torch.tensor([3])} for x in X]
    got = wm.merge_state_dicts(models, "fisher", fisher=[{"w": f} for f in F])
    assert got["steps"].tolist() == [3]
    with pytest.raises(wm.CheckpointError, match=r"has tensor 'steps', but a int64 weight of shape \[1\] takes none"):
        wm.merge_state_dicts(models, "fisher", fisher=[{"w": f, "steps": torch.tensor([1.0])} for f in F])


def test_a_pool_refuses_them():
    with (
        wm.Pool(None, [{"w": x} for x in X]) as pool,
        pytest.raises(
            wm.UsageError,
            match=r"method 'fisher' needs each model's fisher, but a pool holds models only; use merge_state_dicts",
        ),
    ):
        pool.merge("fisher", fisher=[{"w": f} for f in F])


# --- methods of others ------------------------------------------------------------------------------------------------

SCALE = AuxiliaryTensor(
    "scale", help="one factor for each row", shape=lambda s: s[:1] if len(s) == 2 else None, required=False
)


def test_a_plugin_with_companions_of_another_shape():
    seen = []

    @wm.method("scaled", base=wm.Base.METADATA, auxiliary=[SCALE, AuxiliaryTensor("bias", help="what is added")])
    def scaled(tensor, p):
        seen.append(tensor.auxiliary)

        def function(tensors, base):
            x, scales, biases = tensors[:2], tensors[2:4], tensors[4:]
            return sum(a * s[:, None] + b for a, s, b in zip(x, scales, biases, strict=True))

        return TensorFunction(function, on_deltas=False)
        yield

    s = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])]
    got = wm.merge_tensors(X, "scaled", scale=s, bias=F)
    assert_same_bits(got, X[0] * s[0][:, None] + X[1] * s[1][:, None] + F[0] + F[1])
    assert seen == [((2,), (2,), (2, 2), (2, 2))]
    assert [p.name for p in find("scaled").parameters] == ["scale", "bias", "nonfinite"]
    with pytest.raises(
        wm.CheckpointError, match="'w' has some auxiliary tensors, but no scale in any model; give it all kinds"
    ):
        wm.merge_tensors(X, "scaled", scale=[None, None], bias=F, name="w")


def test_a_plugin_is_told_that_there_are_none():
    @wm.method("scaled", base=wm.Base.METADATA, auxiliary=[SCALE])
    def scaled(tensor, p):
        return WeightedSum((1.0, 1.0), on_deltas=False) if not tensor.auxiliary else Copy(1)
        yield

    vectors = [{"v": x[0], "w": x} for x in X]
    got = wm.merge_state_dicts(vectors, "scaled", scale=[{"w": torch.ones(2)}] * 2)
    assert got["v"].tolist() == [4, 4] and got["w"].tolist() == X[1].tolist()
    with pytest.raises(
        wm.CheckpointError, match=r"scale of model 0 has tensor 'v', but a float32 weight of shape \[2\] takes none"
    ):
        wm.merge_state_dicts(vectors, "scaled", scale=[{"v": torch.ones(2)}] * 2)


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (WeightedSum((1.0, 1.0), on_deltas=False), "'coefficients' has 2 entries and must have one per model (4)"),
        (Copy(2), "there is no model 2"),
        (Map(Formula((delta(4),)), on_deltas=False), "a formula names input 4, but there are 4 inputs"),
    ],
)
def test_requests_count_them_as_inputs(request_, part):
    @wm.method("mine", base=wm.Base.METADATA, auxiliary=[AuxiliaryTensor("beside", help="x")])
    def mine(tensor, p):
        return request_
        yield

    with pytest.raises(wm.MergeError, match=re.escape(part)):
        wm.merge_tensors(X, "mine", beside=F)


def test_only_whole_tensors_may_have_companions_of_another_shape():
    @wm.method("mine", base=wm.Base.METADATA, auxiliary=[SCALE])
    def mine(tensor, p):
        yield Gram(on_deltas=False)
        return Copy(0)

    with pytest.raises(
        wm.MergeError, match="its auxiliary tensors have another shape than the tensor: only TensorFunction and Copy"
    ):
        wm.merge_tensors(X, "mine", scale=[torch.ones(2)] * 2)


def test_companions_are_for_methods_without_deltas():
    with pytest.raises(
        wm.UsageError, match=r"'mine' has auxiliary tensors, so it takes no deltas: set base=Base.METADATA"
    ):
        wm.method("mine", base=wm.Base.REFERENCE, auxiliary=[SCALE])


def test_nothing_is_left_behind(folder):
    before = contents(folder)
    assert run_cli("plan", recipe(folder)).status == 0
    assert contents(folder).keys() - before.keys() == {"r.yml"}
