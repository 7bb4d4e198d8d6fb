"""Reports as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..units import show_size
from .differences import DiffReport, TensorDiff
from .outputs import Checked, VerifyReport

NAMED = 20  # tensors that are listed by name


def verified(report: VerifyReport) -> Iterator[str]:
    """What was checked, where nothing was found."""
    everything = f"{report.out}: {_amount(report.tensors, report.nbytes)}"
    if len(report.digests.names) == report.tensors:
        yield f"{everything}, all as in the manifest"
    else:
        yield f"{everything}, names, shapes and dtypes as in the manifest"
        share = report.digests.nbytes / max(1, report.nbytes)
        yield f"digests compared: {_checked(report.digests)} ({share:.1%}), as in the manifest"
        yield from _few(report.digests)
    if report.recomputed is not None:
        yield f"merged again: {_checked(report.recomputed)}, the same bits"
        yield from _few(report.recomputed)
    if report.seed is not None:
        yield f"chosen with --seed {report.seed}"


def _few(checked: Checked) -> Iterator[str]:
    if len(checked.names) <= NAMED:
        yield from (f"  {name}" for name in checked.names)


def refuted(report: VerifyReport) -> str:
    """The last line after the problems."""
    count = len(report.problems)
    if report.recomputed is None:
        found = f"{report.out} differs from its manifest in {_count(count)}."
    else:
        found = f"{report.out}: {count:,} problem{'s' * (count != 1)} in what was compared and merged again."
    return found + ("" if report.seed is None else f" --seed {report.seed} chooses the same tensors again.")


HEAD = ["tensor", "dtype", "shape", "differing", "share", "largest", "relative", "cosine"]
RIGHT = frozenset(range(3, 9))


def diff_rows(report: DiffReport, top: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of the tensors that differ most."""
    listed = report.differing[:top]
    odd = any(found.not_finite for found in listed)
    rows = [[*_row(found), *([f"{found.not_finite:,}"] if odd else [])] for found in listed]
    return HEAD + ["not finite"] * odd, rows


def _row(found: TensorDiff) -> list[str]:
    a, b = found.dtypes
    return [
        found.name,
        a if a == b else f"{a} / {b}",
        str(list(found.shape)),
        f"{found.differing:,}",
        f"{found.differing / max(1, found.count):.2%}",
        _number(found.largest, "#.3g"),
        _number(found.relative, "#.3g"),
        _number(found.cosine, ".6f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form).rstrip(".")


def diff_others(report: DiffReport, top: int) -> Iterator[str]:
    """Tensors that are not in the table, and a summary."""
    if len(report.differing) > top:
        yield f"... and {_count(len(report.differing) - top)} more; --top {len(report.differing)} shows all"
    yield from _listed([f"only in {report.a}: {name}" for name in report.only_a], top)
    yield from _listed([f"only in {report.b}: {name}" for name in report.only_b], top)
    described = [
        f"{other.name}: {other.dtypes[0]} {list(other.shapes[0])} in {report.a}, "
        f"{other.dtypes[1]} {list(other.shapes[1])} in {report.b}"
        for other in report.unlike
    ]
    yield from _listed(described, top)
    if report.equal:
        yield f"equal: {_amount(report.tensors, report.nbytes)}"
    else:
        size = f"{show_size(report.differing_bytes)} of {show_size(report.nbytes)}"
        yield f"{report.count:,} of {_count(report.tensors)} differ: {size}"


def _listed(lines: Sequence[str], top: int) -> Iterator[str]:
    yield from lines[:top]
    if len(lines) > top:
        yield f"... and {len(lines) - top:,} more like this"


def _count(tensors: int) -> str:
    return f"{tensors:,} tensor{'s' * (tensors != 1)}"


def _amount(tensors: int, nbytes: int) -> str:
    return f"{tensors} tensor{'s' * (tensors != 1)}, {show_size(nbytes)}"


def _checked(checked: Checked) -> str:
    return _amount(len(checked.names), checked.nbytes)
