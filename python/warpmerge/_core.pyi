"""The native CPU module (csrc/bind/core.cpp): kernels, thread pool and file access."""

from typing import Any

def __getattr__(name: str) -> Any: ...
