"""The table of all methods.

A new method needs an oracle in one of the files oracles*.py and a row here. test_every_method.py then checks all that
holds for every method: the oracle's result, degenerate inputs, equal bits on the backends, and more.
"""

import oracles
import oracles_dense as dense
import oracles_elementwise as elementwise
import oracles_gram as gram
import oracles_rows as rows
from kernel_helpers import densities, family, signed, weights
from method_cases import Case, Family, alone, check_matrix, distant, far, on_base, related

# As many of them are taken as there are models.
WEIGHTS, SIGNED, DENSITIES = (tuple(make(9)) for make in (weights, signed, densities))
DRAWN = {"name": "model.layers.0.mlp.up_proj.weight", "seed": 7}
EMBEDDING = "model.embed_tokens.weight"

# --- sums of models and of deltas, with an election or without --------------------------------------------------------

WEIGHTED = Family(
    {
        "linear": alone(oracles.linear, weight=WEIGHTS),
        "linear-uniform": alone(oracles.linear, weight=1),
        "linear-sum": alone(oracles.linear, weight=WEIGHTS, normalize=False),
        "linear-negative": alone(oracles.linear, weight=SIGNED),
        "linear-sum-negative": alone(oracles.linear, weight=SIGNED, normalize=False),
        "passthrough": alone(oracles.passthrough, 1, scale=1.0),
        "passthrough-scaled": alone(oracles.passthrough, 1, scale=0.3),
        "passthrough-negative": alone(oracles.passthrough, 1, scale=-1.0),
        "passthrough-nothing": alone(oracles.passthrough, 1, scale=0.0),
        "slerp": alone(oracles.slerp, 2, t=0.3),
        "task_arithmetic": on_base(oracles.task_arithmetic, weight=WEIGHTS),
        "task_arithmetic-negative": on_base(oracles.task_arithmetic, weight=SIGNED, lambda_=0.7),
        "task_arithmetic-normalize": on_base(oracles.task_arithmetic, weight=WEIGHTS, normalize=True, lambda_=-1.5),
        "task_arithmetic-cancelling": on_base(oracles.task_arithmetic, 2, 3, weight=(1, -1, 1e-9), normalize=True),
        "task_arithmetic-zero": on_base(
            oracles.task_arithmetic, weight=0.0, normalize=True, rescale=True, int8_mask=True
        ),
        "ties": on_base(oracles.ties, weight=WEIGHTS, density=0.5),
        "ties-dense": on_base(oracles.ties, weight=WEIGHTS),
        "ties-nothing": on_base(oracles.ties, weight=WEIGHTS, density=0.0),
        "ties-mixed": on_base(oracles.ties, weight=WEIGHTS, density=DENSITIES, lambda_=0.7),
        "ties-sparse-sum": on_base(oracles.ties, weight=SIGNED, density=0.1, normalize=False),
        "ties-unweighted": on_base(oracles.ties, weight=WEIGHTS, density=0.57, elect="unweighted"),
        "ties-unweighted-negative": on_base(oracles.ties, weight=SIGNED, elect="unweighted", divisor="none"),
        "ties-paper": on_base(
            oracles.ties, weight=1, density=0.2, elect="unweighted", divisor="count", ties="keep_all"
        ),
        "ties-keep_all": on_base(oracles.ties, weight=WEIGHTS, density=DENSITIES, ties="keep_all"),
        "ties-count": on_base(oracles.ties, weight=SIGNED, density=0.8, divisor="count", int8_mask=True),
        "ties-weights": on_base(oracles.ties, weight=WEIGHTS, density=0.3, normalize=False, divisor="weights"),
        "ties-l1": on_base(oracles.ties, weight=WEIGHTS, density=DENSITIES, rescale=True),
        "ties-inverse": on_base(oracles.ties, weight=WEIGHTS, density=DENSITIES, rescale="inverse_density"),
        "dare_linear": on_base(oracles.dare_linear, weight=WEIGHTS, density=0.3, **DRAWN),
        "dare_linear-negative": on_base(oracles.dare_linear, weight=SIGNED, density=0.9, lambda_=1.3, **DRAWN),
        "dare_linear-dense": on_base(oracles.dare_linear, weight=WEIGHTS, density=1.0, **DRAWN),
        "dare_linear-nothing": on_base(oracles.dare_linear, weight=WEIGHTS, density=0.0, **DRAWN),
        "dare_linear-mixed": on_base(oracles.dare_linear, weight=WEIGHTS, density=DENSITIES, normalize=True, **DRAWN),
        "dare_linear-paper": on_base(
            oracles.dare_linear, weight=WEIGHTS, density=DENSITIES, rescale="inverse_density", **DRAWN
        ),
        "dare_linear-count": on_base(
            oracles.dare_linear, weight=SIGNED, density=0.5, rescale=False, divisor="count", **DRAWN
        ),
        # Kept is at least one in 65536.
        "dare_linear-rare": on_base(oracles.dare_linear, weight=1, density=1e-6, rescale=False, **DRAWN),
        "dare_ties": on_base(oracles.dare_ties, weight=WEIGHTS, density=0.6, **DRAWN),
        "dare_ties-negative": on_base(oracles.dare_ties, weight=SIGNED, density=0.3, lambda_=0.5, **DRAWN),
        "dare_ties-mixed": on_base(oracles.dare_ties, weight=WEIGHTS, density=DENSITIES, normalize=True, **DRAWN),
        "dare_ties-unweighted": on_base(oracles.dare_ties, weight=SIGNED, density=0.7, elect="unweighted", **DRAWN),
        "dare_ties-count": on_base(
            oracles.dare_ties, weight=WEIGHTS, density=0.8, rescale=False, divisor="count", **DRAWN
        ),
        "dare_ties-paper": on_base(oracles.dare_ties, weight=1, density=DENSITIES, rescale="inverse_density", **DRAWN),
    },
    unsure=0.002,  # with bf16's few distinct deltas a handful of elements; none in most cases
)

