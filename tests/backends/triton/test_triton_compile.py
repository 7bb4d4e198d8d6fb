"""What Triton makes of the kernels for GPUs that need not be there (triton_compile.py)."""

import json

import pytest
from triton_versions import VERSIONS, run

COMMON = ["elect_and_sum bf16", "sums bf16", "gram bf16", "sweep bf16", "shrink", "reduce",
          *(f"formula {name} of 3, bf16" for name in ("weighted_sum", "median", "softmax", "drawn"))]  # fmt: skip


def check(lines):
    found = [json.loads(line) for line in lines]
    for kernel in found:
        # Products of float32 are exact in float64, and fused to the sum on purpose.
        fuses = kernel["name"].startswith("products")
        assert (kernel["fused"] > 0) == fuses, f"contraction to fused multiply-adds changes results: {kernel}"
        assert kernel["approximate"] == 0, f"approximate division or flushed subnormals: {kernel}"
        assert kernel["stack"] == kernel["local"] == 0, f"registers are spilled: {kernel}"
        assert kernel["divisions"] > 0 or not divides(kernel["name"]), kernel
        assert kernel["extremes"] == 0 or "formula" not in kernel["name"], f"another result for NaN and -0: {kernel}"
        for vectors, arrays in zip(kernel["vectors"], kernel["arrays"], strict=True):
            assert vectors >= arrays, f"not all arrays are read and written by 16 bytes: {kernel}"
    return [kernel["name"] for kernel in found]


def divides(name):
    kinds = "elect_and_sum", "middle", "softmax", "measured"
    return any(kind in name for kind in kinds) and "no election" not in name


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kernel_for_hopper(version):
    names = check(run(version, "triton_compile.py", "90", interpret=False))
    assert len(names) >= 60


@pytest.mark.parametrize("version", VERSIONS)
def test_common_kernels_for_ampere_and_blackwell(version):
    names = check(run(version, "triton_compile.py", "80,100", *COMMON, interpret=False))
    assert len(names) == 2 * len(COMMON)
