"""What the CUDA compiler made of the kernels: read from the built module, without a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# What merges spend their time in.
COMBINING = ("weighted_sum_packed", "elect_and_sum_packed")
MEASURING = ("sum_blocks_of", "gram_whole", "sweep_keys", "count_ties")
EVALUATING = ("formula_values", "rank_rows", "fold_row_blocks", "multiply_rows", "fold_columns")
# An IEEE division or root is a sequence that contains fused multiply-adds; everything else must have none.
DIVIDING = ("elect_and_sum_packed", "elect_and_sum_any", "sample_keys", "formula_values")
# Products of float32 are exact in float64, and fused to the sum on purpose.
FUSING = ("multiply_rows", "fold_columns")


@dataclass
class Kernel:
    architecture: str
    name: str
    arguments: str  # of the template and of the function, mangled
    registers: int = 0
    local: int = 0  # bytes per thread
    instructions: Counter[str] = field(default_factory=Counter)

    def count(self, pattern: str) -> int:
        return sum(number for name, number in self.instructions.items() if re.fullmatch(pattern, name))

    def __str__(self) -> str:
        return f"{self.architecture} {self.name}<{self.arguments}>"


@pytest.fixture(scope="session")
def module() -> Path:
    spec = importlib.util.find_spec("warpmerge._cuda")
    if spec is None:
        pytest.skip("built without the CUDA kernels: there was no CUDA compiler")
    return Path(spec.origin)


def tool(name: str) -> str:
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin" / name if triton and triton.origin else None
    found = str(bundled) if bundled and bundled.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"no {name}: neither Triton nor the CUDA toolkit's tools are installed")
    return found


def dump(module: Path, *options: str) -> list[str]:
    done = subprocess.run([tool("cuobjdump"), *options, str(module)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def split_name(mangled: str) -> tuple[str, str]:
    """Name and the rest; kernels are in an unnamed namespace, whose name ends in the file's and a hash."""
    match = re.search(r"_cu_[0-9a-f]{8}(\d+)(\w+)$", mangled)
    assert match, f"{mangled}: not a kernel in an unnamed namespace"
    length = int(match[1])
    return match[2][:length], match[2][length:]


@pytest.fixture(scope="session")
def kernels(module) -> list[Kernel]:
    found: dict[tuple[str, str], Kernel] = {}
    architecture = ""
    for line in dump(module, "-res-usage"):
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            current = found[architecture, match[1]] = Kernel(architecture, *split_name(match[1]))
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            current.registers, current.local = int(match[1]), int(match[2]) + int(match[3])
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
    for line in dump(module, "-sass"):
        if match := instruction.match(line):
            current.instructions[match[1]] += 1
        elif match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            current = found[architecture, match[1]]
    return list(found.values())


@pytest.fixture(scope="session")
def combining(kernels) -> list[Kernel]:
    chosen = [kernel for kernel in kernels if kernel.name in COMBINING]
    assert {kernel.name for kernel in chosen} == set(COMBINING)
    return chosen


def test_every_architecture_has_every_kernel(module, kernels):
    from warpmerge import _cuda

    by_architecture: dict[str, set[tuple[str, str]]] = {}
    for kernel in kernels:
        by_architecture.setdefault(kernel.architecture, set()).add((kernel.name, kernel.arguments))
        assert kernel.instructions, f"{kernel}: no code"
    assert set(by_architecture) <= {f"sm_{name}" for name in _cuda.architectures()}
    assert len({frozenset(names) for names in by_architecture.values()}) == 1


def models_of(kernel: Kernel) -> int:
    return int(re.search(r"Li(\d+)E", kernel.arguments)[1])


def test_no_spills(kernels):
    wanted = COMBINING + MEASURING + EVALUATING
    checked = [kernel for kernel in kernels if kernel.name in wanted]
    assert {kernel.name for kernel in checked} == set(wanted)
    spilled = {str(kernel): kernel.local for kernel in checked if kernel.local or kernel.count(r"(LDL|STL).*")}
    assert not spilled


def test_registers_leave_room_for_several_blocks(combining):
    """Blocks of 256 threads: three on a multiprocessor up to 80 registers, two up to 128. Eight models take more."""
    for kernel in combining:
        models = models_of(kernel)
        assert kernel.registers <= (80 if models <= 3 else 128 if models <= 7 else 168), kernel


def test_combining_kernels_load_and_store_16_bytes(combining):
    for kernel in combining:
        models = models_of(kernel)
        # At least one load per model and one for the base, for packs of 8 elements of 2 or 4 bytes.
        loads = (models + 1) * (2 if kernel.arguments.startswith("If") else 1)
        assert kernel.count(r"LDG\..*128.*") >= loads, kernel
        assert kernel.count(r"STG\..*128.*") >= 1, kernel


