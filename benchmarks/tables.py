"""Markdown tables of a result file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .cases import TARGET_SHAPE
from .gpu import tables as gpu

Row = dict[str, Any]
REGIMES = ("warm", "warm, synced", "cold")
CAPTION = (
    "Whole runs of the command. The ratio is to `cat+cp` (read every input byte once, one thread; then `cp` as many "
    "bytes as the output has), run in turn with it; cold, to the disk's time for the inputs. "
    f"{TARGET_SHAPE} in bf16 where nothing else is said."
)


def render(result: dict[str, Any], *, brief: bool = False) -> str:
    """Every table that the file has rows for; `brief`: of the kernels only the best form on all cores."""
    about = result["machine"]
    parts = [about["cpu"], f"{about['cores']} cores", f"{about['memory_gb']:.0f} GB", about.get("gpu", "")]
    tools = f"Python {about['python']}, {about['compiler']}, Linux {about['kernel']}, commit {about['commit']}"
    blocks = [f"Measured on {', '.join(filter(None, parts))} ({tools}), {result['date']}."]
    if about.get("load", 0) > 0.5:
        blocks[0] += f" The machine was not idle: its load average was {about['load']} before the run."
    if "sections" in result:
        blocks += [gpu.about(about), *([] if brief else [gpu.sections(result, _table)])]
    groups: dict[str, list[Row]] = {}
    for row in result["rows"]:
        if not brief or "kernel" not in row or _headline(row, about["cores"]):
            groups.setdefault(row["group"], []).append(row)
    known: dict[str, Callable[[list[Row]], str]] = {
        "merge": _merges,
        "dense": _dense,
        "startup": _startup,
        "kernel": _kernels,
        "peer": _peers,
        "agreement": _agreement,
    }
    blocks += [known[name](groups[name]) for name in known if name in groups]
    blocks += [gpu.render(name, groups[name], _table) for name in gpu.COLUMNS if name in groups]
    return "\n\n".join(blocks)


def _headline(row: Row, cores: int) -> bool:
    if "backend" in row:  # a GPU's
        return row["models"] <= 3
    return row.get("isa") not in ("torch", "avx2", "baseline") and row.get("threads") == cores and row["models"] <= 3


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _spread(values: dict[str, float], unit: str = "") -> str:
    low, high = _number(values["min"]), _number(values["max"])
    return f"{_number(values['median'])}{unit} ({low}-{high})"


def _merges(rows: list[Row]) -> str:
    """Warm rows against cat+cp, cold rows against the disk's time for the same bytes."""
    rows = sorted(rows, key=lambda row: (row["shape"] != TARGET_SHAPE, REGIMES.index(row["regime"])))
    warm = {(row["what"], row["shape"]): row for row in rows if row["regime"] == "warm"}
    body = []
    for row in rows:
        bytes_moved = row["bytes_read"] + row["bytes_written"]
        what = f"`{row['what']}`, {row['regime']}"
        if row["shape"] != TARGET_SHAPE:
            what += f", {row['shape']}"
        reach, aim, roof, ratio = row["reach"], row["aim"], row["roof"], row["ratio"]
        rate = f", {bytes_moved / roof['median'] / 1e9:.1f} GB/s"
        if row["regime"] == "cold":
            roof, rate = row["disk"], f", {row['bytes_read'] / row['disk']['median'] / 1e9:.1f} GB/s"
            reach, aim, ratio = _cold_reach(row, warm.get((row["what"], row["shape"]))), None, roof["ratio"]
        name = "disk" if row["regime"] == "cold" else roof["name"]
        body.append(
            [
                what,
                str(row.get("passes", "-")),
                f"<= {reach:.3g}" if reach else "-",
                f"{aim:.3g}" if aim else "-",
                _spread(ratio),
                f"{row['gb_per_s']:.1f}",
                f"{name} {_number(roof['median'])} s{rate}",
                _number(row["peak_anonymous_mb"]),
            ]
        )
    head = ["what", "passes", "reach", "aim", "ratio: median (min-max)", "GB/s", "roof", "peak anonymous MB"]
    return f"{CAPTION}\n\n{_table(head, body)}"


