"""Cases of methods that need norms and angles of whole tensors, and of the Fisher information."""

from digests.cases import WEIGHTS, Case, Table, case
from digests.inputs import fishers

SOME_ZERO = (0.0, 0.5, 0.25, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5)
OPPOSITE = (0.5, -0.5, 1.0, -1.0, 0.25, -0.25, 2.0, -2.0, 0.5)


def robust(cases: dict[str, Case], models: tuple[int, ...]) -> Table:
    """Of each case one that measures each tensor, and one that measures the model."""
    model = {f"{title}, model": c._replace(parameters={**c.parameters, "scope": "model"}) for title, c in cases.items()}
    return Table({**cases, **model}, relative=False, base=False, models=models)


SLERP = {
    "middle": case(t=0.5),
    "first": case(t=0),
    "second": case(t=1),
    "near": case(t=0.2),
    "beyond": case(t=1.5),
    "base": case(t=0.2, base=True, models=(1,)),
    "base itself": case(t=0, base=True, models=(1,)),
}

NUSLERP = {
    "middle": case(),
    "deltas": case(base=True),
    "first": case(weight=[1, 0]),
    "second": case(weight=[0, 0.5], base=True),
    "beyond": case(weight=[-0.5, 1.5]),
    "rows": case(nuslerp_flatten=False),
    "rows of deltas": case(nuslerp_flatten=False, base=True),
    "columns": case(nuslerp_flatten=False, nuslerp_row_wise=True),
    "columns of deltas": case(nuslerp_flatten=False, nuslerp_row_wise=True, base=True),
    "rows, second": case(weight=[0, 1], nuslerp_flatten=False),
}

MULTISLERP = {
    "models": case(),
    "deltas": case(base=True),
    "equal": case(weight=1.0),
    "not normalized": case(normalize_weights=False),
    "deltas, not normalized": case(normalize_weights=False, base=True),
    "opposite": case(weight=OPPOSITE, normalize_weights=False, base=True),
    "no eps": case(eps=0),
    "large eps": case(eps=0.5, base=True),
    "eps beyond": case(eps=1e6),
}

KARCHER = {
    "default": case(),
    "start": case(max_iter=0),
    "one step": case(max_iter=1),
    "loose": case(tol=1.0),
    "exact": case(tol=0, max_iter=30),
}

KRUM = {"default": case(), "none bad": case(f=0)}
MULTI_KRUM = {**KRUM, "one": case(m=1), "two": case(f=0, m=2), "all": case(f=0, m=3)}

GEOMETRIC_MEDIAN = {
    "equal": case(),
    "weighted": case(weight=WEIGHTS),
    "some zero": case(weight=SOME_ZERO, models=(2, 3, 5)),
    "mean": case(max_iter=0),
    "one step": case(max_iter=1),
    "exact": case(tol=0, max_iter=20),
    "smooth": case(eps=1e3),
}

CLIPPED = {
    "median": case(),
    "auto": case(clip="auto", weight=WEIGHTS),
    "any": case(clip="inf"),
    "nothing": case(clip=0),
    "short": case(clip=0.3),
    "some zero": case(weight=SOME_ZERO, models=(2, 3, 5)),
}

FISHER = {
    "default": case(),
    "weighted": case(weight=WEIGHTS),
    "some zero": case(weight=SOME_ZERO, models=(2, 3, 5)),
    "floor": case(floor=1e-3),
    "first": case(floor=1e-3, floor_of="first"),
    "normalized": case(normalize=True),
    "normalized floor": case(normalize=True, floor=1e-6, floor_of="first", weight=WEIGHTS),
}


TABLES = {
    "slerp": Table(SLERP, relative=False, base=False, models=(2,)),
    "nuslerp": Table(NUSLERP, base=False, models=(2,), common={"weight": [0.3, 0.7]}),
    "multislerp": Table(MULTISLERP, base=False, common={"weight": WEIGHTS}),
    "karcher": Table(KARCHER, relative=False, base=False),
    "model_stock": Table({"tensors": case(), "rows": case(filter_wise=True)}, models=(2, 3, 4, 5)),
    "krum": robust(KRUM, (3, 4, 5)),
    "multi_krum": robust(MULTI_KRUM, (3, 4, 5)),
    "geometric_median": robust(GEOMETRIC_MEDIAN, (1, 2, 3, 4, 5)),
    "norm_clipped_mean": robust(CLIPPED, (1, 2, 3, 4, 5))._replace(relative=True, base=True),
    "fisher": robust(FISHER, (1, 2, 3, 4, 5))._replace(companions=("fisher", fishers)),
}
