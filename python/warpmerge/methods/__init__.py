"""Merge methods, one file per family.

Importing this package registers the built-in methods. docs/plugins.md says how to write others, CONTRIBUTING.md how to
add one here. A family's file starts with an essay; the first words of the essay are its title in docs/methods.md.
"""

from ..callable_package import make_callable
from . import della, dense, fisher, fusion, linear, masks, order, pcb, robust, sparse, spherical, task_vectors, widen
from .auxiliary import AuxiliaryTensor
from .base import Base, Method, Steps, TensorInfo, check_sum, total
from .parameters import Parameter, boolean, choice, integer, number
from .registry import REGISTRY, find, list_methods, load_plugins, method

FAMILIES = (linear, task_vectors, sparse, della, masks, pcb, fusion, widen, spherical, robust, order, fisher, dense)


__all__ = [
    "FAMILIES",
    "REGISTRY",
    "AuxiliaryTensor",
    "Base",
    "Method",
    "Parameter",
    "Steps",
    "TensorInfo",
    "boolean",
    "check_sum",
    "choice",
    "find",
    "integer",
    "list_methods",
    "load_plugins",
    "method",
    "number",
    "total",
]

make_callable(__name__, list_methods)
