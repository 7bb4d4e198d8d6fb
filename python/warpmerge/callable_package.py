"""Packages that can be called: `wm.list_methods()` and `wm.list_backends()`, the former names of two functions."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from typing import Any


def make_callable(package: str, function: Callable[[], Any]) -> None:
    """Lets an imported package be called as the former name of `function`, with a DeprecationWarning."""

    class CallablePackage(types.ModuleType):
        def __call__(self) -> Any:
            name = package.rpartition(".")[2]
            text = f"warpmerge.{name}() is deprecated; call warpmerge.{function.__name__}()."
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function()

    sys.modules[package].__class__ = CallablePackage
