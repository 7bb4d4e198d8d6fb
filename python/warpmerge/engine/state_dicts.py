"""State dicts as callers give them: mappings from names to tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UsageError, shown


def tensors_of(given: Any, title: str) -> dict[str, Any]:
    """What a mapping holds. It is asked for each tensor once, as it may make them when asked.

    Args:
        given: the mapping.
        title: the mapping, as messages call it.

    Raises UsageError for anything else, for names that are no strings, and for a mapping that changes meanwhile.
    """
    if not isinstance(given, Mapping):
        hint = "its state_dict()" if hasattr(given, "state_dict") else "a mapping from names to tensors"
        raise UsageError(f"{title} is a {type(given).__name__}; give {hint}.")
    changed = UsageError(f"{title} changed while it was read; let nobody change it during a call.")
    try:
        names = list(given)
    except RuntimeError as error:
        raise changed if "during iteration" in str(error) else error from None
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None:
        raise UsageError(f"{title} has the name {shown(odd)}, which is a {type(odd).__name__}; names are strings.")
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{title} has a name that is no text: {error.reason}; rename that tensor.") from None
    try:
        return {name: given[name] for name in names}
    except KeyError:
        raise changed from None


class Asked:
    """Mappings that may come more than once. Each is asked for its tensors once."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, dict[str, Any]]] = {}

    def tensors(self, given: Any, title: str) -> dict[str, Any]:
        """`tensors_of`; the same dictionary for the same mapping."""
        if id(given) not in self._found:
            self._found[id(given)] = given, tensors_of(given, title)  # held: another may get its id
        return self._found[id(given)][1]


def listed(given: Any, what: str) -> list[Any]:
    """The members of a list that is an argument. Raises UsageError for what has no members."""
    try:
        members: Iterable[Any] = iter(given)
    except (TypeError, ValueError, RuntimeError):  # one tensor may be taken for many, but not each can be
        raise UsageError(f"{what} are a list, not a {type(given).__name__}.") from None
    return list(members)