# --- each element by itself -------------------------------------------------------------------------------------------

ELEMENTWISE = Family(
    {
        "median": alone(elementwise.median),
        "median-lower": alone(elementwise.median, even="lower"),
        "trimmed_mean": alone(elementwise.trimmed_mean, beta=0.3),
        "trimmed_mean-none": alone(elementwise.trimmed_mean, beta=0.0),
        "trimmed_mean-most": alone(elementwise.trimmed_mean, beta=0.49),
        "nearswap": on_base(elementwise.nearswap, 1, t=1e-3),
        "nearswap-nothing": on_base(elementwise.nearswap, 1, t=0.0),
        "nearswap-least": on_base(elementwise.nearswap, 1, t=1e-9),
        "nearswap-all": on_base(elementwise.nearswap, 1, t=10.0),
        "magmax": on_base(elementwise.magmax),
        "magmax-first": on_base(elementwise.magmax, lambda_=-1.3, ties="first_model"),
        "ram": on_base(elementwise.ram),
        "ram-epsilon": on_base(elementwise.ram, epsilon=2e-3),
        "ramplus_tl": on_base(elementwise.ramplus_tl, epsilon=2e-3),
        "ramplus_tl-changed": on_base(elementwise.ramplus_tl, epsilon=2e-3, r=0.7, alpha=0.9, overlap="changed"),
        "consensus_ta": on_base(elementwise.consensus_ta, k=lambda models: min(models, 2)),
        "consensus_ta-weights": on_base(
            elementwise.consensus_ta, k=1, weight=SIGNED, mask_lambda=DENSITIES, lambda_=0.3
        ),
        "consensus_ta-all": on_base(elementwise.consensus_ta, k=lambda models: models, mask_lambda=0.25),
        "emr": on_base(elementwise.emr),
        "emr-first": on_base(elementwise.emr, task=1),
        "emr-last": on_base(elementwise.emr, task=lambda models: models),
        "breadcrumbs": on_base(elementwise.breadcrumbs, weight=WEIGHTS, density=0.7),
        "breadcrumbs-dense": on_base(elementwise.breadcrumbs, weight=SIGNED, gamma=0.5),
        "breadcrumbs-mixed": on_base(
            elementwise.breadcrumbs, weight=WEIGHTS, density=DENSITIES, gamma=0.1, normalize=True
        ),
        "breadcrumbs-gammas": on_base(
            elementwise.breadcrumbs, weight=1, density=0.5, gamma=(0.3, 0.0, 1.0, 0.5, 0.01, 0.2, 0.6, 0, 1)
        ),
        "breadcrumbs-l1": on_base(elementwise.breadcrumbs, weight=SIGNED, density=DENSITIES, gamma=0.05, rescale=True),
        "breadcrumbs-inverse": on_base(
            elementwise.breadcrumbs, weight=1, density=0.4, rescale="inverse_density", lambda_=0.6
        ),
        "breadcrumbs_ties": on_base(elementwise.breadcrumbs_ties, weight=WEIGHTS, density=0.7),
        "breadcrumbs_ties-mixed": on_base(
            elementwise.breadcrumbs_ties, weight=WEIGHTS, density=DENSITIES, gamma=0.2, normalize=True
        ),
        "breadcrumbs_ties-l1": on_base(
            elementwise.breadcrumbs_ties, weight=SIGNED, density=0.3, gamma=0.1, rescale=True
        ),
        "breadcrumbs_ties-count": on_base(
            elementwise.breadcrumbs_ties, weight=1, density=0.6, elect="unweighted", divisor="count"
        ),
        "sce": on_base(elementwise.sce),
        "sce-selected": on_base(elementwise.sce, select_topk=0.3),
        "sce-authors": on_base(elementwise.sce, select_topk=0.6, sce_mask_merge=False),
        "sce-uniform": on_base(elementwise.sce, select_topk=0.57, uniform_below=1.0, int8_mask=True),
        "sce-nothing": on_base(elementwise.sce, select_topk=0.0),
    },
    unsure=0.002,
)

