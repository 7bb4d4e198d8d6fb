"""Cases of methods that keep a part of each delta: by magnitude, at random, by rank, or where models differ."""

from typing import Any

from digests.cases import WEIGHTS, Case, Table, case, slow

DENSITIES = (0.3, 1.0, 0.0, 0.6, 0.05, 0.5, 0.9, 0.2, 1.0)
GAMMAS = (0.1, 0.3, 0.0, 0.5, 0.01, 0.2, 0.2, 0.2, 0.2)
EPSILONS = (0.1, 0.15, 0.0, 0.3, 0.02, 0.1, 0.05, 0.1, 0.1)
NEGATIVE = (-0.5, 0.25, 0.75, -0.3, 0.2, 0.6, 0.1, 0.4, 0.35)
ZERO_SUM = (1.0, -1.0, 0.5, -0.5, 0.0, 0.25, -0.25, 2.0, -2.0)
TINY, NEARLY_ALL = 1e-7, 1 - 1e-7


def summed(**sparse: Any) -> dict[str, Case]:
    """What a sum without an election can be divided by; `sparse`: parameters that keep a part."""
    return {
        "by weights": case(normalize=True, **sparse),
        "by zero": case(divisor="weights", weight=ZERO_SUM, **sparse),
        "by count": case(divisor="count", **sparse),
        "lambda": case(lambda_=0.3, int8_mask=True, **sparse),
    }


def elected(**sparse: Any) -> dict[str, Case]:
    """Elections and what they divide by."""
    return {
        "unweighted": case(elect="unweighted", **sparse),
        "unweighted count": case(elect="unweighted", divisor="count", **sparse),
        "by weights": case(divisor="weights", **sparse),
        "by zero": case(divisor="weights", weight=(0.0, 0.5, 0.0, 0.25, 0.0, 0.0, 1.0, 0.0, 0.0), **sparse),
        "by count": case(divisor="count", **sparse),
        "not normalized": case(normalize=False, **sparse),
        "negative": case(divisor="none", weight=NEGATIVE, **sparse),
        "negative count": case(divisor="count", weight=NEGATIVE, elect="unweighted", **sparse),
        "lambda": case(lambda_=-0.7, int8_mask=True, **sparse),
    }


def densities(**more: Any) -> dict[str, Case]:
    """Every way to keep a part, all and nothing."""
    return {
        "half": case(density=0.5, **more),
        "all": case(density=1.0, **more),
        "none": case(density=0.0, **more),
        "tiny": case(density=TINY, **more),
        "nearly all": case(density=NEARLY_ALL, **more),
        "various": case(density=DENSITIES, **more),
    }


def rescaled(name: str, **more: Any) -> dict[str, Case]:
    """Both ways to make up for what was dropped, and none. `name`: of the second one."""
    return {
        "l1": case(density=DENSITIES, rescale="l1", **more),
        name.replace("_", " "): case(density=DENSITIES, rescale=name, **more),
        "not rescaled": case(density=DENSITIES, rescale=False, **more),
    }


def drawn(cases: dict[str, Case]) -> dict[str, Case]:
    """The same, and the first of them with other seeds."""
    first = next(iter(cases.values()))
    return {**cases, "seed 7": first._replace(seed=7), "seed -1": first._replace(seed=-1)}


def presets(*names: str, **parameters: Any) -> dict[str, Case]:
    return {name: case(semantics=name, **parameters) for name in names}


TIES = {
    **densities(),
    **rescaled("inverse_density"),
    "all ties": case(density=0.3, ties="keep_all"),
    "all ties l1": case(density=DENSITIES, ties="keep_all", rescale="l1"),
    **elected(density=0.4),
    "ballots": case(density=0.4, rescale="l1", elect="unweighted"),
    "majority": case(density=0.5, cancelled="majority"),
    "majority of all": case(cancelled="majority", elect="unweighted"),
    "majority l1": case(density=DENSITIES, cancelled="majority", rescale="l1"),
    "minority": case(cancelled="majority", weight=NEGATIVE, divisor="none"),
    "paper": slow(semantics="paper", density=0.2, weight=None),
    "paper, each tensor": case(semantics="paper", density=0.2, weight=None, scope="tensor"),
    **presets("peft", "mergekit", density=0.2),
    "model half": slow(density=0.5, scope="model"),
    "model all": slow(scope="model"),
    "model none": slow(density=0.0, scope="model"),
    "model various": slow(density=DENSITIES, scope="model"),
    "model all ties": slow(density=0.3, ties="keep_all", scope="model"),
    "model l1": slow(density=0.4, rescale="l1", scope="model"),
    "model inverse": slow(density=0.4, rescale="inverse_density", scope="model"),
    "model majority": slow(density=0.5, cancelled="majority", scope="model"),
}

