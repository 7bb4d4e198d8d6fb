"""What there is to say of a method, for `warpmerge methods` and docs/methods.md.

python -m warpmerge.methods.document > docs/methods.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import FAMILIES, REGISTRY, Base, Method, Parameter

PARAMETERS = ("parameter", "scope", "default", "values", "meaning")
INTRODUCTION = """# Methods

Made from the methods' own descriptions by `python -m warpmerge.methods.document`. `warpmerge methods NAME` shows the
same for one of them, those of [plug-ins](plugins.md) included.

In the formulas `x_1 ... x_K` are one tensor of the merged models, `x_0` is that of the base, `d_k = x_k - x_0`, `n` its
number of elements and `y` the result. Sums and means run over the models `k`; `w_k` is a model's `weight`; `|v|` is the
root of the sum of squares of all elements, `|v|_1` the sum of their magnitudes (but `|d_k|` in a comparison of elements
is a magnitude). Everything is done for each tensor by itself. [numerics.md](numerics.md) says how it is rounded,
[recipes.md](recipes.md) how parameters are given and what differs from mergekit whatever the method.

A **pass** is one read of all inputs; the last one also writes. Every method has the parameter `nonfinite` as well:
`error` (default) stops the merge at a NaN or infinity, `propagate` lets it through, `base` counts it as unchanged.

`semantics` names a **preset**: a set of options that give a method the meaning it has elsewhere. An option that is
given wins over the preset, for single models and tensors too; `normalize` wins over a preset's `divisor`. Where a paper
has no weights, its preset sets them to 1. Presets set nothing that people tune, such as `density` or `lambda`.
"""


def scope(parameter: Parameter) -> str:
    return "per model" if parameter.per_model else "all models"


def default(parameter: Parameter) -> str:
    return "required" if parameter.required else "-" if parameter.default is None else _shown(parameter.default)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def parameter_rows(method: Method) -> list[list[str]]:
    return [[p.name, scope(p), default(p), p.kind, p.help] for p in method.parameters]


def preset_rows(method: Method) -> list[list[str]]:
    """The presets, and the options that each one sets."""
    rows = []
    for number, (preset, options) in enumerate(method.presets.items()):
        sets = ", ".join(f"{name}: {_shown(value)}" for name, value in options.items())
        rows.append([preset, sets or ("nothing: the defaults" if number == 0 else "nothing")])
    return rows


def facts(method: Method) -> Iterator[tuple[str, str]]:
    """Titles and texts."""
    least, most = method.models
    count = f"exactly {least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
    yield (
        "models",
        count + {Base.REFERENCE: " besides the base", Base.OPTIONAL: ", a base not counted"}.get(method.base, ""),
    )
    yield "base_model", method.base.value
    yield "passes", method.reads
    if method.paper:
        yield "source", method.paper
    for note in method.notes:
        yield "note", note


def document() -> str:
    """docs/methods.md: the built-in methods."""
    parts = [INTRODUCTION]
    for family in FAMILIES:
        title = (family.__doc__ or "").partition(":")[0].partition(".")[0]
        members = [m for m in REGISTRY.values() if m.module == family.__name__]
        parts += [f"## {title}\n", *map(_section, members)]
    return "\n".join(parts)


def _section(method: Method) -> str:
    lines = [f"### `{method.name}`", "", method.summary, "", "```", method.formula, "```", ""]
    rows = [[f"`{name}`", *rest] for name, *rest in parameter_rows(method) if name != "nonfinite"]
    lines += _table(PARAMETERS, rows) if rows else []
    lines += [f"- {title}: {text}" for title, text in facts(method)]
    for source, differences in method.differences.items():
        first, *more = differences
        lines += [f"- different from {source}: {first}"] if not more else [f"- different from {source}:"]
        lines += [f"  - {text}" for text in differences if more]
    lines += [""]
    if len(method.presets) > 1:
        lines += _table(("`semantics`", "sets"), [[f"`{p}`", _code(sets)] for p, sets in preset_rows(method)])
    return "\n".join(lines)


def _code(sets: str) -> str:
    return ", ".join(f"`{option}`" for option in sets.split(", ")) if not sets.startswith("nothing") else sets


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


if __name__ == "__main__":
    print(document(), end="")