def _cold_reach(row: Row, warm: Row | None) -> float | None:
    """The disk's time for these bytes + 10 % + what warm costs above its roof, in times the disk's time."""
    if warm is None:
        return None
    above = max(0.0, warm["seconds"]["median"] - warm["roof"]["median"])
    return 1.1 + above / row["disk"]["median"]


def _dense(rows: list[Row]) -> str:
    body = [
        [
            f"`{row['what']}`",
            f"{row['shape']}, {row['models']} models",
            f"{_number(row['seconds']['median'])} s",
            f"{row['torch']['name']}: {_number(row['torch']['median'])} s",
            _spread(row["ratio"]),
        ]
        for row in rows
    ]
    return _table(["what", "matrices", "median", "torch alone, float32", "ratio: median (min-max)"], body)


def _startup(rows: list[Row]) -> str:
    body = [
        [
            f"`{row['what']}`" if row["what"].startswith("warpmerge") else row["what"],
            f"<= {row['reach']} s",
            _spread(row["seconds"], " s"),
            f"{row['roof']['name']}: {_number(row['roof']['median'])} s",
        ]
        for row in rows
    ]
    return _table(["what", "reach", "median (min-max)", "floor"], body)


def _kernels(rows: list[Row]) -> str:
    columns = ["kernel", "what", "dtype", "models", "isa", "device", "threads", "regime"]
    columns += ["GB/s", "roof GB/s", "% of roof", "ns/element/model", "kernel faster by", "reach", "aim"]
    shown = [column for column in columns if any(row.get(column) not in (None, "") for row in rows)]

    def cell(row: Row, column: str) -> str:
        value = row.get(column)
        if column == "kernel":
            return f"`{value}`"
        if isinstance(value, float):
            return f"{value:.0f}" if column == "% of roof" else _number(value)
        return "-" if value is None else str(value)

    return _table(shown, [[cell(row, column) for column in shown] for row in rows])


def _peers(rows: list[Row]) -> str:
    """Of the sets of flags that were tried, the fastest counts."""
    fastest: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = row["what"], row["shape"], row["peer"]
        if key not in fastest or row["seconds"]["median"] < fastest[key]["seconds"]["median"]:
            fastest[key] = row
    body = []
    for row in fastest.values():
        seconds, peak = row["seconds_of"], row["peak_anonymous_mb"]
        ours, theirs, copying = seconds["warpmerge"], seconds["mergekit"], seconds["cat+cp"]
        body.append(
            [
                f"`{row['what']}`" + (f", {row['shape']}" if row["shape"] != TARGET_SHAPE else ""),
                f"{_number(ours)} s",
                f"{_number(theirs)} s" + (f" (`{row['flags']}`)" if row["flags"] else ""),
                _number(theirs / ours),
                f"{_number(ours / copying)} / {_number(theirs / copying)}",
                f"{_number(peak['warpmerge'])} / {_number(peak['mergekit'])}",
            ]
        )
    peer = rows[0]["peer"]
    head = ["what, warm", "warpmerge", peer, "times faster", "both over cat+cp", "both, peak anonymous MB"]
    return _table(head, body)


def _agreement(rows: list[Row]) -> str:
    """Differences are relative to a tensor's largest value; random methods are compared by what they keep."""
    peer = rows[0]["peer"]
    exact = [row for row in rows if "difference" in row]
    random = [row for row in rows if "kept" in row]
    body = [
        [
            f"`{row['what']}`",
            f"{row['difference']:.1g}",
            *(f"{row['from_float64'][tool]:.1g}" for tool in ("warpmerge", "mergekit")),
        ]
        for row in exact
    ]
    head = ["float32, no ties", "difference", "warpmerge from float64", f"{peer} from float64"]
    blocks = [_table(head, body)] if exact else []
    body = [
        [
            f"`{row['what']}`",
            *(f"{row['kept'][tool]:.4f}, {row['l1_ratio'][tool]:.4f}" for tool in ("warpmerge", "mergekit")),
        ]
        for row in random
    ]
    head = ["float32, density 0.5", "warpmerge: kept, L1 norm after / before", peer]
    return "\n\n".join(blocks + ([_table(head, body)] if random else []))
