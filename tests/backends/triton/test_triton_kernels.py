"""The Triton kernels in Triton's interpreter, bit for bit against the CPU's (triton_measure_cases.py and the
like) or, where those have whole programs to carry out, against the reference's (triton_formula_cases.py)."""

import subprocess
import sys

import pytest
from triton_versions import FIXTURES, VERSIONS

(printed,) = FIXTURES
INTERPRET = True

CASES = {
    "triton_backend_cases.py": 43,
    "triton_formula_cases.py": 117,
    "triton_measure_cases.py": 37,
    "triton_product_cases.py": 23,
    "triton_row_cases.py": 31,
    "triton_select_cases.py": 24,
}


@pytest.mark.parametrize("program", [(name,) for name in CASES], ids=CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_same_bits(version, program, printed):
    *failures, last = printed[version, program].result()
    assert not failures, "\n".join(failures)
    assert last.startswith(f"{CASES[program[0]]} cases with triton")
    assert version == "installed" or last.endswith(version)


def test_the_package_imports_without_triton():
    program = "import sys, warpmerge.triton_kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
