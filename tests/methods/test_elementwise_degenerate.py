"""Methods that work on each element by itself on degenerate inputs, at their bounds, and what they refuse."""

import oracles
import pytest
import torch
import warpmerge as wm
from helpers import array, llama, read_model, write_model
from kernel_helpers import DTYPES, assert_same_bits, family
from oracles import assert_accurate
from test_elementwise_methods import EVERY, expected, merged
from test_gram_degenerate import DEGENERATE
from warpmerge.errors import CheckpointError, UsageError

NAN, INF = float("nan"), float("inf")


def called(case, tensors, base, **options):
    models, given, make = EVERY[case]
    return merged(case, tensors, base if given else None, **(make(models) | options))


# Squares of subnormal numbers vanish, and so do digits of their products; at 120 degrees variances are the same but for
# the rounding of the models.
UNLIKE = {"subnormal": ("sce", "consensus_ta-weights"), "at 120 degrees": "sce-"}
PAIRS = [(c, k) for c in EVERY for k in DEGENERATE if "huge" not in k and not c.startswith(UNLIKE.get(k, "-"))]


@pytest.mark.parametrize(("case", "kind"), PAIRS)
def test_degenerate(case, kind):
    """No error, no NaN, the same shape, and what the oracle says."""
    models, given, make = EVERY[case]
    tensors = [DEGENERATE[kind][i % 3].clone() for i in range(models)]
    for base in [torch.zeros_like(tensors[0]), torch.ones_like(tensors[0])] if given else [None]:
        if base is not None and base.any():
            tensors = [t + base for t in tensors]
        got = merged(case, tensors, base, **make(models))
        assert (got.shape, got.dtype) == (tensors[0].shape, torch.float32)
        operands = (tensors, base) if given else (tensors,)
        assert_accurate(got, expected(case, *operands, **make(models)))


@pytest.mark.parametrize("case", EVERY)
def test_huge_values(case):
    models, given, make = EVERY[case]
    tensors = [DEGENERATE["huge"][i % 3] for i in range(models)]
    if case.startswith("sce"):
        with pytest.raises(CheckpointError, match="'w' has deltas whose squares overflow"):
            merged(case, tensors, torch.zeros(2), **make(models), name="w")
    else:
        assert merged(case, tensors, torch.zeros(2) if given else None, **make(models)).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", EVERY)
def test_a_frozen_tensor_keeps_its_bits(case, dtype):
    """Also -0, subnormals; and NaN, as in a mask."""
    models = EVERY[case][0]
    values = torch.tensor([-0.0, 0.0, 0.1, -6e-8, 3.0, 1e-45, -7.7], dtype=torch.float64)
    nan = torch.tensor([NAN, -INF, -0.0, 1.0])
    for frozen in (values, values * 1e-10, values * 0, nan, values[:1], values[:0], values[2]):
        frozen = frozen.to(DTYPES[dtype])
        assert_same_bits(called(case, [frozen.clone() for _ in range(models)], frozen.clone()), frozen)


@pytest.mark.parametrize("case", ["magmax", "consensus_ta", "breadcrumbs", "breadcrumbs_ties-mixed"])
def test_a_lambda_of_zero_gives_the_base(case):
    base, tensors = family("bf16", 3, (31, 41))
    base[0, :2] = torch.tensor([-0.0, 1e-40])
    assert_same_bits(called(case, tensors, base, lambda_=0.0), base)


@pytest.mark.parametrize("case", ["breadcrumbs", "breadcrumbs_ties"])
def test_a_density_of_zero_gives_the_base(case):
    base, tensors = family("bf16", 3, (31, 41))
    assert_same_bits(called(case, tensors, base, density=0.0), base)
    only = called(case, tensors, base, density=[0.0, 0.4, 0.0], gamma=0.1)
    assert_same_bits(only, merged(case, [tensors[1]], base, weight=0.33, density=0.4, gamma=0.1))


@pytest.mark.parametrize("case", ["median", "trimmed_mean-most", "magmax", "ram", "ramplus_tl", "emr", "sce"])
def test_one_model_is_itself(case):
    base, (x,) = family("fp32", 1, (31, 41))
    options = {"lambda_": 1.0} if case == "magmax" else {"epsilon": 0.0} if "ram" in case else {}
    options |= {"beta": 0.3} if case.startswith("trimmed") else {}
    wanted = merged("task_arithmetic", [x], base, weight=1) if EVERY[case][1] else x
    assert_same_bits(merged(case, [x], base if EVERY[case][1] else None, **options), wanted)


