"""How kernels are launched: elements per step, warps, and the constants that all kernels over elements share.

A step is as large as 16-byte loads and about 100 registers per thread allow. Fused multiply-adds are off: they would
change bits. In the interpreter a step costs the same for any size, so a step there is a whole chunk.
"""

import math

import triton

from .elements import CHUNK, INTERPRETED

ITEMSIZE = (4, 2, 2, 8)


def kernel(function):
    """A kernel. Addresses never make it compile anew."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(function, do_not_specialize=[n for n in names if n.islower()])


def run(function, grid, *arguments, warps, registers=None, **constants):
    """Launches on the current device and stream. `registers`: at most so many, so that more warps are resident."""
    if math.prod(grid):
        # Contraction to fused multiply-adds would change results.
        options = {"num_warps": warps, "enable_fp_fusion": False, "maxnreg": registers}
        function[grid](*arguments, **constants, **options)


def shared(launch, nonfinite):
    """The constants that every kernel over elements takes, but for the dtypes of the inputs."""
    return {
        "BASE": launch.base,
        "FP64": bool(launch.fp64),
        "TO_ZERO": launch.policy == 2,
        "ALIGNED": bool(launch.aligned),
        "COUNT": nonfinite != 0,
    }


def step(launch, arrays, warps):
    """Elements of one step: 16-byte loads of the narrowest type, in about 100 registers for `arrays` values each."""
    if INTERPRETED:  # a step costs the same whatever its size
        return CHUNK.value
    codes = [*launch.inputs, *([launch.base] if launch.base >= 0 else [])]
    each = 16 // min(ITEMSIZE[code] for code in codes)
    registers = arrays * (2 if launch.fp64 else 1)
    while each > 1 and each * registers > 100:
        each //= 2
    return each * 32 * warps


def models_by_dtype(launch):
    """(dtype code, the models that have it), for kernels that take one model at a time."""
    return [(code, tuple(k for k, c in enumerate(launch.inputs) if c == code)) for code in dict.fromkeys(launch.inputs)]