# --- norms and distances ----------------------------------------------------------------------------------------------

GRAM = Family(
    {
        "ema": alone(gram.ema, 4, decay=0.7),
        "ema-one": alone(gram.ema, 1, decay=0.7),
        "ema-newest": alone(gram.ema, 3, decay=0.0),
        "ema-oldest": alone(gram.ema, 3, decay=1.0),
        "lawa": alone(gram.lawa, 5),
        "lawa-last": alone(gram.lawa, 5, k=2),
        "expo": on_base(gram.expo, 1, alpha=0.3),
        "expo-back": on_base(gram.expo, 1, alpha=-0.5),
        "nuslerp": on_base(gram.nuslerp, 2, weight=(1, 2)),
        "nuslerp-alone": alone(gram.nuslerp, 2, weight=(0.7, 0.3)),
        "nuslerp-beyond": on_base(gram.nuslerp, 2, weight=(-0.3, 1.3)),
        "multislerp": on_base(gram.multislerp, 3, weight=WEIGHTS),
        "multislerp-alone": alone(gram.multislerp, 5, weight=WEIGHTS),
        "multislerp-sum": on_base(gram.multislerp, 3, weight=(0.5, -0.3, 0.9), normalize_weights=False),
        "multislerp-opposed": alone(gram.multislerp, 2, weight=(1.0, -1.0), normalize_weights=False),
        "multislerp-eps": on_base(gram.multislerp, 3, weight=1, eps=0.05),
        "multislerp-one": on_base(gram.multislerp, 1, weight=3.0),
        "karcher": alone(gram.karcher, 3),
        "karcher-many": alone(gram.karcher, 9, max_iter=50, tol=1e-12),
        "karcher-start": alone(gram.karcher, 3, max_iter=0),
        "karcher-one": alone(gram.karcher, 1),
        "model_stock": on_base(gram.model_stock, 2),
        "model_stock-many": on_base(gram.model_stock, 5),
        "krum": alone(gram.krum, 5),
        "krum-few": alone(gram.krum, 3, f=0),
        "multi_krum": alone(gram.multi_krum, 7),
        "multi_krum-m": alone(gram.multi_krum, 7, f=1, m=4),
        "geometric_median": alone(gram.geometric_median, 3),
        "geometric_median-weights": alone(gram.geometric_median, 5, weight=WEIGHTS, max_iter=500, tol=1e-13),
        "geometric_median-start": alone(gram.geometric_median, 3, weight=WEIGHTS, max_iter=0),
        "norm_clipped_mean": on_base(gram.norm_clipped_mean, 3, weight=WEIGHTS),
        "norm_clipped_mean-number": on_base(gram.norm_clipped_mean, 4, clip=0.01),
        "norm_clipped_mean-nothing": on_base(gram.norm_clipped_mean, 2, clip=0),
        "norm_clipped_mean-all": on_base(gram.norm_clipped_mean, 2, clip=1e30, weight=(1, 3)),
    },
    makers=(family, related, distant),
)

# --- rows, columns and ranks ------------------------------------------------------------------------------------------

