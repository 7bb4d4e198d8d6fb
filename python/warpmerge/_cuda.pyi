"""The native CUDA module (csrc/bind/cuda.cpp); absent where it was not built."""

from typing import Any

def __getattr__(name: str) -> Any: ...
