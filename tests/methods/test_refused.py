"""What methods refuse: numbers of models, values of parameters, and sums that would not make sense."""

import pytest
import torch
import warpmerge as wm
from method_table import main_cases
from warpmerge.errors import UsageError
from warpmerge.methods import Base, find

ONE = torch.tensor([[1, 2, -2, 0.5], [0.25, -3, 1, 1]])

# Method, number of models, parameters, a part of the message.
REFUSED = [
    ("slerp", 3, {"t": 0.5}, "exactly 2"),
    ("slerp", 1, {"t": 0.5}, "exactly 2"),
    ("ties", 2, {"weight": [1, -1], "normalize": True}, "negative weight"),
    ("dare_ties", 2, {"weight": [1, -1], "normalize": True}, "negative weight"),
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
    ("della", 2, {"weight": 1, "density": 0.1}, r"density 0\.1 with epsilon 0\.15 .* set epsilon below 0\.1"),
    ("della", 2, {"weight": 1, "density": 0.85}, r"from 0\.7 to 1, .* set epsilon below 0\.15"),
    ("della_linear", 2, {"weight": 1, "density": [0.5, 0.8], "epsilon": [0.3, 0.25]}, "set epsilon below 0.2"),
    ("della", 2, {"weight": 1, "density": 0.5, "epsilon": -0.1}, "'epsilon': expected a number >= 0"),
    ("della", 2, {"weight": 1, "density": 1.5}, r"number in \[0, 1\]"),
    ("della", 2, {"weight": [1, -1], "density": 0.5}, "negative weight"),
    ("della", 2, {"weight": 1, "rescale": "inverse_density"}, "l1, inverse_probability, false"),
    ("della", 2, {"density": 0.5}, "needs the parameter 'weight'"),
    ("arcee_fusion", 2, {}, "exactly 1 model besides the base, got 2"),
    ("arcee_fusion", 1, {"t": 0.5}, "no parameter 't'"),
    ("della", 193, {"weight": 1}, "1-192 models besides the base, got 193"),
    ("della_linear", 289, {"weight": 1}, "1-288 models besides the base, got 289"),
    ("pcb", 37, {}, "1-36 models besides the base, got 37"),
    ("pcb", 2, {"ratio": 1.1}, r"'ratio': expected a number in \[0, 1\]"),
    ("widen", 2, {"ratio": -1}, "'ratio': expected a number >= 0"),
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
    ("tsv", 2, {"cutoff": 0}, r"'cutoff': expected a number in \[1e-07, 1\], got 0"),
    ("iso_cts", 2, {"common": 1.5}, r"'common': expected a number in \[0, 1\], got 1.5"),
    ("knots", 2, {"merge": "dare"}, "'merge': expected one of ties, task_arithmetic, got 'dare'"),
    ("knots", 2, {"density": 1.5}, r"'density': expected a number in \[0, 1\], got 1.5"),
    ("knots", 2, {"weight": [1.0, -1.0]}, "instead of subtracted; set merge: task_arithmetic"),
    ("knots", 2, {"weight": [1.0]}, r"'weight': expected one value per model \(2\), got 1"),
    ("wudi", 2, {"weight": 1}, "method 'wudi' has no parameter 'weight'"),
]


@pytest.mark.parametrize(("method", "models", "parameters", "message"), REFUSED)
def test_what_is_refused(method, models, parameters, message):
    base = {"base": ONE} if method != "slerp" else {}
    with pytest.raises(UsageError, match=message):
        wm.merge_tensors([ONE] * models, method, **base, **parameters)


@pytest.mark.parametrize("case", [c for c in main_cases() if c.base], ids=lambda case: case.name)
def test_a_base_is_needed(case):
    if find(case.method).base is Base.REFERENCE:
        with pytest.raises(UsageError, match="needs a base"):
            wm.merge_tensors([ONE] * case.few, case.method, **case.given(case.few))
    else:
        assert wm.merge_tensors([ONE] * case.few, case.method, **case.given(case.few)).isfinite().all()
