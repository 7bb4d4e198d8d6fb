"""What holds for every method: one test for each statement, over the table of method_table.py."""

import itertools

import oracles
import pytest
import torch
import warpmerge as wm
from helpers import array, llama, read_model, write_model
from kernel_helpers import ALL_DTYPES, DTYPES, assert_same_bits, cpu, family, reference, run, task, values_of
from method_cases import SHAPE, distant, related
from method_table import CASES, DENSE, ELEMENTWISE, GRAM, ROWS, WEIGHTED, cases_of, main_cases
from odd_inputs import FROZEN, INF, NAN, ODD, odd_tensors
from warpmerge.errors import CheckpointError, UsageError
from warpmerge.methods import REGISTRY, Base, find

AUXILIARY = {"fisher", "regmean"}  # test_auxiliary_methods.py has them


def each(cases=None):
    """A test for each case, of all or of some."""
    return pytest.mark.parametrize("case", cases or list(CASES.values()), ids=lambda case: case.name)


def test_every_method_has_a_case():
    built_in = {name for name, method in REGISTRY.items() if method.built_in}
    assert {case.method for case in main_cases()} == built_in - AUXILIARY


def test_every_method_says_what_it_does():
    for case in main_cases():
        method = find(case.method)
        assert method.summary.endswith("."), case.method
        assert method.paper or method.notes or case.method == "passthrough", case.method


# --- results ----------------------------------------------------------------------------------------------------------


@each()
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_equals_the_oracle(case, dtype):
    """All numbers of models in two dtypes: what a dtype changes does not depend on them."""
    numbers = case.models if dtype in ("bf16", "fp32") else [case.few]
    for models, make in itertools.product(numbers, case.family.makers):
        base, tensors = make(dtype, models, case.family.shape)
        case.family.check(case, tensors, base, case.family.unsure)


@each(cases_of(ROWS, DENSE))
def test_shapes(case):
    """Small tensors have few elements, so one that is near a threshold is a large share of them."""
    for shape in case.family.shapes:
        base, tensors = case.family.makers[0]("fp32", case.few, shape)
        case.family.check(case, tensors, base, 0.04)


@each()
def test_same_bits_on_every_backend(case):
    """The CPU in the smallest tiles, by two threads, and the reference. Inputs are ordinary, odd or not finite."""
    made = []
    # Sums of other numbers of models: engine/test_equality.py.
    for models in case.models if case.family is not WEIGHTED else [case.few]:
        shapes = [(0,), (1,), (7,), (3, 4, 65), (40, 1), SHAPE] if models == case.few else [(13, 83)]
        for dtype, shape in itertools.product(ALL_DTYPES, shapes):
            if dtype in ("bf16", "fp32", "mixed64") or shape == SHAPE:
                base, tensors = family(dtype, models, shape)
                made.append((tensors, base, "error"))
        base, tensors = spoiled("fp32", models)
        made.append((tensors, base, "base" if case.base else "propagate"))
        made.append((tensors, base, "propagate"))
    for kind in ODD:
        tensors = odd_tensors(kind, case.few)
        if "huge" not in kind:
            made.append((tensors, torch.ones_like(tensors[0]) / 3, "error"))

    def results(backend):
        return run(backend, *(task_of(case, *one) for one in made))

    for one, other, (tensors, *_) in zip(results(cpu(threads=2, tile=512)), results(reference()), made, strict=True):
        assert_same_bits(one, other, (len(tensors), one.dtype, one.shape))


def task_of(case, tensors, base, nonfinite="error"):
    return task(case.method, tensors, base if case.base else None, nonfinite=nonfinite, **case.given(len(tensors)))


@each()
def test_passes_are_the_requests_that_are_made(case):
    base, tensors = family("fp32", case.few, (13, 17))
    asked = []

    class Counting(type(reference())):
        def launch(self, work):
            asked.extend(request for _, request in work)
            return super().launch(work)

    run(Counting(), task_of(case, tensors, base))
    assert len(asked) == find(case.method).passes(values_of(case.method, case.few, without_name(case)))


def without_name(case):
    return {name: value for name, value in case.given(case.few).items() if name not in ("name", "seed")}


