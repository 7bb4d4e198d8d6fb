"""Methods that solve on norms and distances: one against another, by hand, and in recipes.

What holds for every method is in test_every_method.py.
"""

import numpy as np
import oracles_gram
import pytest
import torch
import warpmerge as wm
from helpers import array, llama, read_model, write_model
from kernel_helpers import assert_same_bits, bits, family
from method_cases import SHAPE, distant, related
from warpmerge.errors import CheckpointError, UsageError

ONE = torch.tensor([1, 2, -2, 0.5])

# --- one method against another -------------------------------------------------------------------------------------


def test_expo_is_task_arithmetic():
    base, tensors = family("bf16", 1, SHAPE)
    got = wm.merge_tensors(tensors, "expo", base=base, alpha=0.25)
    assert_same_bits(got, wm.merge_tensors(tensors, "task_arithmetic", base=base, weight=1.25))


def test_means_of_checkpoints_are_linear():
    _, tensors = family("fp32", 3, SHAPE)
    assert_same_bits(
        wm.merge_tensors(tensors, "ema", decay=0.5), wm.merge_tensors(tensors, "linear", weight=[0.25, 0.25, 0.5])
    )
    for k in (1, 2, 3):
        wanted = wm.merge_tensors(tensors[-k:], "linear", weight=1)
        assert_same_bits(wm.merge_tensors(tensors, "lawa", k=k), wanted)
    assert torch.equal(wm.merge_tensors(tensors, "ema", decay=0), tensors[-1])
    assert torch.equal(wm.merge_tensors(tensors, "ema", decay=1), tensors[0])


def test_the_middle_of_two_is_one_on_every_sphere():
    """Equal norms and weights: slerp, nuslerp, multislerp and karcher all bisect the angle."""
    _, (a, b) = distant("fp64", 2)
    b = b * (a.norm() / b.norm())
    middle = wm.merge_tensors([a, b], "slerp", t=0.5)
    for method, parameters in {
        "nuslerp": {"weight": 1},
        "multislerp": {"weight": 0.5, "eps": 0},
        "karcher": {"tol": 1e-12},
    }.items():
        got = wm.merge_tensors([a, b], method, **parameters)
        torch.testing.assert_close(got, middle, rtol=1e-12, atol=1e-15)


def test_nuslerp_is_slerp_where_that_is_spherical():
    _, tensors = distant("fp32", 2)
    got = wm.merge_tensors(tensors, "nuslerp", weight=[3, 1])
    assert_same_bits(got, wm.merge_tensors(tensors, "slerp", t=0.25))


def test_a_karcher_mean_is_one():
    """The directions to the models, as long as the angles to them, cancel."""
    _, tensors = distant("fp64", 5)
    mean = oracles_gram.unit(oracles_gram.exact(wm.merge_tensors(tensors, "karcher", tol=1e-13, max_iter=200)))
    total = np.zeros_like(mean)
    for t in tensors:
        u = oracles_gram.unit(oracles_gram.exact(t))
        angle = oracles_gram.angle_between(u, mean)
        total += angle / np.sin(angle) * (u - (u * mean).sum() * mean)
    assert oracles_gram.norm(total) < 1e-11


def test_robust_methods_without_outliers_are_means():
    base, tensors = family("fp32", 5, SHAPE)
    mean = wm.merge_tensors(tensors, "linear", weight=1)
    assert_same_bits(wm.merge_tensors(tensors, "multi_krum", f=0, m=5), mean)
    assert_same_bits(wm.merge_tensors(tensors, "geometric_median", max_iter=0), mean)
    clipped = wm.merge_tensors(tensors, "norm_clipped_mean", base=base, clip=1e9)
    wanted = wm.merge_tensors(tensors, "task_arithmetic", base=base, weight=1, normalize=True)
    assert_same_bits(clipped, wanted)


def test_an_outlier_is_left_out():
    base, tensors = family("fp32", 5, SHAPE)
    tensors[2] = tensors[2] + 10
    for method in ("krum", "multi_krum", "geometric_median"):
        assert (wm.merge_tensors(tensors, method) - base).abs().max() < 0.02
    clipped = wm.merge_tensors(tensors, "norm_clipped_mean", base=base)
    assert (clipped - base).abs().max() < 0.02
    heavy = wm.merge_tensors(tensors, "geometric_median", weight=[1, 1, 9, 1, 1])
    torch.testing.assert_close(heavy, tensors[2], rtol=1e-5, atol=0)  # most of the weight is the median


def test_krum_copies_the_bytes():
    _, tensors = family("fp32", 5, (5, 7))
    for t in tensors:
        t[0, :2] = 1e-5
    tensors[3] = sum(tensors) / 5
    tensors[3][0, :2] = torch.tensor([-0.0, 1e-42])
    assert np.array_equal(bits(wm.merge_tensors(tensors, "krum")), bits(tensors[3]))
    assert_same_bits(wm.merge_tensors(tensors, "multi_krum", m=1), tensors[3])
    for dtype in (torch.bfloat16, torch.float64):
        assert_same_bits(wm.merge_tensors(tensors, "krum", out_dtype=dtype), tensors[3].to(dtype))
    same = [tensors[0].clone() for _ in range(4)]
    assert_same_bits(wm.merge_tensors(same, "krum"), tensors[0])


def test_model_stock_of_tiny_changes():
    """Cosines do not shrink with the deltas, as they would if norms were kept above a bound."""
    base, tensors = related("fp64", 2)
    deltas = [t - base for t in tensors]
    zero = torch.zeros_like(base)
    large = wm.merge_tensors(deltas, "model_stock", base=zero)
    small = wm.merge_tensors([d * 1e-9 for d in deltas], "model_stock", base=zero)
    torch.testing.assert_close(small, large * 1e-9, rtol=1e-12, atol=0)


