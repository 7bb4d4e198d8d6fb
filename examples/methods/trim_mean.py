"""Mean of the deltas first, trimming after: keeps the largest elements of the mean, where TIES trims each delta."""

import math

import warpmerge as wm
from warpmerge.expr import add_up, delta, masked
from warpmerge.methods import number
from warpmerge.requests import KEEP_NONE, Formula, KthLargest, Map


@wm.method(
    "trim_mean",
    base=wm.Base.REFERENCE,
    parameters=[
        number("density", low=0, high=1, required=True, help="share of the elements of the mean delta that are kept"),
        number("lambda", default=1.0, help="factor of the merged delta"),
    ],
    formula="y = x_0 + lambda m where |m| is one of the k largest, else x_0,  m = mean d_k,  k = ceil(density n)",
)
def trim_mean(tensor, p):
    """Base plus the largest elements of the mean delta."""
    mean = add_up([delta(k) for k in range(tensor.models)]) * (1 / tensor.models)
    count = math.ceil(p["density"] * tensor.count)
    (found,) = yield KthLargest((count,), of=Formula((mean,)))
    keep = found.keep() if count else KEEP_NONE
    return Map(Formula((masked(mean, keep) * p["lambda"],)), on_deltas=True)