@pytest.mark.parametrize("case", EVERY)
def test_models_that_are_alike(case):
    """Sums of them, their mean, or nothing where only differences count."""
    models, given, _ = EVERY[case]
    base, (x,) = family("fp32", 1, (31, 41))
    options = {"epsilon": 0} if case == "ram" else {}
    got = called(case, [x.clone() for _ in range(models)], base, **options)
    if not given:
        assert_same_bits(got, x)
    elif case in ("sce-selected", "sce-uniform", "sce-nothing"):
        assert_same_bits(got, base)
    elif case in ("ram", "emr", "emr-first", "emr-last", "sce"):
        assert_accurate(got, oracles.task_arithmetic([x], base, weight=1))


# --- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EVERY)
def test_what_is_not_finite(case):
    """An error by default; else it shows where it is, or counts as unchanged."""
    models, given, _ = EVERY[case]
    base, tensors = family("bf16", models, (31, 41))
    clean = [t.clone() for t in tensors]
    tensors[-1][3, 5], tensors[0][7, 0] = NAN, -INF
    with pytest.raises(CheckpointError, match=r"NaN or infinite elements: [12] of 1,271 in"):
        called(case, tensors, base)
    shown = called(case, tensors, base, nonfinite="propagate")
    # A NaN is the largest of all changes, and breadcrumbs drops those.
    dropped = case.startswith("breadcrumbs") and not case.endswith("dense")
    if case in ("breadcrumbs-mixed", "breadcrumbs_ties-mixed", "breadcrumbs-l1"):
        dropped = False  # the last model's density is 1
    assert bool(shown[3, 5].isnan()) != dropped
    assert shown[0, 0].isfinite() and int((~shown.isfinite()).sum()) <= 2
    if not given:
        with pytest.raises(UsageError, match="no base to take elements from"):
            called(case, tensors, base, nonfinite="base")
        return
    clean[-1][3, 5], clean[0][7, 0] = base[3, 5], base[7, 0]
    assert_same_bits(called(case, tensors, base, nonfinite="base"), called(case, clean, base))


