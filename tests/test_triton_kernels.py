"""The Triton kernels in Triton's interpreter, bit for bit against the CPU's (triton_cases.py)."""

import subprocess
import sys

import pytest
from triton_versions import VERSIONS, run

CASES = 182


@pytest.mark.parametrize("version", VERSIONS)
def test_same_bits_as_the_cpu(version):
    *failures, last = run(version, "triton_cases.py", interpret=True)
    assert not failures, "\n".join(failures)
    assert last.startswith(f"{CASES} cases with triton")
    assert version == "installed" or last.endswith(version)


def test_the_package_imports_without_triton():
    program = "import sys, warpmerge.triton_kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
