"""Cases of methods that make each element of what is there: sums, copies, masks, order statistics, column weights."""

from digests.cases import WEIGHTS, Table, case, slow

ZERO_SUM = (1.0, -1.0, 0.5, -0.5, 0.25, -0.25, 2.0, -2.0, 0.0)

TABLES = {
    "linear": Table(
        {
            "weighted": case(),
            "equal": case(weight=1.0),
            "sum": case(normalize=False),
            "negative": case(weight=(1.5, -0.25, 0.5, -1.0, 0.2, 0.1, 0.1, 0.1, 0.1)),
            "zero": case(weight=(1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
            "paper": case(weight=None, semantics="paper"),
            "donor": case(base=True),
        },
        relative=False,
        base=False,
        common={"weight": WEIGHTS},
    ),
    "ema": Table(
        {"long": case(decay=0.9), "none": case(decay=0), "all": case(decay=1)},
        relative=False,
        base=False,
    ),
    "lawa": Table(
        {"all": case(), "last": case(k=1), "two": case(k=2, models=(2, 3, 5))},
        relative=False,
        base=False,
    ),
    "expo": Table({"beyond": case(alpha=0.5), "model": case(alpha=0), "base": case(alpha=-1)}, models=(1,)),
    "passthrough": Table(
        {
            "copy": case(),
            "scaled": case(scale=0.7),
            "one": case(scale=1),
            "zero": case(scale=0),
            "minus": case(scale=-1),
        },
        relative=False,
        base=False,
        models=(1,),
    ),
    "task_arithmetic": Table(
        {
            "weighted": case(),
            "normalized": case(normalize=True),
            "zero sum": case(weight=ZERO_SUM, normalize=True),
            "negative": case(weight=(-0.5, 1.5, -0.25, 1.0, 0.2, 0.1, 0.1, 0.1, 0.1)),
            "lambda": case(lambda_=0.3),
            "nothing": case(lambda_=0),
            "ignored": case(rescale=True, int8_mask=True),
            "paper": case(weight=None, semantics="paper", lambda_=0.4),
        },
        common={"weight": WEIGHTS},
    ),
    "nearswap": Table(
        {"step": case(t=0.01), "nothing": case(t=0), "all": case(t=1e9), "tied": case(t=0.25)},
        models=(1,),
    ),
    "magmax": Table({"last": case(), "first": case(ties="first_model"), "lambda": case(lambda_=1)}),
    "ram": Table({"default": case(), "any": case(epsilon=0), "some": case(epsilon=0.02)}),
    "ramplus_tl": Table(
        {
            "some": case(epsilon=0.02),
            "default": case(epsilon=None),
            "changed": case(epsilon=0.02, overlap="changed"),
            "bounded": case(epsilon=0.03, alpha=100, r=2),
            "plain": case(r=0),
            "model": case(scope="model"),
            "model changed": case(scope="model", overlap="changed"),
            "authors": case(semantics="authors"),
        },
        common={"epsilon": 0.02},
    ),
    "consensus_ta": Table(
        {
            "two": case(models=(2, 3, 4, 5)),
            "any": case(k=0),
            "one": case(k=1),
            "three": case(k=3, models=(3, 5)),
            "weighted": case(k=1, weight=WEIGHTS, mask_lambda=(0.2, 0.6, 0.4, 1.0, 0.0, 0.2, 0.2, 0.2, 0.2)),
            "lambda": case(k=1, lambda_=0.3),
            "mask 0": case(k=1, mask_lambda=0),
        },
    ),
    "emr": Table(
        {
            "unified": case(),
            "task 1": case(task=1),
            "task 2": case(task=2, models=(2, 3, 5)),
            "means": case(task=1, rescaler="means"),
            "model": case(task=1, scope="model"),
            "model means": case(task=1, scope="model", rescaler="means"),
            "model unified": case(scope="model"),
        },
    ),
    "pcb": Table(
        {
            "default": case(),
            "few": case(ratio=0.02),
            "more": case(ratio=0.6),
            "most": case(ratio=0.95),
            "all": case(ratio=1),
            "none": case(ratio=0),
            "lambda": case(ratio=0.3, lambda_=1.2),
            "model": slow(scope="model"),
            "model more": slow(ratio=0.7, scope="model"),
        },
    ),
    "widen": Table(
        {
            "default": case(),
            "out": case(ratio=0, calibration=0.5),
            "half": case(ratio=0.5, calibration=1.5),
            "within": case(ratio=3),
        },
    ),
    "arcee_fusion": Table({"default": case()}, models=(1,)),
    "median": Table({"mean": case(), "lower": case(even="lower")}, relative=False, base=False),
    "trimmed_mean": Table(
        {
            "a fifth": case(beta=0.2),
            "nothing": case(beta=0),
            "a quarter": case(beta=0.25),
            "most": case(beta=0.49),
        },
        relative=False,
        base=False,
    ),
}