@pytest.mark.parametrize("case", ["median", "trimmed_mean-most", "magmax", "magmax-first", "emr", "ram", "nearswap"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_nan_shows_whoever_has_it(case, first):
    models = EVERY[case][0]
    tensors = [torch.tensor([1.0, 2.0, 3.0]) * (k + 1) for k in range(models)]
    tensors[first % models][1] = NAN
    got = called(case, tensors, torch.zeros(3), nonfinite="propagate")
    assert got.isnan().tolist() == [False, True, False]


def test_infinities_that_win_or_lose():
    base = torch.zeros(1)
    tensors = [torch.tensor([v]) for v in (1.0, INF, -2.0)]
    options = {"nonfinite": "propagate"}
    assert merged("median", tensors, **options).tolist() == [1]
    assert merged("magmax", tensors, base, **options).tolist() == [INF]
    assert merged("emr", tensors, base, **options).tolist() == [INF]
    assert merged("nearswap", tensors[1:2], base, t=0.5, **options).tolist() == [0.5]


# --- bounds and equal values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_breadcrumbs_keep_the_first_of_equal_magnitudes(dtype):
    """Ten changes of three sizes: those of one size go by their place, at both ends of what is kept."""
    x = torch.tensor([1, -2, 3, 2, -1, 3, 2, -3, 2, 1], dtype=dtype)
    base = torch.zeros_like(x)
    for density, gamma, kept in [
        (0.4, 0.1, [5, 7, 1, 3]),  # without the first 3, both others, the first two 2
        (0.3, 0.3, [1, 3, 6]),
        (0.3, 0.4, [3, 6, 8]),
        (0.5, 0.5, [6, 8, 0, 4, 9]),
        (0.7, 0.8, [1, 3, 6, 8, 0, 4, 9]),  # more than there are: fewer of the largest are dropped
        (0.1, 0.0, [2]),
        (0.05, 0.2, [7]),  # a density above 0 keeps one
        (1.0, 0.9, list(range(10))),
    ]:
        wanted = torch.zeros_like(x)
        wanted[kept] = x[kept]
        assert_same_bits(merged("breadcrumbs", [x], base, weight=1, density=density, gamma=gamma), wanted)
        assert_same_bits(merged("breadcrumbs_ties", [x], base, weight=1, density=density, gamma=gamma), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sce_selects_the_first_of_equal_variances(dtype):
    """Whatever the order of the models that make a variance: one differs by 3, others by 1 or not at all."""
    rows = [[1, 0, 0, 2, 3, 0, 1, 0], [0, 1, 0, 2, 0, 0, 0, 0], [0, 0, 1, 2, 0, 3, 1, 0]]
    tensors = [torch.tensor(r, dtype=dtype) for r in rows]
    base = torch.zeros(8, dtype=dtype)
    for share, kept in [(0.2, [4]), (0.34, [4, 5]), (0.5, [4, 5, 0]), (0.7, [4, 5, 0, 1]), (0.99, [4, 5, 0, 1, 2])]:
        got = merged("sce", tensors, base, select_topk=share)
        assert torch.nonzero(got).flatten().tolist() == sorted(kept)


def test_bounds_are_strict():
    base = torch.zeros(3)
    x, other = torch.tensor([0.25, 0.5, -0.25]), torch.tensor([1.0, 1.0, 1.0])
    assert merged("ram", [x, other], base, epsilon=0.25).tolist() == [1, 0.75, 1]
    got = merged("consensus_ta", [x, other], base, k=2, mask_lambda=[0.25, 0.0])
    assert got.tolist() == [0, 1.5, 0]
    assert merged("nearswap", [x], base, t=0.25).tolist() == [0.25, 0.25, -0.25]


def test_votes_and_magnitudes_that_are_equal():
    base = torch.zeros(3)
    x, y = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-1.0, 2.0, 0.0])
    assert merged("emr", [x, y], base).tolist() == [-1, -2, 0]
    assert merged("emr", [x, y], base, task=1).tolist() == pytest.approx([0, -3, 0])
    assert merged("sce", [x, y], base).tolist() == [1, 2, 0]
    assert merged("magmax", [x, y], base).tolist() == [-0.5, 1, 0]
    assert merged("magmax", [x, y], base, ties="first_model").tolist() == [0.5, -1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_that_overflow_have_a_mean(dtype):
    """Of the largest numbers; the sums of smaller ones in other elements are divided as ever."""
    most = torch.finfo(dtype).max
    small = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = torch.tensor([0.99, 1, -1, 1, 0.98, 1], dtype=torch.float64)
    for sign in (1, -1):
        tensors = [torch.stack([sign * f * most, s]).to(dtype) for f, s in zip(factors, small, strict=True)]
        for case, options, middle in (("median", {}, slice(2, 4)), ("trimmed_mean", {"beta": 0.2}, slice(1, 5))):
            values = torch.stack(tensors).sort(dim=0).values[middle]
            got = merged(case, tensors, **options)
            assert_same_bits(got[1], sum(values[1:, 1], start=values[0, 1]) / len(values))
            torch.testing.assert_close(got[0], (values[:, 0] / len(values)).sum(), rtol=1e-6, atol=0)
    alike = [torch.full((1,), most * f, dtype=dtype) for f in (0.5, *[1] * 19)]
    assert merged("trimmed_mean", alike, beta=0.05).item() == most  # 18 times an 18th of it is more when rounded


def test_infinities_in_a_mean_of_the_middle():
    tensors = [torch.tensor([v, w]) for v, w in ((INF, INF), (INF, -INF), (1.0, INF), (0.0, -INF))]
    got = merged("median", tensors, nonfinite="propagate")
    assert got[0] == INF and got[1].isnan()


def test_signs_of_zero_in_a_median():
    tensors = [torch.tensor([v]) for v in (-0.0, 0.0, -0.0)]
    assert merged("median", tensors).item() == 0
    assert_same_bits(merged("median", [tensors[0]] * 3), tensors[0])


# --- what is refused, and recipes -------------------------------------------------------------------------------------

ONE = torch.tensor([1, 2, -2, 0.5])
REFUSED = [
    ("median", 3, {"even": "upper"}, "expected one of mean, lower, got 'upper'"),
    ("median", 3, {"weight": 1}, "no parameter 'weight'"),
    ("trimmed_mean", 3, {}, "needs the parameter 'beta'"),
    ("trimmed_mean", 3, {"beta": -0.1}, r"'beta': expected a number in \[0, 0.5\]"),
    ("trimmed_mean", 3, {"beta": 0.6}, r"'beta': expected a number in \[0, 0.5\]"),
    (
        "trimmed_mean",
        4,
        {"beta": 0.5},
        "beta: 0.5 drops half of the models at each end; choose a beta below 0.5, or use",
    ),
    ("trimmed_mean", 3, {"beta": 0.5}, "beta: 0.5 drops half of the models at each end"),
    ("nearswap", 1, {}, "needs the parameter 't'"),
    ("nearswap", 1, {"t": -1e-4}, "'t': expected a number >= 0"),
    ("nearswap", 2, {"t": 1}, "exactly 1 model besides the base"),
    ("magmax", 2, {"ties": "lowest_index"}, "expected one of last_model, first_model"),
    ("ram", 2, {"epsilon": -1}, "'epsilon': expected a number >= 0"),
    ("ramplus_tl", 2, {"alpha": -0.2}, "'alpha': expected a number >= 0"),
    ("ramplus_tl", 2, {"overlap": "all"}, "expected one of unique, changed"),
    (
        "consensus_ta",
        1,
        {},
        "k is 2, but there is only 1 model, so no element would be kept; list more models or lower k",
    ),
    ("consensus_ta", 2, {"k": 3}, "k is 3, but there are only 2 models"),
    ("consensus_ta", 2, {"k": -1}, "integer >= 0"),
    ("consensus_ta", 2, {"mask_lambda": [0.4, -0.4]}, "'mask_lambda'"),
    ("emr", 2, {"task": 3}, "task is 3, but there are only 2 models; models are counted from 1"),
    ("emr", 2, {"task": 0}, "integer >= 1"),
    ("breadcrumbs", 2, {}, "needs the parameter 'weight'"),
    ("breadcrumbs", 2, {"weight": 1, "gamma": 1.5}, r"'gamma': expected a number in \[0, 1\]"),
    ("breadcrumbs", 2, {"weight": 1, "density": -0.1}, "'density'"),
    ("breadcrumbs_ties", 2, {"weight": [1, -1], "normalize": True}, "negative weight"),
    ("sce", 257, {}, "1-256 models besides the base, got 257"),
    ("sce", 2, {"select_topk": 1.1}, r"'select_topk': expected a number in \[0, 1\]"),
    ("sce", 2, {"uniform_below": -1}, "'uniform_below'"),
]


@pytest.mark.parametrize(("method", "models", "parameters", "message"), REFUSED)
def test_what_is_refused(method, models, parameters, message):
    with pytest.raises(UsageError, match=message):
        wm.merge_tensors([ONE] * models, method, base=ONE, **parameters)


@pytest.mark.parametrize("method", ["breadcrumbs", "sce", "emr", "magmax", "ram", "ramplus_tl", "consensus_ta"])
def test_a_base_is_needed(method):
    with pytest.raises(UsageError, match="needs a base"):
        wm.merge_tensors([ONE] * 2, method, **({"weight": 1} if method == "breadcrumbs" else {}))


@pytest.mark.parametrize("case", [c for c in EVERY if "-" not in c])
def test_files_and_pools(case, tmp_path):
    """From files, in memory and in a pool: the same bits."""
    models, _, make = EVERY[case]
    names, method, parameters = ["a", "b", "c"][:models], case, make(models)
    for seed, name in enumerate(["base", *names]):
        write_model(tmp_path / name, llama(seed), shards=2)
    by_model = {n: v for n, v in parameters.items() if isinstance(v, list)}
    entries = [
        {"model": str(tmp_path / name), "parameters": {n: v[k] for n, v in by_model.items()}}
        for k, name in enumerate(names)
    ]
    document = {
        "merge_method": method,
        "base_model": str(tmp_path / "base"),
        "models": entries,
        "parameters": {n.rstrip("_"): v for n, v in parameters.items() if n not in by_model},
    }
    wm.merge(document, tmp_path / "out", sync=False)
    files = {name: torch.from_numpy(array(raw).copy()) for name, raw in read_model(tmp_path / "out").items()}
    base, *tuned = ({n: torch.from_numpy(v) for n, v in llama(k).items()} for k in range(models + 1))
    in_memory = wm.merge_state_dicts(tuned, method, base=base, **parameters)
    with wm.Pool(base, tuned) as pool:
        pooled = pool.merge(method, **parameters)
    for name in base:
        assert_same_bits(in_memory[name], files[name], name)
        assert_same_bits(pooled[name], files[name], name)
