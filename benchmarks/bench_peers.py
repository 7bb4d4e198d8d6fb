"""The same files and recipes through other tools: how long they take, and whether they agree.

One round each, because some take minutes; cat+cp and warpmerge run once beside it, in the same regime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import pagecache, peers, process
from .baseline import cat_cp
from .bench_merge import clear, merge_command
from .cases import DENSITY, Case, make_case
from .check import Checkpoint, check_output, oracle
from .conftest import bench_dir

# Seconds for Qwen2.5-0.5B with at most 0.2 of two cores busy elsewhere. linear: default 12.7, -j 1 11.1, -j 2
# 11.4, --lazy-unpickle 11.5, --async-write 12.5, --low-cpu-memory 13.5; task_arithmetic: default 11.7, -j 1
# 13.6; dare_linear: default 42, -j 1 35. No flag but -j 1 changes anything beyond noise, so these two
# compete.
FLAGS = {"default": (), "j1": ("-j", "1")}
TOOLS = ("warpmerge", "mergekit")
METHODS = ["linear", "task_arithmetic", "dare_linear", "dare_ties", "slerp", "ties"]

# Weights whose sums are exact in float32: a sum of weighted deltas is then zero for both tools or for
# neither, and the order of an addition cannot elect another sign.
EXACT_WEIGHTS = (0.5, 0.25, 0.75)

pytestmark = pytest.mark.skipif(
    not peers.mergekit().exists(), reason="no other tools: python -m benchmarks.peers install"
)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("method", METHODS)
def test_mergekit(benchmark, checkpoints, scratch, request, method: str, flags: str) -> None:
    """Each set of flags is a row of its own, the table shows the faster one. Both tools are polled."""
    shape = request.config.getoption("shape")
    case = make_case(method, checkpoints(shape), bench_dir() / "recipes" / shape)
    copy, ours, theirs = scratch / "copy", scratch / "ours", scratch / "theirs"
    measured: dict[str, tuple[float, float]] = {}

    def condition() -> None:
        clear(copy, ours, theirs)
        copy.mkdir()
        pagecache.warm(case.read)

    def setup() -> None:
        process.run(merge_command(case, ours, sync=False), cwd=scratch)
        check_output(ours, case)
        condition()
        measured["cat+cp"] = cat_cp(case.read, case.copied, copy, sync=False).total, 0.0
        condition()
        measured["warpmerge"] = process.run(merge_command(case, ours, sync=False), cwd=scratch, poll=True)
        condition()

    def run() -> None:
        command = peers.mergekit_command(case, theirs, FLAGS[flags])
        environment = peers.mergekit_environment()
        measured["mergekit"] = process.run(command, cwd=scratch, env=environment, poll=True)

    benchmark.group = "peer"
    benchmark.pedantic(run, setup=setup, rounds=1)
    check_output(theirs, case, rounded_once=False)
    benchmark.extra_info |= {
        "what": method,
        "shape": shape,
        "regime": "warm",
        "peer": f"mergekit {peers.version('mergekit')}",
        "flags": " ".join(FLAGS[flags]),
        "seconds_of": {name: seconds for name, (seconds, _) in measured.items()},
        "peak_anonymous_mb": {name: round(peak, 1) for name, (_, peak) in measured.items() if peak},
    }


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "ties"])
def test_agreement(benchmark, checkpoints, scratch, method: str) -> None:
    """float32 throughout, on deltas that are exact and never tie: what is left is the order of roundings."""
    case = make_case(
        method,
        checkpoints("small", dtype="fp32", tie_free=True),
        bench_dir() / "recipes" / "agreement",
        weights=EXACT_WEIGHTS,
        dtype="float32",
    )
    merged = dict(zip(TOOLS, run_both(benchmark, case, scratch), strict=True))
    between = elementwise = 0.0
    errors = dict.fromkeys(TOOLS, 0.0)
    for name in merged[TOOLS[0]].entries:
        values = {tool: output.values(name) for tool, output in merged.items()}
        truth = oracle(case, name)
        scale = np.nanmax(np.abs(truth))
        difference = np.abs(values[TOOLS[0]] - values[TOOLS[1]])
        between = max(between, difference.max() / scale)
        elementwise = max(elementwise, np.nanmax(difference[truth != 0] / np.abs(truth[truth != 0])))
        for tool, value in values.items():
            errors[tool] = max(errors[tool], np.nanmax(np.abs(value - truth)) / scale)
    benchmark.extra_info |= {
        "what": method,
        "difference": float(between),
        "difference_elementwise": float(elementwise),
        "from_float64": {tool: float(error) for tool, error in errors.items()},
    }
    # mergekit takes the angle of a slerp from float32 sums: 3e-6 from the float64 result.
    assert errors["warpmerge"] <= 1e-6
    assert between <= 1e-6 + errors["mergekit"]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_random_drop(benchmark, checkpoints, scratch, method: str) -> None:
    """Random masks cannot agree by element: what share is kept of one model at weight 1, and its scale."""
    case = make_case(
        method,
        checkpoints("small", dtype="fp32", tie_free=True),
        bench_dir() / "recipes" / "agreement",
        weights=(1.0,),
        models=1,
        dtype="float32",
    )
    merged = dict(zip(TOOLS, run_both(benchmark, case, scratch), strict=True))
    shares: dict[str, float] = {}
    ratios: dict[str, float] = {}
    base, model = Checkpoint(case.template), Checkpoint(case.models[0])
    for tool, output in merged.items():
        kept = size = moved = full = 0.0
        for name in output.entries:
            delta = output.values(name) - base.values(name)
            kept, size = kept + np.count_nonzero(delta), size + delta.size
            moved += np.abs(delta).sum()
            full += np.abs(model.values(name) - base.values(name)).sum()
        shares[tool], ratios[tool] = kept / size, moved / full
    benchmark.extra_info |= {"what": method, "kept": shares, "l1_ratio": ratios}
    five_sigma = 5 * (DENSITY * (1 - DENSITY) / size) ** 0.5  # of a binomial draw of 2.5 million
    assert shares == pytest.approx(dict.fromkeys(shares, DENSITY), abs=five_sigma)


def run_both(benchmark, case: Case, scratch: Path) -> tuple[Checkpoint, Checkpoint]:
    """Merges with warpmerge and with mergekit; the latter is what the row times."""
    ours, theirs = scratch / "ours", scratch / "theirs"
    process.run(merge_command(case, ours), cwd=scratch)
    command, environment = peers.mergekit_command(case, theirs), peers.mergekit_environment()
    benchmark.group = "agreement"
    benchmark.pedantic(lambda: process.run(command, cwd=scratch, env=environment), rounds=1)
    benchmark.extra_info["peer"] = f"mergekit {peers.version('mergekit')}"
    return check_output(ours, case), check_output(theirs, case)
