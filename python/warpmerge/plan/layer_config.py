"""The config of a model whose layers were chosen anew: their number, and whatever it says of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# How many of the first layers are of another kind.
FIRST = ("max_window_layers", "first_k_dense_replace")
# The numbers of the layers that are of another kind.
NUMBERS = ("mlp_only_layers",)


class Origin(NamedTuple):
    """Where a layer of the output comes from: a model's config and the layer's number there."""

    config: Mapping[str, Any]
    layer: int


def with_layers(config: dict[str, Any], count: int, origins: Sequence[Origin]) -> dict[str, Any]:
    """The config of the output.

    Args:
        config: of the model whose metadata the output takes over.
        count: the number of its layers.
        origins: where each layer of the output comes from.

    Returns:
        A copy in which the number of layers, and lists with one entry for each layer, fit.
    """
    made = {key: with_layers(v, count, _inner(origins, key)) if _counts(v) else v for key, v in config.items()}
    if not _counts(config):
        return made
    for key, value in config.items():
        if key in COUNTS and _is_number(value):
            made[key] = len(origins)
        elif key in FIRST and _is_number(value):
            made[key] = sum(origin.layer < origin.config.get(key, value) for origin in origins)
        elif key in NUMBERS and isinstance(value, list):
            made[key] = [n for n, origin in enumerate(origins) if origin.layer in origin.config.get(key, value)]
        elif isinstance(value, list) and len(value) == count:
            made[key] = [_entry(origin, key, value) for origin in origins]
    return made


def _counts(value: Any) -> bool:
    """Whether it is a config that says how many layers there are."""
    return isinstance(value, dict) and any(_is_number(value.get(key)) for key in COUNTS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _inner(origins: Sequence[Origin], key: str) -> list[Origin]:
    """The origins with the part of their configs that has this key, as `text_config`."""
    found = [(origin.config.get(key), origin.layer) for origin in origins]
    return [Origin(inner if isinstance(inner, dict) else {}, layer) for inner, layer in found]


def _entry(origin: Origin, key: str, ours: list[Any]) -> Any:
    """What the layer's own model says of it; the entry of `ours` if it has no such list."""
    theirs = origin.config.get(key)
    values = theirs if isinstance(theirs, list) and origin.layer < len(theirs) else ours
    return values[min(origin.layer, len(values) - 1)]