@pytest.mark.parametrize("name", ["sum_blocks_of", "sweep_keys", "count_ties"])
def test_measuring_kernels_load_16_bytes(kernels, name):
    """An input and the base. `gram` loads 8: with eight lanes a thread its float64 sums would not fit the registers."""
    packed = [kernel for kernel in kernels if kernel.name == name and "Packed" in kernel.arguments]
    assert len({kernel.architecture for kernel in packed}) * 3 <= len(packed)  # float, f16, bf16
    for kernel in packed:
        assert kernel.count(r"LDG\..*128.*") >= 2, kernel


def formulas(kernels: list[Kernel], elements: int) -> list[Kernel]:
    found = [k for k in kernels if k.name == "formula_values" and f"Li{elements}E" in k.arguments]
    assert found
    return found


def test_formulas_keep_four_blocks_on_a_multiprocessor(kernels):
    """Of 128 threads; operands are the limit then."""
    assert all(kernel.registers <= 128 for elements in (1, 8) for kernel in formulas(kernels, elements))


def test_formulas_access_memory_in_16_bytes(kernels):
    """Inputs and the base of each dtype, results, and operands in shared memory."""
    for kernel in formulas(kernels, 8):
        assert kernel.count(r"LDG\..*128.*") >= 3 * 2, kernel
        assert kernel.count(r"LDS\..*128.*") >= 2 and kernel.count(r"STS\..*128.*") >= 2, kernel
        if kernel.arguments.startswith("If"):
            assert kernel.count(r"STG\..*128.*") >= 3, kernel


def test_rows_and_their_products_load_16_bytes(kernels):
    """Columns are read by one element a thread, which are neighbours, and many rows at once."""
    for kernel in kernels:
        if kernel.name in ("fold_row_blocks", "multiply_rows"):
            vectors = 2 if kernel.arguments.startswith("If") else 4  # of eight elements
            values = 2 if kernel.name == "multiply_rows" else 1
            assert kernel.count(r"LDG\..*128.*") >= vectors * values, kernel
            assert kernel.registers <= 128, kernel
        elif kernel.name == "multiply_columns":
            assert kernel.registers <= 64, kernel


def fuses(kernel: Kernel) -> bool:
    """Whether it adds products: columns are also folded by value, and to their largest."""
    adds = kernel.name != "fold_columns" or "TermE0E" in kernel.arguments
    return adds and kernel.name in FUSING and kernel.arguments.startswith("If")


def test_products_of_float32_are_fused(kernels):
    found = [kernel for kernel in kernels if fuses(kernel)]
    assert found
    for kernel in found:
        assert kernel.count("DFMA") >= 3 and not kernel.count("DMUL|FFMA"), kernel


def test_no_other_fused_multiply_add_outside_divisions(kernels):
    fused = {str(k): k.count(r"[FD]FMA.*") for k in kernels if k.name not in DIVIDING and not fuses(k)}
    assert fused and not any(fused.values()), {name: number for name, number in fused.items() if number}


def test_ptx_rounds_every_operation(module):
    """PTX comes before divisions are expanded: here there is no exception."""
    ptx = dump(module, "-ptx")
    if not any(line.startswith(".entry") or ".visible .entry" in line for line in ptx):
        pytest.skip("built without PTX")
    contracted = re.compile(r"\b(fma|mad)\.\S*f(16|32|64)|\.approx|\.ftz|\bdiv\.full")
    found, fusing = [], False
    for line in ptx:
        if ".entry" in line:
            fusing = bool(re.search(rf"\d({'|'.join(FUSING)})If", line))
        if contracted.search(line) and not (fusing and "fma.rn.f64" in line):
            found.append(line)
    assert found == []
    assert any("div.rn.f32" in line for line in ptx) and any("mul.f32" in line or "mul.rn.f32" in line for line in ptx)


def test_no_cuda_library_is_needed(module):
    if not shutil.which("ldd"):
        pytest.skip("no ldd")
    libraries = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" in libraries
    assert not re.search(r"libcuda|libcudart|libtorch|libc10|not found", libraries), libraries


def test_import_without_a_device(module):
    program = "import warpmerge._cuda as cuda; print(cuda.device_count(), cuda.why_not())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    count, reason = done.stdout.strip().split(" ", 1)
    assert count == "0"
    assert reason in ("no NVIDIA driver is installed", "there is no NVIDIA GPU, or none is visible")


def test_device_without_a_device(module):
    from warpmerge import _cuda

    if _cuda.device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=re.escape(_cuda.why_not())):
        _cuda.Device(0)
