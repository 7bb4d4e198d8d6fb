"""The model card: Markdown with YAML in front, in which texts of a recipe stay what they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import printable
from .documents import yaml_text
from .names import MANIFEST

if TYPE_CHECKING:
    from ..recipe import Recipe


def card(recipe: Recipe, seed: int) -> bytes:
    """The card of a merge: its models and its recipe."""
    base = [recipe.base] if recipe.base else []
    models = list(dict.fromkeys([*base, *recipe.models]))
    front = {"base_model": [str(m) for m in models], "library_name": "transformers", "tags": ["merge", "warpmerge"]}
    paper = f" ({printable(recipe.method.paper)})" if recipe.method.paper else ""
    text = recipe.to_yaml().rstrip()
    fence = "`" * max(3, _ticks(text) + 1)
    return f"""---
{yaml_text(front)}---

# Merged model

Made by [warpmerge](https://pypi.org/project/warpmerge/) with the method {_code(recipe.method.name)}{paper}.

Models:

{chr(10).join(f"- {_code(str(m))}{' (base)' if m == recipe.base else ''}" for m in models)}

Recipe:

{fence}yaml
{text}
{fence}

Seed {seed}. `warpmerge verify` checks the weights against `{MANIFEST}`.
""".encode()


def _code(text: str) -> str:
    """Text as Markdown shows code. A fence longer than any in the text encloses it, so nothing in it is markup."""
    fence = "`" * (_ticks(text) + 1)
    space = " " if "`" in text or text.isspace() else ""
    return f"{fence}{space}{printable(text)}{space}{fence}"


def _ticks(text: str) -> int:
    """The length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
