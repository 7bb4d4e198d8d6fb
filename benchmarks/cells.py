"""Cells of Markdown tables, and tables that are made of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_columns(columns: Columns, rows: Sequence[Row]) -> str:
    """One line for each row. Columns that are empty in every row are left out."""
    body = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    shown = {name: cells for name, cells in body.items() if any(cell != "-" for cell in cells)}
    return table(list(shown), [list(line) for line in zip(*shown.values(), strict=True)])


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")) + unit


def text(row: Row, key: str) -> str:
    value = row.get(key)
    return "-" if value in (None, "") else str(value)


def figure(row: Row, key: str) -> str:
    """A number of the row."""
    return number(row.get(key))


def percent(row: Row, key: str = "% of roof") -> str:
    return f"{row[key]:.0f}" if key in row else "-"


def spread(values: Mapping[str, float], unit: str = "") -> str:
    low, high = number(values["min"]), number(values["max"])
    return f"{number(values['median'])}{unit} ({low}-{high})"