CRUMBS = {
    "band": case(density=0.6, gamma=0.2),
    "default": case(),
    "all": case(density=1.0, gamma=0.3),
    "no largest": case(density=0.5, gamma=0.0),
    "no smallest": case(density=0.75, gamma=0.25),
    "too much": case(density=0.8, gamma=0.5),
    "none": case(density=0.0),
    "tiny": case(density=TINY, gamma=0.5),
    "various": case(density=DENSITIES, gamma=GAMMAS),
    "l1": case(density=DENSITIES, gamma=GAMMAS, rescale="l1"),
    "inverse": case(density=DENSITIES, gamma=GAMMAS, rescale="inverse_density"),
}

DELLA = {
    "half": case(density=0.5),
    "all": case(density=1.0),
    "none": case(density=0.0),
    "flat": case(density=0.4, epsilon=0.0),
    "steep": case(density=0.5, epsilon=0.49),
    "various": case(density=DENSITIES, epsilon=EPSILONS),
    "not rescaled": case(density=DENSITIES, epsilon=EPSILONS, rescale="false"),
    "inverse": case(density=0.5, rescale="inverse_probability"),
    "inverse various": case(density=DENSITIES, epsilon=EPSILONS, rescale="inverse_probability"),
    "inverse flat": case(density=0.4, epsilon=0.0, rescale="inverse_probability"),
    "inverse seed 7": case(density=0.5, rescale="inverse_probability", seed=7),
    **presets("paper", density=0.5),
}

SCE = {
    "some": case(select_topk=0.3),
    "all": case(),
    "none": case(select_topk=0.0),
    "tiny": case(select_topk=TINY),
    "nearly all": case(select_topk=NEARLY_ALL),
    "weights only": case(select_topk=0.3, sce_mask_merge=False),
    "all, weights only": case(sce_mask_merge=False, int8_mask=True),
    "uniform": case(select_topk=0.3, uniform_below=1e6),
    "uniform of all": case(uniform_below=1e6),
    "mergekit": case(select_topk=0.5, uniform_below=1e-6),
    "authors": case(semantics="authors", select_topk=0.1),
}


def table(cases: dict[str, Case]) -> Table:
    return Table(cases, common={"weight": WEIGHTS})


TABLES = {
    "ties": table(TIES),
    "dare_linear": table(
        drawn(
            {
                **densities(),
                **rescaled("inverse_density"),
                **summed(density=0.4),
                **presets("peft", density=0.3),
                "paper": case(semantics="paper", density=0.3, weight=None),
            }
        )
    ),
    "dare_ties": table(
        drawn(
            {
                **densities(),
                **rescaled("inverse_density"),
                **elected(density=0.4),
                **presets("peft", density=0.3),
                "paper": case(semantics="paper", density=0.3, weight=None),
            }
        )
    ),
    "breadcrumbs": table(
        {**CRUMBS, **summed(density=0.6, gamma=0.1), "paper": case(semantics="paper", density=0.4, weight=None)}
    ),
    "breadcrumbs_ties": table({**CRUMBS, **elected(density=0.6, gamma=0.1, rescale="l1")}),
    "della": table(
        drawn(
            {
                **DELLA,
                **elected(density=0.4),
                "inverse ballots": case(density=0.5, rescale="inverse_probability", elect="unweighted"),
            }
        )
    ),
    "della_linear": table(drawn({**DELLA, **summed(density=0.4)})),
    "sce": Table(SCE),
}
