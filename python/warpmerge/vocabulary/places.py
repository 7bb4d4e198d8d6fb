"""Where a checkpoint has an axis of the vocabulary: the names of embeddings and heads, and the keys of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError
from ..models import Checkpoint
from ..recipe.resolve import layer_of

# The last part but one of the tensors' names.
EMBEDDINGS = {"embed_tokens", "wte", "word_embeddings", "word_embedding", "tok_embeddings", "token_embedding"}
EMBEDDINGS |= {"embed_in", "shared", "embeddings"}
HEADS = {"lm_head", "embed_out"}
# Also of other tensors: these are heads if they have the rows of the embedding.
MAYBE_HEADS = {"output", "output_layer", "proj_out", "decoder", "predictions", "vocab_projector"}


def vocabulary_tensors(checkpoint: Checkpoint) -> dict[str, int]:
    """The rows of each tensor whose first axis is the vocabulary: input embedding, head and its bias.

    Raises:
        CheckpointError: there is no input embedding.
    """
    shapes = dict(zip(checkpoint.columns.names, checkpoint.columns.shapes, strict=True))
    outside = {name: shape for name, shape in shapes.items() if shape and layer_of(name) is None}
    sizes = set(_sizes(checkpoint.config()))
    embeddings = [name for name, shape in outside.items() if _part(name) in EMBEDDINGS and len(shape) == 2]
    declared = [name for name in embeddings if outside[name][0] in sizes]
    if not embeddings:
        raise CheckpointError(f"{checkpoint.title} has no input embedding, which a recipe with a tokenizer rearranges.")
    first = (declared or embeddings)[0]
    rows = outside[first][0]

    def has_vocabulary(name: str, count: int) -> bool:
        return _part(name) in HEADS or (count == rows and _part(name) in EMBEDDINGS | MAYBE_HEADS)

    found = {name: shape[0] for name, shape in outside.items() if has_vocabulary(name, shape[0])}
    return {first: rows, **found}


def _part(name: str) -> str:
    return name.split(".")[-2] if "." in name else ""


def _sizes(config: Mapping[str, Any]) -> list[int]:
    """What a config and its parts say of the size of the vocabulary."""
    found = [config["vocab_size"]] if isinstance(config.get("vocab_size"), int) else []
    return [*found, *(size for value in config.values() if isinstance(value, dict) for size in _sizes(value))]


def with_vocabulary(
    config: dict[str, Any], rows: int, found: int, moved: Callable[[int], int | None] | None
) -> dict[str, Any]:
    """The config of the output.

    Args:
        config: of the model whose metadata the output takes over.
        rows: of the output.
        found: those that the model has.
        moved: the new id of a token; None: ids stay.

    Returns:
        A copy that says how many rows there are, and where special tokens are.
    """
    made = _resized(config, rows, found, moved)
    return made if _sizes(made) or not config else made | {"vocab_size": rows}


def _resized(
    config: dict[str, Any], rows: int, found: int, moved: Callable[[int], int | None] | None
) -> dict[str, Any]:
    made = {key: _resized(v, rows, found, moved) if isinstance(v, dict) else v for key, v in config.items()}
    if config.get("vocab_size") == found:
        made["vocab_size"] = rows
    return renamed(made, moved) if moved else made


def renamed(config: dict[str, Any], moved: Callable[[int], int | None]) -> dict[str, Any]:
    """A copy in which the ids of special tokens are those of the output."""
    return config | {key: _moved(value, moved) for key, value in config.items() if key.endswith("_token_id")}


def _moved(value: Any, moved: Callable[[int], int | None]) -> Any:
    if isinstance(value, list):
        return [new for old in value if (new := _moved(old, moved)) is not None]
    return moved(value) if isinstance(value, int) and not isinstance(value, bool) else value