def test_antiparallel_models():
    a, b = ONE, -3 * ONE
    straight = 0.25 * a + 0.75 * b
    assert_same_bits(wm.merge_tensors([a, b], "nuslerp", weight=[1, 3]), straight)
    assert_same_bits(wm.merge_tensors([a, b], "multislerp", weight=1), -ONE)
    torch.testing.assert_close(wm.merge_tensors([a, b], "karcher"), 2 * ONE)
    assert_same_bits(wm.merge_tensors([a, -ONE], "model_stock", base=ONE * 0), ONE * 0)
    # Directions that cancel, of which there are more than two.
    assert_same_bits(wm.merge_tensors([a, a, -2 * a], "multislerp", weight=[1, 1, 2]), -0.5 * a)


def test_parallel_models():
    """The direction, as long as the mean norm."""
    tensors = [ONE, 2 * ONE, 6 * ONE]
    for method, parameters in {"multislerp": {"weight": 1}, "karcher": {}}.items():
        torch.testing.assert_close(wm.merge_tensors(tensors, method, **parameters), 3 * ONE)


def test_squares_that_overflow():
    tensors = [torch.full((3,), 1e200 * k, dtype=torch.float64) for k in (1, 2, 4)]
    for method in ("krum", "karcher", "geometric_median"):
        with pytest.raises(CheckpointError, match="'w' has elements whose squares overflow"):
            wm.merge_tensors(tensors, method, name="w")


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, llama(seed))
    return tmp_path


def from_files(folder, *, base, listed=("a", "b"), method="nuslerp", **parameters):
    document = {"merge_method": method, "models": [str(folder / m) for m in listed], "parameters": parameters}
    document |= {"base_model": str(folder / "base")} if base else {}
    wm.merge(document, folder / "out", overwrite=True, sync=False)
    return {name: torch.from_numpy(array(raw).copy()) for name, raw in read_model(folder / "out").items()}


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_a_base_is_optional(method, models):
    """With one the deltas are merged, without one the models; from files, in memory and in a pool."""
    base, a, b = ({n: torch.from_numpy(v) for n, v in llama(seed).items()} for seed in range(3))
    with_base = from_files(models, base=True, method=method, weight=1)
    alone = from_files(models, base=False, method=method, weight=1)
    for name in base:
        wanted = wm.merge_tensors([a[name] - base[name], b[name] - base[name]], method, weight=1)
        torch.testing.assert_close(with_base[name], base[name] + wanted, rtol=1e-5, atol=1e-6)
    for given, files in ((base, with_base), (None, alone)):
        in_memory = wm.merge_state_dicts([a, b], method, base=given, weight=1)
        with wm.Pool(given, [a, b]) as pool:
            pooled = pool.merge(method, weight=1)
        for name in base:
            assert_same_bits(in_memory[name], files[name])
            assert_same_bits(pooled[name], files[name])
    listed = from_files(models, base=True, listed=("a", "base", "b"), method=method, weight=1)
    assert all(torch.equal(listed[n], with_base[n]) for n in base)


def test_a_base_is_merged_by_karcher_only_if_it_is_listed(models):
    unlisted = from_files(models, base=True, method="karcher")
    alone = from_files(models, base=False, method="karcher")
    listed = from_files(models, base=True, listed=("a", "b", "base"), method="karcher")
    assert all(torch.equal(unlisted[n], alone[n]) for n in alone)
    assert not all(torch.equal(listed[n], alone[n]) for n in alone)


def test_errors_of_the_base(models):
    with pytest.raises(UsageError, match=r"needs a 'base_model'"):
        from_files(models, base=False, method="model_stock")
    with pytest.raises(UsageError, match=r"exactly 2 models \(a base not counted\), got 1"):
        from_files(models, base=True, listed=("a", "base"), weight=1)
    with pytest.raises(UsageError, match="at least 2 models besides the base, got 1"):
        from_files(models, base=True, listed=("a", "base"), method="model_stock")
    for method in ("model_stock", "norm_clipped_mean", "expo"):
        with pytest.raises(UsageError, match="needs a base"):
            wm.merge_tensors([ONE] * (1 if method == "expo" else 2), method)
    with pytest.raises(UsageError, match="no base to take elements from"):
        from_files(models, base=False, weight=1, nonfinite="base")


def test_a_recipe_is_refused_before_anything_is_read(models):
    with pytest.raises(UsageError, match="there are only 2 models"):
        from_files(models, base=False, method="lawa", k=3)
    with pytest.raises(UsageError, match=r"tensor 'model\.norm\.weight': .*sum to zero"):
        from_files(models, base=True, method="multislerp", weight=[{"filter": "model.norm", "value": 0}, {"value": 1}])
    assert not (models / "out").exists()


def test_clip_is_a_number_auto_or_infinite(models):
    wanted = from_files(models, base=True, method="norm_clipped_mean")
    auto = from_files(models, base=True, method="norm_clipped_mean", clip="auto")
    mixed = from_files(
        models, base=True, method="norm_clipped_mean", clip=[{"filter": "norm", "value": "auto"}, {"value": 0.5}]
    )
    for name in wanted:
        assert torch.equal(auto[name], wanted[name])
        assert torch.equal(mixed[name], wanted[name]) == ("norm" in name)
    far = from_files(models, base=True, method="norm_clipped_mean", clip=1e30)
    for clip in ("inf", float("inf")):
        unclipped = from_files(models, base=True, method="norm_clipped_mean", clip=clip)
        assert all(torch.equal(unclipped[name], far[name]) for name in far)
