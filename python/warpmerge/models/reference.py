"""How a recipe names a model: a directory, or an id on the Hugging Face hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class ModelRef:
    """A directory, or an id on the Hugging Face hub with an optional revision; `adapter`: one that is applied to it.

    Two references to one directory are equal, however they spell it; `str` is the recipe's spelling.
    """

    path: str = field(compare=False)
    revision: str | None = None
    adapter: ModelRef | None = None
    identity: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        local = os.path.expanduser(self.path)
        object.__setattr__(self, "identity", os.path.realpath(local) if os.path.isdir(local) else self.path)

    def __str__(self) -> str:
        own = self.path if self.revision is None else f"{self.path}@{self.revision}"
        return own if self.adapter is None else f"{own}+{self.adapter}"

    @property
    def without_adapter(self) -> ModelRef:
        return replace(self, adapter=None)
