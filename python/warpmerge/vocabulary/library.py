"""The libraries that work on tokenizers. They are imported when a recipe asks for a tokenizer, and only then."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import system
from ..errors import CheckpointError, UsageError
from ..models.companions import LARGEST
from ..models.names import TOKENIZER, is_tokenizer_file

INSTALL = "run `pip install warpmerge[tokenizer]`, or remove 'tokenizer' and 'tokenizer_source' from the recipe"


def tokenizers() -> Any:
    """The module `tokenizers`. Raises UsageError if it is not there."""
    try:
        import tokenizers as found
    except ImportError:
        raise UsageError(f"the recipe asks for a tokenizer, which needs the package tokenizers: {INSTALL}.") from None
    return found


@contextmanager
def reading(title: str) -> Iterator[None]:
    """Whatever the library raises in the block is a CheckpointError about the tokenizer of a model."""
    try:
        yield
    except (CheckpointError, UsageError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")[:300]
        raise CheckpointError(f"the tokenizer of {title} cannot be read: {reason or type(error).__name__}.") from None


def parsed(raw: bytes, title: str) -> Any:
    """The tokenizer that a tokenizer.json describes. Raises CheckpointError."""
    library = tokenizers()
    with reading(title):
        return library.Tokenizer.from_buffer(raw)


def converted(directory: Path, title: str) -> dict[str, bytes]:
    """The files of a tokenizer that has no tokenizer.json, as transformers writes them. Raises CheckpointError."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError(
            f"the tokenizer of {title} has no {TOKENIZER}; to convert it, {INSTALL.split(',')[0]}."
        ) from None
    with reading(title), tempfile.TemporaryDirectory() as made:
        found = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        found.save_pretrained(made)
        names = sorted(name for name in system.calls.listdir(made) if is_tokenizer_file(name))
        files = {name: system.read_file(Path(made, name), LARGEST) for name in names}
        if TOKENIZER not in files:
            raise CheckpointError(f"the tokenizer of {title} cannot be converted to a {TOKENIZER}.")
        return files
