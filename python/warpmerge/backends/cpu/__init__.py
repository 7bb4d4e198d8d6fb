"""The compiled CPU kernels."""

from .backend import create

__all__ = ["create"]
