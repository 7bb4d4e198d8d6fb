"""Merge methods, one file per family. Importing this package registers them."""

from ..callable_package import make_callable
from . import linear, robust, spherical, task_vectors
from .base import REGISTRY, Base, Method, Parameter, TensorInfo, find

__all__ = [
    "REGISTRY",
    "Base",
    "Method",
    "Parameter",
    "TensorInfo",
    "find",
    "linear",
    "robust",
    "spherical",
    "task_vectors",
]

make_callable(__name__, lambda: tuple(REGISTRY[name] for name in sorted(REGISTRY)))