@each(main_cases())
def test_files_tensors_and_pools_give_the_same(case, tmp_path):
    names = ["base", *"abcdefg"[: case.few]]
    state_dicts = [llama(seed) for seed in range(len(names))]
    for name, tensors in zip(names, state_dicts, strict=True):
        write_model(tmp_path / name, tensors, shards=2)
    parameters = without_name(case)
    per_model = {n: v for n, v in parameters.items() if isinstance(v, list)}
    models = [
        {"model": str(tmp_path / name), "parameters": {n: v[k] for n, v in per_model.items()}}
        for k, name in enumerate(names[1:])
    ]
    document = {
        "merge_method": case.method,
        "models": models,
        "parameters": {n.rstrip("_"): v for n, v in parameters.items() if n not in per_model},
    }
    endpoint = find(case.method).base is Base.ENDPOINT
    if case.base or endpoint:
        document["base_model"] = str(tmp_path / ("a" if endpoint else "base"))
    wm.merge(document, tmp_path / "out", sync=False)
    files = {name: torch.from_numpy(array(raw).copy()) for name, raw in read_model(tmp_path / "out").items()}
    base, *tuned = ({n: torch.from_numpy(v) for n, v in tensors.items()} for tensors in state_dicts)
    base = base if case.base else None
    in_memory = wm.merge_state_dicts(tuned, case.method, base=base, **parameters)
    with wm.Pool(base, tuned) as pool:
        pooled = pool.merge(case.method, **parameters)
    for name, wanted in files.items():
        assert_same_bits(in_memory[name], wanted, name)
        assert_same_bits(pooled[name], wanted, name)
        alone = wm.merge_tensors(
            [t[name] for t in tuned], case.method, base=base and base[name], name=name, **parameters
        )
        assert_same_bits(alone, wanted, name)
    assert any(not torch.equal(files[name], t) for name, t in tuned[-1].items()) or case.method == "passthrough"


# --- degenerate inputs ------------------------------------------------------------------------------------------------


# Where the oracle's own rule is a quotient of roundings: squares of small numbers vanish, variances or changes that are
# the same differ by the rounding of the models, votes cancel. By the start of a case's name.
UNLIKE = {
    "ties-count": ("subnormal",),
    "consensus_ta": ("subnormal", "tiny rows beside huge ones"),
    "sce": ("subnormal", "tiny", "at 120 degrees"),
    "karcher-many": ("subnormal",),
    # The distance to a model that is so much longer does not tell the angle.
    **dict.fromkeys(("multislerp", "karcher", "model_stock-many"), ("tiny rows beside huge ones",)),
    "della-mixed": ("subnormal",),
    "arcee_fusion": ("huge",),
    "pcb": ("one row is the same", "one column", "subnormal", "tiny"),
    "widen": ("parallel", "antiparallel", "a vector of one", "no dimension", "huge", "tiny rows beside huge ones"),
    "kno": ("all but one zero",),
    **dict.fromkeys(("tsv", "iso_c", "knots", "wudi"), ("subnormal",)),
}


@each()
def test_degenerate_inputs(case):
    """No error, no NaN, the same shape, and what the oracle says."""
    unlike = {kind for start, kinds in UNLIKE.items() if case.name.startswith(start) for kind in kinds}
    for kind in ODD:
        tensors = odd_tensors(kind, case.few)
        for base in (torch.zeros_like(tensors[0]), torch.ones_like(tensors[0]))[: 1 + case.base]:
            moved = [t + base for t in tensors]
            if case.method == "sce" and "huge" in kind:
                with pytest.raises(CheckpointError, match="'w' has deltas whose squares overflow"):
                    case.merged(moved, base, name="w")
                continue
            got = case.merged(moved, base)
            assert (got.shape, got.dtype) == (base.shape, torch.float32), kind
            assert got.isfinite().all() or (kind == "huge" and case.family in (GRAM, ROWS)), kind
            if got.numel() and kind not in unlike:
                case.family.check(case, moved, base, 0.0, oracles.SPHERICAL)


# A sum that is none of the models, even where they are all the same.
SUMS = ("linear-sum", "passthrough-", "multislerp-sum", "multislerp-opposed")


