"""Recipes of several documents: order, names, what is kept in between, and what is resumed."""

import json

import numpy as np
import pytest
import warpmerge as wm
import yaml
from helpers import array, contents, looks_complete, read_model, run_cli, write_model

NAMES = ["a", "b", "c"]


@pytest.fixture
def models(tmp_path):
    for number, name in enumerate(NAMES):
        tensors = {f"model.layers.{i}.w": np.full((64, 64), 10 * number + i, np.float32) for i in range(2)}
        write_model(tmp_path / name, tensors, files={"config.json": '{"num_hidden_layers": 2}', "tokenizer.json": "{}"})
    return tmp_path


def linear(*models, name=None, **more):
    document = {"merge_method": "linear", "models": list(models), "parameters": {"weight": 1}, **more}
    return document | ({"name": name} if name else {})


def write(folder, *documents):
    path = folder / "r.yml"
    path.write_text("---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents))
    return path


def paths(folder):
    return [str(folder / name) for name in NAMES]


def value(folder, name="model.layers.0.w"):
    [found] = np.unique(array(read_model(folder)[name]))
    return float(found)


def scratch(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_document_uses_another(models, order):
    """In whatever order they stand; nothing is left beside the output."""
    a, b, c = paths(models)
    documents = [linear(a, b, name="both"), linear("both", c)]
    wm.merge(write(models, *(documents[n] for n in order)), models / "out", sync=False)
    assert value(models / "out") == (5 + 20) / 2
    assert not scratch(models)
    assert (models / "out" / "tokenizer.json").exists()
    assert wm.verify(models / "out").problems == ()


def test_bases_slices_and_a_last_one_with_a_name(models):
    a, b, c = paths(models)
    stack = {"merge_method": "passthrough", "name": "stack"}
    stack["slices"] = [{"sources": [{"model": m, "layer_range": [1, 2]}]} for m in (a, b)]
    twice = {"merge_method": "passthrough", "name": "twice"}
    twice["slices"] = [{"sources": [{"model": "stack", "layer_range": [1, 2]}]} for _ in range(2)]
    last = {"merge_method": "task_arithmetic", "base_model": "twice", "models": [c], "parameters": {"weight": 1}}
    wm.merge(write(models, stack, twice, last | {"name": "last"}), models / "out", sync=False)
    assert [value(models / "out", f"model.layers.{i}.w") for i in range(2)] == [20, 21]


def test_everything_is_planned_before_anything_is_merged(models):
    a, b, c = paths(models)
    other = write_model(models / "other", {"model.layers.0.w": np.zeros(3, np.float32)})
    recipe = write(models, linear(a, b, name="both"), linear("both", str(other)))
    with pytest.raises(wm.CheckpointError, match="document 'both'"):
        wm.merge(recipe, models / "out", sync=False)
    assert not (models / "out").exists() and not scratch(models)
    (models / "full").mkdir()
    (models / "full" / "file").write_text("mine")
    with pytest.raises(wm.OutputError, match="not empty"):
        wm.merge(write(models, linear(a, b, name="both"), linear("both", c)), models / "full", sync=False)
    assert not scratch(models)


def test_a_plan_counts_what_is_written_in_between(models):
    a, b, c = paths(models)
    recipe = write(models, linear(a, b, name="both"), linear("both", c))
    done = run_cli("plan", recipe, "--json")
    assert (done.status, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["bytes_read"] == 4 * 2 * 64 * 64 * 4
    assert plan["bytes_in_between"] == plan["bytes_written"] / 2
    report = wm.merge(recipe, models / "out", dry_run=True)
    assert (report.bytes_read, report.bytes_written) == (plan["bytes_read"], plan["bytes_written"])
    assert not (models / "out").exists() and not scratch(models)
    assert "bytes in between" in run_cli("plan", recipe).stdout


def test_an_interrupted_run_goes_on(models, monkeypatch):
    """With what is finished; a finished output is checked and nothing is merged."""
    from warpmerge import api

    a, b, c = paths(models)
    recipe = write(models, linear(a, b, name="both"), linear("both", c))
    wm.merge(recipe, models / "whole", sync=False)
    real, calls = api.run_plan, []

    def run_plan(plan, *rest):
        calls.append(plan.recipe.source.get("name"))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(plan, *rest)

    monkeypatch.setattr(api, "run_plan", run_plan)
    with pytest.raises(KeyboardInterrupt):
        wm.merge(recipe, models / "out", sync=False)
    assert not looks_complete(models / "out")
    [kept] = scratch(models)
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")}
    assert before
    # As after the interrupt, but seen before the last document is merged.
    monkeypatch.setattr(api.staged, "remove_scratch", lambda out: None)
    wm.merge(recipe, models / "out", sync=False, resume=True)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")} == before
    weights = {n: x for n, x in contents(models / "out").items() if n.endswith(".safetensors")}
    assert weights == {n: x for n, x in contents(models / "whole").items() if n.endswith(".safetensors")}
    calls.clear()
    wm.merge(recipe, models / "whole", sync=False, resume=True)
    assert calls == [None]


BAD = {
    "circle": (lambda a, b: [linear(a, "two", name="one"), linear("one", b, name="two")], "in a circle: "),
    "itself": (lambda a, b: [linear(a, "one", name="one"), linear("one", b)], "in a circle: one -> one"),
    "same name": (
        lambda a, b: [linear(a, name="one"), linear(b, name="one"), linear("one")],
        "two documents have the name 'one'",
    ),
    "name that is none": (lambda a, b: [linear(a) | {"name": [1]}, linear(b)], "name must be text, got [1]"),
    "unused": (lambda a, b: [linear(a, b, name="both"), linear("boht", b)], "used by no other document"),
    "two without a name": (lambda a, b: [linear(a), linear(b)], "document 1 and document 2 are used by no other"),
}


@pytest.mark.parametrize("name", BAD)
def test_documents_that_do_not_fit(models, name):
    make, expected = BAD[name]
    recipe = write(models, *make(*paths(models)[:2]))
    with pytest.raises(wm.UsageError) as caught:
        wm.merge(recipe, models / "out")
    assert expected in str(caught.value) and str(recipe) in str(caught.value)


def test_a_fault_says_in_which_document_it_is(models):
    recipe = write(models, linear("a", name="one"), linear("one") | {"dtype": "bfloat61"})
    with pytest.raises(wm.UsageError, match=r"r.yml: document 2: dtype"):
        wm.merge(recipe, models / "out")
