"""What becomes of the tokenizer in an output. Apart from the work on tokenizers, which few merges need to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..models.sidecars import Content


@dataclass(frozen=True)
class Tokenized:
    """What a recipe's choice of a tokenizer and a chat template comes to.

    Attributes:
        files: by name those that replace the tokenizer of the metadata source; None: it is taken over.
        notices: what users should know, a sentence each.
        directories: what was read beside the checkpoints.
        fingerprint: of the rows that are taken from each model.
    """

    files: Mapping[str, Content] | None = None
    notices: tuple[str, ...] = ()
    directories: tuple[Path, ...] = ()
    fingerprint: str = ""
