"""Shrinks the small directions of a merged matrix: soft thresholding of the singular values of the summed deltas."""

import torch
import warpmerge as wm
from warpmerge.methods import boolean, number
from warpmerge.requests import TensorFunction, WeightedSum


def check(p, models):
    if not any(p["weight"]):
        raise wm.UsageError("method 'shrink_spectrum': every weight is 0, so the result would be the base; raise one.")


@wm.method(
    "shrink_spectrum",
    base=wm.Base.REFERENCE,
    parameters=[
        number("weight", default=1.0, per_model=True, help="coefficient of the model's delta"),
        number(
            "share", low=0, high=0.99, default=0.1, help="what is taken off, as a share of the largest singular value"
        ),
        boolean("keep_norm", default=True, help="bring the matrix back to the norm that it had"),
    ],
    check=check,
)
def shrink_spectrum(tensor, p):
    """Base plus the weighted sum of the deltas with smaller singular values; other tensors get the sum itself."""

    def shrunk(deltas, base):
        whole = sum(w * d for w, d in zip(p["weight"], deltas, strict=True))
        finite = torch.isfinite(whole)
        u, s, vt = torch.linalg.svd(torch.where(finite, whole, 0), full_matrices=False)
        left = (s - p["share"] * s.max()).clamp(min=0)
        if p["keep_norm"] and left.any():
            left = left * (s.norm() / left.norm())
        return torch.where(finite, (u * left) @ vt, whole)

    if tensor.shape is None or len(tensor.shape) != 2:
        return WeightedSum(tuple(p["weight"]), on_deltas=True)
    return TensorFunction(shrunk)
