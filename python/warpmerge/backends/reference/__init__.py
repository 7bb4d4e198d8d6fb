"""The reference: every request in plain PyTorch, written to be read. It defines what kernels compute."""

from .backend import create

__all__ = ["create"]
