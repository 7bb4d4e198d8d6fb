"""Makes docs/compatibility.md from the recorded results."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..machine import ROOT
from .agreement import ORDER, SUMMING, SUMS, WIDE, unexpected
from .data import KINDS
from .text import ACCURACY, DATA, DROPS, INTRODUCTION

PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "benchmarks" / "results" / "compatibility.json"
AGREES = ("agrees", "both refuse")
Row = Mapping[str, Any]


def render(result: Row) -> str:
    rows = result["agreement"]
    shapes = {tuple(s) for row in rows for of in row["outcomes"].values() for s in of}
    introduction = INTRODUCTION.format(
        about=_about(result),
        shapes=", ".join(map(_shape, sorted(shapes, key=lambda s: (len(s), s)))),
        order=ORDER,
        sums=SUMS,
        wide=WIDE,
        summing=", ".join(f"`{m}`" for m in sorted(SUMMING)),
    )
    blocks = ["\n".join(textwrap.fill(line, 120, subsequent_indent="  ") for line in introduction.split("\n"))]
    for peer in ("mergekit", "PEFT"):
        of = [row for row in rows if row["peer"] == peer]
        blocks += [f"## {peer} {result['versions'][peer.lower()]}", _summary(of)]
        blocks += [f"### Where {peer} differs", _differences(of)]
    blocks += ["## Random drops", DROPS, _drops(result["drops"])]
    blocks += ["## Accuracy in bfloat16", ACCURACY, _accuracy(result["accuracy"])]
    blocks += ["## Every case", _cases(rows)]
    kinds = "\n".join(f"| {name} | {' '.join((made.__doc__ or '').split())} |" for name, made in KINDS.items())
    return "\n\n".join([*blocks, DATA.format(rows=kinds)]) + "\n"


def _about(result: Row) -> str:
    about, versions = result["machine"], result["versions"]
    return (
        f"Measured on {result['date']}: warpmerge at commit {about['commit']}, mergekit {versions['mergekit']}, PEFT "
        f"{versions['peft']}, torch {versions['torch']}, Python {about['python']}, on {about['cores']} cores of "
        f"{about['cpu']}."
    )


def described(row: Row) -> str:
    """A case in words."""
    return f"`{row['method']}`, {_case(row)}, {_models(row)}"


def _summary(rows: Sequence[Row]) -> str:
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        agreeing = [row for row in of if set(row["outcomes"]) <= set(AGREES)]
        worst = [max((row["ulps"][p] for row in agreeing), default=None) for p in ("float32", "float64")]
        counts = Counter(_worst(row) for row in of)
        verdict = ", ".join(f"{what} in {n}" for what, n in counts.items()) if len(counts) > 1 else next(iter(counts))
        body.append([f"`{method}`", str(len(of)), *map(_number, worst), verdict])
    return _table(["method", "cases", "float32, ulps", "float64, ulps", "verdict"], body)


def _worst(row: Row) -> str:
    """One verdict for all shapes of a case."""
    odd = [_verdict(outcome, row) for outcome in row["outcomes"] if outcome not in AGREES]
    return odd[0].replace(" in float32 only", "").replace(" in float64 only", "") if odd else "agrees"


def _differences(rows: Sequence[Row]) -> str:
    """Cases that do not agree, by what explains them."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not set(row["outcomes"]) <= set(AGREES):
            reason = "Not explained." if unexpected(row) else row["reason"]
            found.setdefault((row["method"], reason), []).append(row)
    if not found:
        return "Nowhere in these cases."
    body = []
    for (method, reason), of in found.items():
        verdicts = dict.fromkeys(_verdict(o, row) for row in of for o in row["outcomes"] if o not in AGREES)
        errors = [row["errors"]["peer"] for row in of if "peer refuses" in row["outcomes"]]
        why = f"{reason} The error: `{errors[0][:100]}`" if errors else reason
        body.append([f"`{method}`", "; ".join(dict.fromkeys(map(_case, of))), ", ".join(verdicts), why])
    return _table(["method", "case", "verdict", "why"], body)


