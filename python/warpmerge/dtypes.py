"""Element types: their names in safetensors headers and recipes, and their codes in the native module."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UsageError, close_matches, shown


@dataclass(frozen=True, eq=False)
class DType:
    """One object for each type, so types are compared as objects.

    `code` is that of the native kernels (csrc/ops/common.h); None: the type is copied, never computed with."""

    name: str
    safetensors: str
    itemsize: int
    code: int | None = None

    @property
    def is_float(self) -> bool:
        return self.code is not None

    @property
    def kernel_code(self) -> int:
        """Of a type that kernels compute with."""
        assert self.code is not None, f"{self} is copied, never computed with"
        return self.code

    @property
    def is_quantized(self) -> bool:
        """An 8-bit float: its values mean nothing without scales kept elsewhere, so it cannot be averaged."""
        return self.name.startswith("float8")

    def __reduce__(self) -> tuple[object, ...]:
        return BY_NAME.__getitem__, (self.name,)  # a copy is the same object

    def __str__(self) -> str:
        return self.name


FLOAT32 = DType("float32", "F32", 4, 0)
FLOAT16 = DType("float16", "F16", 2, 1)
BFLOAT16 = DType("bfloat16", "BF16", 2, 2)
FLOAT64 = DType("float64", "F64", 8, 3)

FLOATS = (FLOAT32, FLOAT16, BFLOAT16, FLOAT64)
COPIED = tuple(
    DType(name, code, size)
    for name, code, size in [
        ("bool", "BOOL", 1),
        ("uint8", "U8", 1),
        ("int8", "I8", 1),
        ("uint16", "U16", 2),
        ("int16", "I16", 2),
        ("uint32", "U32", 4),
        ("int32", "I32", 4),
        ("uint64", "U64", 8),
        ("int64", "I64", 8),
        ("float8_e4m3fn", "F8_E4M3", 1),
        ("float8_e5m2", "F8_E5M2", 1),
        ("float8_e8m0fnu", "F8_E8M0", 1),
        ("complex64", "C64", 8),
    ]
)
DTYPES = FLOATS + COPIED  # columns store a type as its index here, of a float its code
BY_NAME = {d.name: d for d in DTYPES}
BY_SAFETENSORS = {d.safetensors: d for d in DTYPES}


def float_dtype(name: object, where: str) -> DType:
    """The floating-point type that a recipe names (`bfloat16`, `float16`, `float32`, `float64`)."""
    text = shown(name) if hasattr(type(name), "__array__") else str(name)
    found = BY_NAME.get(text.removeprefix("torch."))
    if found is None or not found.is_float:
        choices = [d.name for d in FLOATS]
        near = close_matches(text, choices) or "."
        raise UsageError(f"{where}: unknown dtype {shown(name)}{near} Choose one of {', '.join(choices)}.")
    return found
