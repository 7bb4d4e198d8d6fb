"""Markdown tables of a result file."""

from __future__ import annotations

from typing import Any

from .cases import TARGET_SHAPE
from .cells import Columns, Row, figure, number, of_columns, percent, spread, table, text
from .gpu import tables as gpu

REGIMES = ("warm", "warm, synced", "cold")
CAPTION = (
    "Whole runs of the command, in turn with `cat+cp`: one thread reads every input byte once, then `cp` copies as "
    "many bytes as the output has. The ratio is the merge's time divided by that of `cat+cp`; cold, by the disk's time "
    "for the inputs. `target` is the required limit, `aim` the wanted one. "
    f"The model is {TARGET_SHAPE} in bf16 unless a row names another one."
)


def render(result: dict[str, Any], *, brief: bool = False) -> str:
    """All tables of a result file. brief: of each kernel only the form that runs by default, on all cores."""
    about = result["machine"]
    parts = [about["cpu"], f"{about['cores']} cores", f"{about['memory_gb']:.0f} GB", about.get("gpu", "")]
    tools = f"Python {about['python']}, {about['compiler']}, Linux {about['kernel']}, commit {about['commit']}"
    blocks = [f"Measured on {', '.join(filter(None, parts))} ({tools}), {result['date']}."]
    if about.get("load", 0) > 0.5:
        blocks[0] += f" The machine was not idle: its load average was {about['load']} before the run."
    if "sections" in result:
        blocks += [gpu.about(about), *([] if brief else [gpu.sections(result)])]
    groups: dict[str, list[Row]] = {}
    for row in result["rows"]:
        if not brief or "kernel" not in row or _headline(row, about["cores"]):
            groups.setdefault(row["group"], []).append(row)
    written = {"merge": _merges, "peer": _peers, "agreement": _agreement}
    for name in ("merge", "dense", "startup", "kernel", "peer", "agreement", *gpu.COLUMNS):
        if found := groups.get(name):
            blocks.append(written[name](found) if name in written else of_columns(COLUMNS[name], found))
    return "\n\n".join(blocks)


def _headline(row: Row, cores: int) -> bool:
    if "backend" in row:  # a GPU's
        return row["models"] <= 3
    return row.get("isa") not in ("torch", "avx2", "baseline") and row.get("threads") == cores and row["models"] <= 3


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
                spread(ratio),
                f"{row['gb_per_s']:.1f}",
                f"{name} {number(roof['median'])} s{rate}",
                number(row["peak_anonymous_mb"]),
            ]
        )
    head = ["method", "passes", "target", "aim", "ratio: median (min-max)", "GB/s", "roof", "peak anonymous MB"]
    small = [row for row in rows if "per byte of dense" in row]
    return "\n\n".join([CAPTION, table(head, body), *([of_columns(SMALL_TENSORS, small)] if small else [])])


SMALL_TENSORS: Columns = {
    "many small tensors": lambda r: f"`{r['what']}`, {r['shape']}",
    "target": lambda r: f"<= {r['dense reach']}",
    f"time of a byte over {TARGET_SHAPE}'s: median (min-max)": lambda r: spread(r["per byte of dense"]),
}


def _cold_reach(row: Row, warm: Row | None) -> float | None:
    """The disk's time for these bytes + 10 % + what warm costs above its roof, in times the disk's time."""
    if warm is None:
        return None
    above = max(0.0, warm["seconds"]["median"] - warm["roof"]["median"])
    return 1.1 + above / row["disk"]["median"]


COLUMNS: dict[str, Columns] = {
    "dense": {
        "method": lambda r: f"`{r['what']}`",
        "matrices": lambda r: f"{r['shape']}, {r['models']} models",
        "median": lambda r: f"{number(r['seconds']['median'])} s",
        "torch alone, float32": lambda r: f"{r['torch']['name']}: {number(r['torch']['median'])} s",
        "ratio: median (min-max)": lambda r: spread(r["ratio"]),
    },
    "startup": {
        "command": lambda r: f"`{r['what']}`" if r["what"].startswith("warpmerge") else r["what"],
        "target": lambda r: f"<= {r['reach']} s",
        "median (min-max)": lambda r: spread(r["seconds"], " s"),
        "floor": lambda r: f"{r['roof']['name']}: {number(r['roof']['median'])} s",
    },
    "kernel": {
        "kernel": lambda r: f"`{r['kernel']}`",
        "case": lambda r: text(r, "what"),
        "dtype": lambda r: text(r, "dtype"),
        "models": lambda r: text(r, "models"),
        "isa": lambda r: text(r, "isa"),
        "threads": lambda r: text(r, "threads"),
        "regime": lambda r: text(r, "regime"),
        "GB/s": lambda r: figure(r, "GB/s"),
        "roof GB/s": lambda r: figure(r, "roof GB/s"),
        "% of roof": percent,
        "ns/element/model": lambda r: figure(r, "ns/element/model"),
        "kernel faster by": lambda r: figure(r, "kernel faster by"),
        "target": lambda r: text(r, "reach"),
        "aim": lambda r: text(r, "aim"),
    },
    **gpu.COLUMNS,
}


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
                f"{number(ours)} s",
                f"{number(theirs)} s" + (f" (`{row['flags']}`)" if row["flags"] else ""),
                number(theirs / ours),
                f"{number(ours / copying)} / {number(theirs / copying)}",
                f"{number(peak['warpmerge'])} / {number(peak['mergekit'])}",
            ]
        )
    peer = rows[0]["peer"]
    head = ["method, warm", "warpmerge", peer, "times faster", "both over cat+cp", "both, peak anonymous MB"]
    return table(head, body)


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
    blocks = [table(head, body)] if exact else []
    body = [
        [
            f"`{row['what']}`",
            *(f"{row['kept'][tool]:.4f}, {row['l1_ratio'][tool]:.4f}" for tool in ("warpmerge", "mergekit")),
        ]
        for row in random
    ]
    head = ["float32, density 0.5", "warpmerge: kept, L1 norm after / before", peer]
    return "\n\n".join(blocks + ([table(head, body)] if random else []))