def _verdict(outcome: str, row: Row) -> str:
    if outcome.startswith("differs"):
        return "differs by design" + outcome.removeprefix("differs")
    return f"{row['peer']} fails" if outcome == "peer refuses" else outcome


def _case(row: Row) -> str:
    """Parameters and data, and which shapes do not agree if others do."""
    odd = [s for outcome, shapes in row["outcomes"].items() if outcome not in AGREES for s in shapes]
    every = sum(map(len, row["outcomes"].values()))
    some = f" ({', '.join(map(_shape, odd))})" if 0 < len(odd) < every or every < 4 else ""
    return f"{_parameters(row['parameters']) or 'defaults'}, {row['data']}{some}"


def _parameters(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_value(value)}" for name, value in given.items() if name != "weight")


def _models(row: Row) -> str:
    weight = row["parameters"].get("weight")
    return f"{row['models']}{', base' if row['base'] else ''}{f', weight {_value(weight)}' if weight else ''}"


def _cases(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        here = row["here"]
        other = [f"`{here['method']}`"] if here["method"] != row["method"] else []
        other += [f"{name}: {_value(v)}" for name, v in here["parameters"].items() if name not in row["parameters"]]
        given = _parameters(row["parameters"]) + (f" (warpmerge: {', '.join(other)})" if other else "")
        outcomes = ", ".join(f"{_verdict(outcome, row)}: {len(shapes)}" for outcome, shapes in row["outcomes"].items())
        peer = "" if row["peer"] == "mergekit" else f" ({row['peer']})"
        far = [_number(row["ulps"][p]) for p in ("float32", "float64")]
        body.append([f"`{row['method']}`{peer}", given, _models(row), row["data"], outcomes, *far])
    return _table(["method", "parameters", "models", "data", "shapes", "float32, ulps", "float64, ulps"], body)


def _drops(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        cells = [f"`{row['method']}`" + ("" if row["peer"] == "mergekit" else f" ({row['peer']})")]
        cells.append(_parameters(row["parameters"]))
        both = [row["warpmerge"], row["theirs"]]
        for found in both:
            known = isinstance(found, Mapping)
            cells += [" / ".join(f"{found[key]:.3f}" for key in ("kept", "least", "largest")) if known else "-"]
            cells += [f"{found['norm']:.3f}" if known else "-"]
        near = [isinstance(found, Mapping) and near_expected(found, row) for found in both]
        cells.append("both" if all(near) else "warpmerge" if near[0] else row["peer"] if near[1] else "neither")
        body.append(cells)
    share = "kept / least / largest"
    return _table(
        ["method", "parameters", f"warpmerge: {share}", "norm", f"other program: {share}", "norm", "as it should be"],
        body,
    )


def near_expected(found: Row, row: Row) -> bool:
    """Whether the shares are within five standard deviations, which are larger for a tenth of the elements."""
    bounds = {"kept": 1, "least": 10**0.5, "largest": 10**0.5}
    return all(abs(found[key] - row["expected"][key]) <= row["five_sigma"] * more for key, more in bounds.items())


def _accuracy(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        cells = [f"`{row['method']}`", _parameters(row["parameters"])]
        for who in ("warpmerge", "default", "float32"):
            error = row["errors"][who]
            cells += [f"{error['largest']:.3g}", f"{error['wrong']:.2%}"] if error else ["-", "-"]
        body.append([*cells, _number(row["float64"]), row["returns"].get("mergekit", "-")])
    head = ["method", "parameters", "warpmerge: error", "wrong", "mergekit: error", "wrong"]
    return _table([*head, "mergekit, float32: error", "wrong", "float64, ulps", "mergekit returns"], body)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, list) else str(value)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if shape else "0-d"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
