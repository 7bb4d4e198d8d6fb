"""Recipes of several documents: named ones, whose results others merge, and the last one."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, close_matches, shown

if TYPE_CHECKING:
    from .model import Recipe


def names_of(documents: Sequence[Any], where: str) -> list[str | None]:
    """The key `name` of each document. Raises UsageError if a name is none, or is given twice."""
    names: list[str | None] = []
    for number, document in enumerate(documents):
        name = document.get("name") if isinstance(document, Mapping) else None
        if name is not None and (not isinstance(name, str) or not name):
            raise UsageError(f"{where}: document {number + 1}: name must be text, got {shown(name)}.")
        if name is not None and name in names:
            raise UsageError(f"{where}: two documents have the name '{name}'.")
        names.append(name)
    return names


def ordered(recipes: Sequence[Recipe], names: Sequence[str | None], where: str) -> list[tuple[str, Recipe]]:
    """The documents in the order in which they can be merged. The last one makes the output.

    Raises UsageError if documents refer to each other in a circle, or if it is not clear which one is the last.
    """
    known = {name: number for number, name in enumerate(names) if name is not None}
    uses = {n: [known[ref.path] for ref in recipe.references if ref.path in known] for n, recipe in enumerate(recipes)}
    try:
        order = list(graphlib.TopologicalSorter(uses).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(str(names[n]) for n in error.args[1])
        raise UsageError(f"{where}: documents refer to each other in a circle: {circle}.") from None
    used = {other for others in uses.values() for other in others}
    last = [n for n in range(len(recipes)) if n not in used]
    if len(last) > 1:
        labels = [f"'{names[n]}'" if names[n] else f"document {n + 1}" for n in last]
        spelled = [str(ref) for recipe in recipes for ref in recipe.references if ref.path not in known]
        unused = next((str(names[n]) for n in last if names[n]), "")
        near = close_matches(unused, spelled)
        raise UsageError(
            f"{where}: {' and '.join(labels)} are used by no other document; all but one must be{near or '.'} Use a "
            "document by its name, in place of a model."
        )
    order.remove(last[0])
    return [*((str(names[n]), recipes[n]) for n in order), ("", recipes[last[0]])]
