"""The description of a method, for `warpmerge methods` and docs/methods.md.

python -m warpmerge.methods.document > docs/methods.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import FAMILIES, REGISTRY, Base, Method, Parameter

PARAMETERS = ("parameter", "given", "default", "values", "meaning")
INTRODUCTION = """# Methods

`python -m warpmerge.methods.document` makes this page from the methods' own descriptions. `warpmerge methods NAME`
shows the same for one method, also for a method of a [plug-in](plugins.md).

**Formulas.** `x_1 ... x_K` are one tensor of the merged models. `x_0` is the base's tensor, `d_k = x_k - x_0` a delta,
`n` the number of elements, `y` the result. Sums and means run over the models `k`. `w_k` is a model's `weight`. `|v|`
is the norm of a tensor, the root of the sum of squares; `|v|_1` is the sum of magnitudes. `|d_k|` in a comparison of
elements is the magnitude of one element. `polar(M)` is the orthogonal factor of M's polar decomposition.

**Scope.** A method merges one tensor after the other. Its statistics are those of the tensor. With `scope: model` they
are those of the whole model: one threshold, one norm or one decision then holds for all tensors.

**Passes.** A pass is one read of all inputs. The last pass also writes.

**NaN.** Every method has the parameter `nonfinite` too: `error` (default) stops the merge at a NaN or infinity
in a model, or if a result is too large for its dtype; `propagate` lets them through, `base` takes the base's element
instead.

**Presets.** The parameter `semantics` names a preset: a set of options that gives a method the meaning of one
implementation. An option that you set wins over the preset, also for a single model or tensor. `normalize` wins over a
preset's `divisor`. If a paper has no weights, its preset sets them to 1. No preset sets `density` or `lambda`: people
tune these.

[numerics.md](numerics.md) says how results are rounded. [recipes.md](recipes.md) says how to give parameters, and
lists the differences from mergekit that hold for every method.
"""


def given(parameter: Parameter) -> str:
    """To whom a value belongs: a parameter has one for each model, or one for all models."""
    return "per model" if parameter.per_model else "all models"


def default(parameter: Parameter) -> str:
    """Its default as text: `required` if it has none, `-` if it may be left out."""
    return "required" if parameter.required else "-" if parameter.default is None else _shown(parameter.default)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def parameter_rows(method: Method) -> list[list[str]]:
    """One row for each parameter, with the columns PARAMETERS."""
    return [[p.name, given(p), default(p), p.kind, p.help] for p in method.parameters]


def preset_rows(method: Method) -> list[list[str]]:
    """One row for each preset: its name, and the options that it sets."""
    rows = []
    for number, (preset, options) in enumerate(method.presets.items()):
        sets = ", ".join(f"{name}: {_shown(value)}" for name, value in options.items())
        rows.append([preset, sets or ("nothing: the defaults" if number == 0 else "nothing")])
    return rows


def facts(method: Method) -> Iterator[tuple[str, str]]:
    """Lines of a description as pairs of a title and a text."""
    least, most = method.models
    count = f"exactly {least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
    yield (
        "models",
        count + {Base.REFERENCE: " besides the base", Base.OPTIONAL: ", without the base"}.get(method.base, ""),
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
