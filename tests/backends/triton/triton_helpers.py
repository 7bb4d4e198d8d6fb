"""What the programs that run Triton kernels in the interpreter share: their cases, and values that are hard."""

import itertools
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
import triton
from kernel_helpers import family
from warpmerge.dtypes import BY_NAME

CASES = []


def case(function):
    CASES.append((function.__name__, function))
    return function


def cases(name, **values):
    """Registers one case for each combination."""

    def register(function):
        for combination in itertools.product(*values.values()):
            arguments = dict(zip(values, combination, strict=True))
            label = ", ".join(f"{k}={v}" for k, v in arguments.items())
            CASES.append((f"{name}({label})", lambda arguments=arguments: function(**arguments)))
        return function

    return register


def run_cases():
    """Those whose name has the program's first argument in it."""
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [(name, run) for name, run in CASES if wanted in name]
    for name, run in chosen:
        try:
            run()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAILED {name}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
    print(f"{len(chosen)} cases with triton {triton.__version__}")


def code(tensor):
    return BY_NAME[str(tensor.dtype).removeprefix("torch.")].code


def at(array):
    return array.ctypes.data


def same(got, wanted):
    if got.view(np.int64).tolist() != wanted.view(np.int64).tolist():
        raise AssertionError(f"{got.tolist()}, not {wanted.tolist()}")


def spread(shape, dtype=torch.float32, seed=0):
    """Values of either sign and of very different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 10).exp().to(dtype).clamp(max=1e30) * (
        1 - 2 * torch.randint(0, 2, shape, generator=generator)
    )


def awkward(dtype, count):
    """Any bit pattern, many of them near the edges of the narrower types."""
    generator = np.random.default_rng(count)
    if dtype == torch.float64:
        exponents = generator.integers(-1100, 1030, count).clip(-1070, 1023)
        near = generator.integers(-180, 180, count)
        exponents = np.where(generator.random(count) < 0.7, near, exponents)
        with np.errstate(all="ignore"):
            values = np.ldexp(
                generator.integers(0, 2**12, count) / 2**11 + generator.choice([0, 2**-50, 2**-24], count), exponents
            )
        values *= generator.choice([-1, 1], count)
        values[:4] = [np.nan, np.inf, -np.inf, -0.0]
        return torch.from_numpy(values)
    patterns = generator.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    patterns[::2] &= np.uint32(0xFFFFF000)  # halves of the last bit of a float16
    patterns[::3] &= np.uint32(0xFFFF8000)  # and of a bfloat16
    return torch.from_numpy(patterns.view(np.float32))


def poisoned(dtype, models, count):
    """NaN and infinities in some models, in the base, and differences that overflow, in full and in partial chunks."""
    base, tensors = family(dtype, models, count)
    nan, inf = float("nan"), float("inf")
    for start in (0, count - 20):
        base[start + 3] = nan
        base[start + 4] = tensors[0][start + 4] = inf
        tensors[0][start + 1] = -nan
        tensors[-1][start : start + 2] = torch.tensor([inf, -inf])
        largest = torch.finfo(base.dtype).max
        base[start + 7], tensors[-1][start + 7] = largest, -largest
    if base.dtype in (torch.float32, torch.bfloat16):
        other = torch.int32 if base.dtype == torch.float32 else torch.int16
        tensors[0].view(other)[9] = 0x7F800001 if other == torch.int32 else 0x7F81  # a signalling NaN
    return base, tensors
