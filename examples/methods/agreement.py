"""Mean of the deltas, each element the smaller the less the signs of the models agree on it: a soft election."""

import warpmerge as wm
from warpmerge.expr import add_up, delta, where
from warpmerge.methods import number, total
from warpmerge.requests import Formula, Map


@wm.method(
    "agreement",
    base=wm.Base.REFERENCE,
    parameters=[
        number("weight", low=0, default=1.0, per_model=True, help="share of the model in the mean"),
        number("strength", low=0, high=1, default=1.0, help="0: the plain mean; 1: nothing is left where signs cancel"),
    ],
    formula="y = x_0 + m (1 - strength (1 - a)),  m = sum w_k d_k / sum w_k,  a = |sum w_k d_k| / sum w_k |d_k|",
)
def agreement(tensor, p):
    """Mean of the deltas, each element by how far the signs of the models agree."""
    terms = [w * delta(k) for k, w in enumerate(p["weight"])]
    summed = add_up(terms)
    size = add_up([abs(term) for term in terms])
    agreed = where(size > 0, abs(summed) / size, 0)
    mean = summed * (1 / (total(p["weight"]) or 1.0))
    return Map(Formula((mean * (1 - p["strength"] * (1 - agreed)),)), on_deltas=True)
