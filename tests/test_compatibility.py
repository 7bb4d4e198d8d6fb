"""The comparison with other programs, without them: what it measures, how it judges, and what its page says."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import warpmerge as wm
from warpmerge.methods import REGISTRY

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.compatibility import accuracy, agreement, cases, data, drops, measure, page, run

RESULT = json.loads(page.RESULTS.read_text(encoding="utf-8"))
PAGE = page.PAGE.read_text(encoding="utf-8")
SMALL = ((4, 6), (7,))


def ours_or_theirs(case, of, change=lambda result: result):
    """The jobs' results as if a peer had made them: warpmerge's own, changed."""
    results = [run.our_result(job, "torch") for job in of]
    return {job.id: r if isinstance(r, str) else change(r) for job, r in zip(of, results, strict=True)}


def row_of(case, change=lambda result: result):
    (of,) = agreement.jobs((case,))
    return agreement.row(case, of, ours_or_theirs(case, of, change), "torch")


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_result_gives():
    assert page.render(RESULT) == PAGE, "python -m benchmarks.compatibility --page-only"
    assert "Not explained" not in PAGE and all(not agreement.unexpected(row) for row in RESULT["agreement"])
    for line in PAGE.splitlines():
        assert not line.startswith("|") or line.endswith("|")
    tables = [block.splitlines() for block in PAGE.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 7
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table[0]


def test_every_method_that_mergekit_has_is_on_the_page():
    there = {
        name
        for name, method in REGISTRY.items()
        if method.built_in
        and not any("does not implement this method" in text for text in method.differences.get("mergekit", ()))
    }
    assert {row["method"] for row in RESULT["agreement"] if row["peer"] == "mergekit"} == there
    summary = PAGE.partition("## mergekit")[2].partition("###")[0]
    for name in there:
        assert f"| `{name}` |" in summary


def test_the_result_is_of_the_cases_that_there_are():
    assert len(RESULT["agreement"]) == len(cases.CASES)
    for case, row in zip(cases.CASES, RESULT["agreement"], strict=True):
        assert (row["method"], row["data"], row["reason"]) == (case.method, case.data, case.reason)
        assert {tuple(s) for shapes in row["outcomes"].values() for s in shapes} == set(case.shapes)
    assert [row["method"] for row in RESULT["accuracy"]] == [case.method for case in accuracy.CASES]
    assert [row["parameters"]["density"] for row in RESULT["drops"]] == [c.parameters["density"] for c in drops.cases()]


def test_the_shares_of_drops_are_as_they_should_be():
    for row in RESULT["drops"]:
        assert page.near_expected(row["warpmerge"], row), row


def test_the_accuracy_that_is_claimed():
    """Half an ulp of the result, and what float32 adds to it."""
    for row in RESULT["accuracy"]:
        assert row["errors"]["warpmerge"]["largest"] <= 0.5 + 2**-10, row
        assert row["returns"]["warpmerge"] == "bfloat16"
        assert row["errors"]["warpmerge"]["wrong"] <= row["errors"]["default"]["wrong"], row


# --- the cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: f"{case.peer}-{case.method}-{case.data}")
def test_every_case_can_be_run_here(case):
    """Only where it is said so is there no result."""
    shape = (33, 47) if case.shapes == cases.LARGE else min(case.shapes, key=math.prod)
    result = run.our_result(run.Job("case", case, shape), "torch")
    refuses = case.outcome == "warpmerge refuses" or (case.method.startswith("della") and isinstance(result, str))
    assert isinstance(result, str) == refuses, result
    assert refuses or result.shape == shape
    assert (case.outcome == "agrees") == (not case.reason)


def test_exact_data_have_no_ties_and_exact_sums():
    for shape in cases.SHAPES:
        base, *models = data.tensors("exact", shape)
        for model in models:
            delta = model.astype("f8") - base
            assert len(set(abs(delta).ravel().tolist())) == math.prod(shape) and (delta != 0).all()
            assert ((model - base).astype("f8") == delta).all()
        votes = sum(w * (m - base) for w, m in zip(cases.W, models, strict=True))
        assert (votes == sum(w * (m.astype("f8") - base) for w, m in zip(cases.W, models, strict=True))).all()


def test_data_are_the_same_each_time():
    first = data.tensors("random", (5,))
    data.tensors.cache_clear()
    assert all((a == b).all() for a, b in zip(first, data.tensors("random", (5,)), strict=True))


def test_inputs_are_rounded_in_turn():
    job = run.Job("x", cases.Case("linear", base=False, models=2), (7,), ("bfloat16", "float64"))
    assert len(job.inputs) == 2 and all(t.dtype == torch.float64 for t in job.inputs.values())
    assert all(torch.equal(t, t.bfloat16().double()) for t in job.inputs.values())
    assert list(job.inputs) == ["random.7.bfloat16.float64.1", "random.7.bfloat16.float64.2"]


# --- measuring and judging ------------------------------------------------------------------------------------------


def test_ulps():
    one = torch.tensor([1.0, 1.5, 0.0, 2**-126, 3.0])
    assert measure.ulp(one, torch.float32).tolist() == [2**-23, 2**-23, 2**-149, 2**-149, 2**-22]
    assert measure.ulp(torch.tensor([1.0]), torch.bfloat16).item() == 2**-7
    a, b = torch.tensor([1.0, 4.0]), torch.tensor([1.0 + 2**-22, 4.0])
    assert measure.ulps(a, b, [a], torch.float32) == 2
    assert measure.ulps(a, b, [torch.tensor([2.0, 0.0]), a], torch.float32) == 1
    nan = torch.tensor([math.nan, 1.0])
    assert measure.ulps(nan, nan, [torch.ones(2)], torch.float32) == 0
    assert measure.ulps(nan, a, [torch.ones(2)], torch.float32) == math.inf
    assert measure.ulps(a[:0], a[:0], [a[:0]], torch.float32) == 0


CASE = cases.Case("ties", {"weight": cases.W, "density": 0.5}, "exact", shapes=SMALL)


def test_the_same_result_agrees():
    row = row_of(CASE)
    assert row["outcomes"] == {"agrees": list(SMALL)} and row["ulps"] == {"float32": 0, "float64": 0}
    assert agreement.unexpected(row) == [] and row["here"] == {"method": "ties", "parameters": row["parameters"]}


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda t: t + (1e-9 if t.dtype == torch.float64 else 0), "differs in float64 only"),
        (lambda t: t + (1e-3 if t.dtype == torch.float32 else 0), "differs in float32 only"),
        (lambda t: t + 1e-3, "differs"),
        (lambda t: t[None], "differs"),
    ],
)
def test_another_result_differs(change, outcome):
    row = row_of(CASE, change)
    assert list(row["outcomes"]) == [outcome] and agreement.unexpected(row) == [outcome]
    assert agreement.unexpected(row_of(CASE.differs("Because."), change)) == []


def test_refusals():
    (of,) = agreement.jobs((CASE,))
    row = agreement.row(CASE, of, {job.id: "ValueError: no" for job in of}, "torch")
    assert row["outcomes"] == {"peer refuses": list(SMALL)} and row["errors"] == {"peer": "ValueError: no"}
    wrong = CASE.but(parameters={"weight": cases.W, "density": 2.0})
    assert row_of(wrong)["outcomes"] == {"both refuse": list(SMALL)}
    (of,) = agreement.jobs((wrong,))
    row = agreement.row(wrong, of, {job.id: torch.zeros(job.shape) for job in of}, "torch")
    assert row["outcomes"] == {"warpmerge refuses": list(SMALL)} and "density" in row["errors"]["warpmerge"]


def test_a_case_in_two():
    rest, odd = CASE.but_for(((7,),), "Because.", "peer refuses")
    assert rest.shapes == ((4, 6),) and not rest.reason
    assert (odd.shapes, odd.reason, odd.outcome) == (((7,),), "Because.", "peer refuses")


def test_kept_shares():
    job = run.Job("drops", cases.Case("dare_linear", {"weight": (1.0,), "density": 0.5}, models=1), drops.SHAPE)
    base, model = job.inputs.values()
    delta = model - base
    smallest = delta.abs().argsort(dim=1).argsort(dim=1) < drops.SHAPE[1] // 2
    found = drops._kept(torch.where(smallest, base, model), job)
    assert (found["kept"], found["least"], found["largest"]) == (0.5, 0, 1)
    assert found["norm"] == pytest.approx(
        math.exp(-0.2275), abs=0.005
    )  # of a normal distribution, cut at its quartiles
    row = drops.row(job, {job.id: "ValueError: no"}, "torch")
    assert page.near_expected(row["warpmerge"], row) and row["theirs"] == "ValueError: no"
    assert not page.near_expected(found, row)
    assert "- | - | warpmerge |" in page._drops([row])


def test_errors_in_bfloat16():
    of = accuracy.jobs()[0]
    exact = run.our_result(of["exact"], "torch")
    rounded, coarse = exact.bfloat16(), (exact + 0.01).bfloat16()
    theirs = {of["default"].id: coarse, of["float32"].id: rounded, of["exact"].id: exact}
    theirs[of["unasked"].id] = exact.float()
    row = accuracy.row(of, theirs, "torch")
    assert row["float64"] == 0 and row["errors"]["float32"]["wrong"] == 0
    assert row["returns"] == {"warpmerge": "bfloat16", "mergekit": "float32"}
    assert row["errors"]["float32"]["largest"] <= 0.5 + 1e-9 < 2 < row["errors"]["default"]["largest"]
    assert row["errors"]["default"]["wrong"] > 0.9


def test_a_page_of_other_results():
    """One case that differs without a reason, one that the peer refuses."""
    odd = row_of(CASE, lambda t: t + 1e-3)
    (of,) = agreement.jobs((CASE.but(method="dare_ties"),))
    known = CASE.but(method="dare_ties").differs("Because.", "peer refuses")
    failed = agreement.row(known, of, {job.id: "ValueError: no" for job in of}, "torch")
    of_peft = row_of(CASE.but(peer="PEFT"))
    text = page.render(RESULT | {"agreement": [odd, failed, of_peft], "drops": [], "accuracy": []})
    assert "| `ties` | density: 0.5, exact (4 x 6, 7) | differs by design | Not explained. |" in text
    assert "| mergekit fails | Because. The error: `ValueError: no` |" in text
    assert "Nowhere in these cases." in text
    assert "| `ties` | 1 | 0 | 0 | agrees |" in text.partition("## PEFT")[2]
    assert page.described(odd) == "`ties`, density: 0.5, exact (4 x 6, 7), 3, base, weight [0.5, 0.25, 0.75]"


def test_parameters_have_the_names_of_python():
    assert run.our_parameters({"lambda": 0.5, "weight": 1}) == {"lambda_": 0.5, "weight": 1}
    case = cases.Case("ties", {"weight": cases.V, "lambda": 0.5}, shapes=((3,),))
    job = run.Job("x", case, (3,))
    base, *models = job.inputs.values()
    expected = wm.merge_tensors(models, "ties", base=base, weight=list(cases.V), lambda_=0.5)
    assert torch.equal(run.our_result(job), expected)
