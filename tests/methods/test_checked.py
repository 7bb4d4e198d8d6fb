"""Requests of methods that are not built in are looked at before a backend trusts them."""

import numpy as np
import pytest
import warpmerge as wm
from warpmerge.expr import delta, masked
from warpmerge.expr.patterns import KeptMagnitudes
from warpmerge.requests import KEEP_ALL, Copy, ElectAndSum, Gram, KthLargest, Reduce, WeightedSum

pytestmark = pytest.mark.usefixtures("registry")


REFERENCE, METADATA = wm.Base.REFERENCE, wm.Base.METADATA


@pytest.mark.parametrize(
    ("base", "measure", "combine", "part"),
    [
        (
            METADATA,
            None,
            None,
            "returned NoneType for the tensor, but it must be one of WeightedSum, ElectAndSum, Map",
        ),
        (METADATA, Copy(), None, "yielded Copy for the tensor, but it must be one of KthLargest, Reduce, Gram"),
        (
            METADATA,
            None,
            WeightedSum((1.0,), on_deltas=False),
            "'coefficients' has 1 entries and must have one per model (2)",
        ),
        (
            METADATA,
            None,
            WeightedSum((1.0,) * 3, on_deltas=False),
            "'coefficients' has 3 entries and must have one per model (2)",
        ),
        (METADATA, None, WeightedSum([1.0, 1.0], on_deltas=False), "'coefficients' must be a tuple"),
        (METADATA, None, WeightedSum((1.0, float("nan")), on_deltas=False), "must hold finite numbers"),
        (METADATA, None, WeightedSum(("1", 1.0), on_deltas=False), "must hold finite numbers"),
        (METADATA, None, WeightedSum((1.0, 1.0), on_deltas=True), "pass on_deltas=False"),
        (METADATA, Gram(on_deltas=True), None, "pass on_deltas=False"),
        (METADATA, None, Copy(2), "there is no model 2"),
        (METADATA, None, Copy(-1), "there is no model -1"),
        (
            METADATA,
            None,
            ElectAndSum((1.0, 1.0), (KEEP_ALL,) * 2, on_deltas=False),
            "it needs deltas: set base=Base.REFERENCE",
        ),
        (REFERENCE, KthLargest((8, 0)), None, "'counts' must hold integers from 0 to 7"),
        (REFERENCE, KthLargest((1,)), None, "'counts' has 1 entries and must"),
        (REFERENCE, None, ElectAndSum((1.0, 1.0), (KEEP_ALL,) * 2, elect=True), "'vote' has 0 entries and must"),
        (REFERENCE, None, ElectAndSum((1.0, 1.0), (KEEP_ALL,) * 2, (1.0, 1.0)), "vote and divisor are for elections"),
        (REFERENCE, None, ElectAndSum((1.0, 1.0), (KEEP_ALL,) * 2, lambda_=None), "'lambda_' must be a finite number"),
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


def test_what_is_no_mask_is_refused_where_it_is_used():
    with pytest.raises(wm.MergeError, match="a mask must be a TopKMask, a RandomMask or a RankMask, not 1"):
        KeptMagnitudes((KEEP_ALL, 1))


def test_masks_of_some_models_are_measured_as_any_expression():
    @wm.method("some", base=REFERENCE)
    def some(tensor, p):
        whole, kept = yield Reduce("sum", of=KeptMagnitudes((KEEP_ALL,)))
        assert (whole, kept) == (6, 6)
        return Copy()

    base = np.zeros(3, np.float32)
    first = np.array([1, -2, 3], np.float32)
    assert wm.merge_tensors([first, base], "some", base=base).tolist() == [1, -2, 3]


def test_answers_reach_the_method():
    """Each kind of measurement and combination, through the checks."""
    seen = []

    @wm.method("all", base=REFERENCE, passes=5)
    def everything(tensor, p):
        seen.append((yield Gram(on_deltas=True)).norms_sq)
        selected = yield KthLargest((2, 1))
        keep = tuple(s.keep() for s in selected)
        seen.append((yield Reduce("sum", of=KeptMagnitudes(keep))))
        seen.append((yield Reduce("count", of=tuple(masked(delta(k), rule) for k, rule in enumerate(keep)))))
        return ElectAndSum((1.0, 1.0), keep, (1.0, 1.0), (1.0, 1.0), 2.0, elect=True)

    x0, x1, x2 = np.zeros(3), np.array([1.0, -2, 3]), np.array([0.0, 4, 1])
    assert wm.merge_tensors([x1, x2], "all", base=x0).tolist() == [0, 8, 6]
    assert [list(found) for found in seen] == [[14, 17], [6, 5, 5, 4], [2, 1]]