ROWS = Family(
    {
        "della": on_base(rows.della, 3, weight=WEIGHTS, density=0.5, **DRAWN),
        "della-mixed": on_base(rows.della, 5, weight=WEIGHTS, density=(0.5, 0.2, 1.0, 0.8, 0.0), epsilon=0.1, **DRAWN),
        "della-paper": on_base(
            rows.della, 2, weight=1, density=0.4, rescale="inverse_probability", epsilon=(0.1, 0.3), **DRAWN
        ),
        "della-bare": on_base(rows.della, 3, weight=SIGNED, density=0.7, rescale=False, normalize=False, **DRAWN),
        "della-unweighted": on_base(
            rows.della, 3, weight=WEIGHTS, density=0.6, elect="unweighted", divisor="count", **DRAWN
        ),
        "della-dense": on_base(rows.della, 3, weight=WEIGHTS, **DRAWN),
        "della_linear": on_base(rows.della_linear, 3, weight=WEIGHTS, density=0.5, **DRAWN),
        "della_linear-negative": on_base(
            rows.della_linear, 2, weight=SIGNED, density=0.3, lambda_=0.7, epsilon=0.0, **DRAWN
        ),
        "della_linear-paper": on_base(
            rows.della_linear, 1, weight=1, density=0.3, rescale="inverse_probability", **DRAWN
        ),
        "della_linear-count": on_base(
            rows.della_linear, 3, weight=WEIGHTS, density=0.3, divisor="count", normalize=True, **DRAWN
        ),
        "della_linear-nothing": on_base(rows.della_linear, 2, weight=1, density=0.0, **DRAWN),
        "arcee_fusion": on_base(rows.arcee_fusion, 1),
        "pcb": on_base(rows.pcb, 3),
        "pcb-one": on_base(rows.pcb, 1, lambda_=1.2),
        "pcb-many": on_base(rows.pcb, 5, ratio=0.4, lambda_=-0.5),
        "pcb-all": on_base(rows.pcb, 2, ratio=1),
        "pcb-nothing": on_base(rows.pcb, 2, ratio=0),
        "widen": on_base(rows.widen, 3),
        "widen-options": on_base(rows.widen, 2, ratio=1.4, calibration=0.7),
        "widen-embedding": on_base(rows.widen, 3, name=EMBEDDING),
        "widen-one": on_base(rows.widen, 1),
        "nuslerp-rows": on_base(rows.nuslerp, 2, weight=(1, 2), nuslerp_flatten=False),
        "nuslerp-rows-alone": alone(rows.nuslerp, 2, weight=(0.7, 0.3), nuslerp_flatten=False),
        "nuslerp-rows-beyond": on_base(rows.nuslerp, 2, weight=(-0.3, 1.3), nuslerp_flatten=False),
        "nuslerp-columns": on_base(rows.nuslerp, 2, weight=(1, 2), nuslerp_flatten=False, nuslerp_row_wise=True),
        "nuslerp-columns-alone": alone(rows.nuslerp, 2, weight=(3, 1), nuslerp_flatten=False, nuslerp_row_wise=True),
        "model_stock-rows": on_base(rows.model_stock, 2, filter_wise=True),
        "model_stock-rows-many": on_base(rows.model_stock, 5, filter_wise=True),
    },
    makers=(family, related),
    shapes=((4, 3, 5), (1, 9), (9, 1), (2, 4099), (300, 2)),
    unsure=0.003,
)

# --- matrices ---------------------------------------------------------------------------------------------------------

DENSE = Family(
    {
        "tsv": on_base(dense.tsv, 3),
        "tsv-weights": on_base(dense.tsv, 2, weight=(0.7, -0.4), lambda_=0.5),
        "tsv-one": on_base(dense.tsv, 1),
        "tsv-many": on_base(dense.tsv, 9),
        "iso_c": on_base(dense.iso_c, 3),
        "iso_c-weights": on_base(dense.iso_c, 2, weight=(1.0, 0.3), lambda_=0.7),
        "iso_cts": on_base(dense.iso_cts, 3),
        "iso_cts-none": on_base(dense.iso_cts, 3, common=0),
        "iso_cts-all": on_base(dense.iso_cts, 2, common=1, weight=(1.0, 0.3)),
        "iso_cts-half": on_base(dense.iso_cts, 5, common=0.5, lambda_=2.0),
        "knots": on_base(dense.knots, 3),
        "knots-trimmed": on_base(dense.knots, 4, density=(0.3, 0.5, 1.0, 0.0), weight=WEIGHTS),
        "knots-sum": on_base(dense.knots, 3, merge="task_arithmetic", weight=(0.5, -0.3, 0.9)),
        "knots-one": on_base(dense.knots, 1, density=0.2),
        "wudi": on_base(dense.wudi, 3),
        "wudi-one": on_base(dense.wudi, 1, lambda_=0.5),
        "wudi-many": on_base(dense.wudi, 7),
    },
    makers=(far,),
    shape=(40, 23),
    shapes=((31, 31), (24, 120), (3, 7), (1, 9), (9, 1), (50,), (4, 5, 6), ()),
    check=check_matrix,
)

FAMILIES = (WEIGHTED, ELEMENTWISE, GRAM, ROWS, DENSE)
CASES = {name: row._replace(name=name, family=f) for f in FAMILIES for name, row in f.rows.items()}


def main_cases() -> list[Case]:
    """One for each method."""
    return [case for name, case in CASES.items() if "-" not in name]


def cases_of(*families: Family) -> list[Case]:
    return [case for case in CASES.values() if any(case.family is f for f in families)]
