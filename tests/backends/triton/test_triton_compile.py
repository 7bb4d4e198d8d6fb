"""What Triton makes of the kernels for GPUs that need not be there (triton_compile.py)."""

import json

import pytest
from triton_versions import FIXTURES, VERSIONS

(printed,) = FIXTURES
INTERPRET = False

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


# Every kernel for Hopper, the common ones for Ampere and Blackwell.
PROGRAMS = {
    "hopper": (("triton_compile.py", "90"), 60),
    "others": (("triton_compile.py", "80,100", *COMMON), 2 * len(COMMON)),
}


@pytest.mark.parametrize(("program", "least"), PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_machine_code(version, program, least, printed):
    names = check(printed[version, program].result())
    assert len(names) >= least
