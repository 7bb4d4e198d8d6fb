"""Methods that solve on norms and distances, as recipes and calls have them: the optional base, what is refused."""

import pytest
import torch
import warpmerge as wm
from helpers import array, llama, read_model, write_model
from kernel_helpers import assert_same_bits
from test_gram_methods import CASES
from warpmerge.errors import UsageError
from warpmerge.methods import find

ONE = torch.tensor([1, 2, -2, 0.5])


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


# --- what is refused ------------------------------------------------------------------------------------------------

REFUSED = [
    ("nuslerp", 2, {"weight": [1, -1]}, "sum to zero.*1 and 1 give the middle"),
    ("nuslerp", 2, {"weight": 0}, "sum to zero"),
    ("nuslerp", 3, {"weight": 1}, "exactly 2"),
    ("multislerp", 3, {"weight": [1, 1, -2]}, "sum to zero.*normalize_weights: false"),
    ("multislerp", 2, {"weight": 1, "eps": -1}, "'eps': expected a number >= 0"),
    ("karcher", 2, {"max_iter": 2.5}, "'max_iter': expected an integer >= 0, got 2.5"),
    ("karcher", 2, {"tol": -1e-5}, "'tol'"),
    ("karcher", 2, {"weight": 1}, "no parameter 'weight'"),
    ("model_stock", 17, {"filter_wise": True}, "at most 16 models besides the base, got 17; list fewer"),
    ("model_stock", 1, {}, "at least 2 models besides the base"),
    ("expo", 2, {"alpha": 0.3}, "exactly 1 model besides the base"),
    ("expo", 1, {}, "needs the parameter 'alpha'"),
    ("ema", 2, {}, "needs the parameter 'decay'"),
    ("ema", 2, {"decay": 1.1}, r"number in \[0, 1\]"),
    ("lawa", 2, {"k": 3}, "k is 3, but there are only 2 models"),
    ("lawa", 2, {"k": 0}, "integer >= 1"),
    ("krum", 2, {}, "at least 3 models, got 2"),
    ("krum", 4, {"f": 1}, r"f: 1 needs at least 5 models \(2 f \+ 3\), got 4; list more models or lower f"),
    ("krum", 5, {"f": True}, "integer >= 0"),
    ("multi_krum", 6, {"f": 1, "m": 6}, "m is at most K - f = 5"),
    ("multi_krum", 6, {"f": 2}, "needs at least 7 models"),
    ("geometric_median", 3, {"weight": 0}, "sum to zero.*above 0"),
    ("geometric_median", 3, {"weight": [1, -1, 1]}, "number >= 0"),
    ("geometric_median", 3, {"eps": 0}, "'eps'"),
    ("norm_clipped_mean", 3, {"weight": 0}, "sum to zero.*above 0"),
    ("norm_clipped_mean", 3, {"clip": "mean"}, "auto | number >= 0"),
    ("norm_clipped_mean", 3, {"clip": -1}, "'clip'"),
]


@pytest.mark.parametrize(("method", "models", "parameters", "message"), REFUSED)
def test_what_is_refused(method, models, parameters, message):
    with pytest.raises(UsageError, match=message):
        wm.merge_tensors([ONE] * models, method, base=ONE, **parameters)


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


def test_every_method_says_what_it_does():
    for name in {case.split("-")[0] for case in CASES}:
        method = find(name)
        assert method.summary.endswith(".") and (method.paper or method.notes)
