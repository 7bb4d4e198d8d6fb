"""Packages that answer a call: `wm.methods()` lists what is in the package `warpmerge.methods`."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(package: str, answer: Callable[[], Any]) -> None:
    """Lets the imported package be called like a function, so that the package and the list share a name."""

    class CallablePackage(types.ModuleType):
        def __call__(self) -> Any:
            return answer()

    sys.modules[package].__class__ = CallablePackage