@each([case for case in CASES.values() if not case.name.startswith(SUMS)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frozen_tensor_keeps_its_bits(case, dtype):
    for values in FROZEN:
        frozen = values.to(DTYPES[dtype])
        # One model and no base: there is nothing that it could be the same as.
        if frozen.isfinite().all() or case.few > 1 or case.base:
            assert_same_bits(case.merged([frozen.clone() for _ in range(case.few)], frozen.clone()), frozen)


@each([case for case in CASES.values() if case.base and "lambda" in find(case.method).by_name])
def test_no_lambda_is_the_base(case):
    base, tensors = family("bf16", case.few, (31, 41))
    base[0, :2] = torch.tensor([-0.0, 1e-40])
    assert_same_bits(case.merged(tensors, base, lambda_=0.0), base)


# --- what is not finite -----------------------------------------------------------------------------------------------


def spoiled(dtype, models):
    """NaN in the last model, infinity in the first."""
    base, tensors = family(dtype, models, (31, 41))
    tensors[-1][3, 5], tensors[0][7, 0] = NAN, -INF
    return base, tensors


@each()
def test_what_is_not_finite_is_an_error(case):
    base, tensors = spoiled("bf16", case.few)
    with pytest.raises(CheckpointError, match=r"[12] of 1,271 in"):
        case.merged(tensors, base)


@each()
def test_what_is_not_finite_counts_as_unchanged(case):
    base, tensors = spoiled("bf16", case.few)
    if not case.base:
        with pytest.raises(UsageError, match="no base to take elements from"):
            case.merged(tensors, base, nonfinite="base")
        return
    repaired = [torch.where(t.isfinite(), t, base) for t in tensors]
    assert_same_bits(case.merged(tensors, base, nonfinite="base"), case.merged(repaired, base))


@each(cases_of(ELEMENTWISE, ROWS, DENSE))
def test_what_is_not_finite_spoils_its_element_only(case):
    """NaN shows, unless its element is dropped: by chance, or as breadcrumbs drops the largest changes."""
    base, tensors = spoiled("fp32", case.few)
    got = case.merged(tensors, base, nonfinite="propagate")
    elsewhere = torch.ones(31, 41, dtype=torch.bool)
    elsewhere[3, 5] = elsewhere[7, 0] = False
    assert got[elsewhere].isfinite().all()
    drops = case.method.startswith(("breadcrumbs", "della"))
    if not drops:
        assert got[3, 5].isnan()


# --- symmetries -------------------------------------------------------------------------------------------------------

# Methods that tell models apart: by their order, by the numbers that are drawn for each, or as two ends.
ORDERED = ("ema", "lawa", "emr-", "magmax-first", "breadcrumbs-gammas", "dare_", "della", "slerp", "passthrough")
# With one neighbour each, two models always tie for Krum.
SYMMETRIC = [c for c in CASES.values() if not c.name.startswith((*ORDERED, "krum-few")) and max(c.models) > 1]


@each(SYMMETRIC)
def test_the_order_of_the_models_does_not_matter(case):
    """Coefficients do not depend on it at all; the sum is rounded in another order."""
    models = max((k for k in case.models if k <= 7), default=case.few)
    base, tensors = (distant if case.family is GRAM else related)("fp64", models)
    order = [*range(1, models), 0]
    moved = {n: [v[i] for i in order] for n, v in case.given(models).items() if isinstance(v, list)}
    got = case.merged([tensors[i] for i in order], base, **moved)
    wanted = case.merged(tensors, base)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    if case.name in ("median", "median-lower", "trimmed_mean-most", "magmax", "emr"):  # no sums of several models
        assert_same_bits(got, wanted)


@each(cases_of(ELEMENTWISE, GRAM))
@pytest.mark.parametrize("power", [-20, 30])
def test_scale(case, power):
    """All models and all bounds times a power of two: so is the result, to the last bit. No length counts as zero but
    zero."""
    base, tensors = related("fp64", case.few)
    given = case.given(case.few)
    given |= {"eps": 0} if case.method == "multislerp" else {}
    given |= {"eps": 1e-12} if case.method == "geometric_median" else {}
    given |= {"epsilon": given.get("epsilon", 1e-5)} if "ram" in case.method else {}
    powers = {"t": 1, "epsilon": 1, "clip": 1, "uniform_below": 2}
    scaled = given | {n: given[n] * 2.0 ** (power * p) for n, p in powers.items() if n in given}
    got = case.merged([t * 2.0**power for t in tensors], base * 2.0**power, **scaled)
    assert_same_bits(got, case.merged(tensors, base, **given) * 2.0**power)
