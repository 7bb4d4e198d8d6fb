"""Requests of methods that are not built in are looked at before a backend trusts them."""

import numpy as np
import pytest
import warpmerge as wm
from warpmerge.methods import REGISTRY
from warpmerge.ops import KEEP_ALL, Consensus, Copy, Gram, Moments, Select, WeightedSum


@pytest.fixture(autouse=True)
def registered():
    """Forgets what a test registers."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


REFERENCE, DONOR = wm.Base.REFERENCE, wm.Base.DONOR


@pytest.mark.parametrize(
    ("base", "measure", "combine", "part"),
    [
        (DONOR, None, None, "returned NoneType for the tensor, but it must be one of WeightedSum, Consensus, Apply"),
        (DONOR, Copy(), None, "yielded Copy for the tensor, but it must be one of Select, Moments, Gram, Rows"),
        (DONOR, None, WeightedSum((1.0,), relative=False), "'coefficients' has 1 entries and not one per model (2)"),
        (
            DONOR,
            None,
            WeightedSum((1.0,) * 3, relative=False),
            "'coefficients' has 3 entries and not one per model (2)",
        ),
        (DONOR, None, WeightedSum([1.0, 1.0], relative=False), "'coefficients' is not a tuple"),
        (DONOR, None, WeightedSum((1.0, float("nan")), relative=False), "that are not finite numbers"),
        (DONOR, None, WeightedSum(("1", 1.0), relative=False), "that are not finite numbers"),
        (DONOR, None, WeightedSum((1.0, 1.0), relative=True), "pass relative=False"),
        (DONOR, Gram(relative=True), None, "pass relative=False"),
        (DONOR, None, Copy(2), "there is no model 2"),
        (DONOR, None, Copy(-1), "there is no model -1"),
        (DONOR, None, Consensus((1.0, 1.0), (KEEP_ALL,) * 2, relative=False), "needs deltas from a required base"),
        (REFERENCE, Select((8, 0)), None, "counts are integers from 0 to 7"),
        (REFERENCE, Select((1,)), None, "'counts' has 1 entries and not"),
        (REFERENCE, Moments((KEEP_ALL,)), None, "'keep' has 1 entries and not"),
        (REFERENCE, Moments((KEEP_ALL, 1)), None, "keep consists of KeepAbove and KeepDrawn"),
        (REFERENCE, None, Consensus((1.0, 1.0), (KEEP_ALL,) * 2, elect=True), "'ballot' has 0 entries and not"),
        (REFERENCE, None, Consensus((1.0, 1.0), (KEEP_ALL,) * 2, (1.0, 1.0)), "neither ballot nor divisor"),
        (REFERENCE, None, Consensus((1.0, 1.0), (KEEP_ALL,) * 2, lambda_=None), "lambda_ is not a finite number"),
    ],
)
def test_requests_that_do_not_fit_are_errors_of_the_method(base, measure, combine, part):
    @wm.method("wrong", base=base)
    def wrong(tensor, p):
        if measure is not None:
            yield measure
        return combine

    x = [np.ones(7), np.zeros(7)]
    with pytest.raises(wm.MergeError) as error:
        wm.merge_tensors(x, "wrong", base=x[0] if base is REFERENCE else None)
    assert part in str(error.value) and "method 'wrong'" in str(error.value)


def test_answers_reach_the_method():
    """Each kind of measurement and combination, through the checks."""
    seen = []

    @wm.method("all", base=REFERENCE, passes=4)
    def everything(tensor, p):
        seen.append((yield Gram(relative=True)).norms_sq)
        selected = yield Select((2, 1))
        keep = tuple(s.keep() for s in selected)
        seen.append([(m.kept, m.kept_abs, m.sum_abs) for m in (yield Moments(keep))])
        return Consensus((1.0, 1.0), keep, (1.0, 1.0), (1.0, 1.0), 2.0, elect=True)

    x0, x1, x2 = np.zeros(3), np.array([1.0, -2, 3]), np.array([0.0, 4, 1])
    assert wm.merge_tensors([x1, x2], "all", base=x0).tolist() == [0, 8, 6]
    assert seen == [(14, 17), [(2, 5, 6), (1, 4, 5)]]
