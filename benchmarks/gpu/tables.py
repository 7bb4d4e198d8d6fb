"""Tables of the results of `make gpu`; benchmarks/tables.py renders them with the others."""

from __future__ import annotations

from typing import Any

from ..cells import Columns, Row, figure, number, percent, table, text


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return number(seconds / scale, f" {unit}")
    raise AssertionError


def spread(row: Row, key: str = "seconds") -> str:
    values = row.get(key)
    if not values:
        return "-"
    if "min" not in values:
        return duration(values["median"])
    return f"{duration(values['median'])} ({duration(values['min'])} - {duration(values['max'])})"


def _note(row: Row) -> str:
    return row.get("note", "-")


COLUMNS: dict[str, Columns] = {
    "gpu roof": {
        "roof": lambda r: r["what"],
        "median (min - max)": spread,
        "GB/s": lambda r: figure(r, "GB/s"),
        "note": _note,
    },
    "gpu kernel": {
        "kernel": lambda r: f"`{r['kernel']}`",
        "case": lambda r: text(r, "what"),
        "backend": lambda r: r["backend"],
        "dtype": lambda r: r["dtype"],
        "models": lambda r: text(r, "models"),
        "median (min - max)": spread,
        "GB/s": lambda r: figure(r, "GB/s"),
        "copy GB/s": lambda r: figure(r, "roof GB/s"),
        "% of copy": percent,
        "target": lambda r: text(r, "reach"),
        "note": _note,
    },
    "gpu method": {
        "method": lambda r: f"`{r['what']}`",
        "backend": lambda r: r["backend"],
        "models": lambda r: text(r, "models"),
        "median (min - max)": spread,
        "GB/s": lambda r: figure(r, "GB/s"),
        "% of copy": percent,
        "plain PyTorch": lambda r: _other(r, "plain"),
        "times faster": lambda r: number(r.get("plain", {}).get("ratio")),
        "with argsort": lambda r: _other(r, "argsort"),
        "times faster ": lambda r: number(r.get("argsort", {}).get("ratio")),
        "target": lambda r: text(r, "reach"),
        "note": _note,
    },
    "gpu model": {
        "whole model": lambda r: r["what"],
        "backend": lambda r: r["backend"],
        "median (min - max)": spread,
        "GB/s": lambda r: figure(r, "GB/s"),
        "% of copy": percent,
        "tensors": lambda r: text(r, "tensors"),
        "launches": lambda r: text(r, "launches"),
        "host waits": lambda r: text(r, "waits"),
        "note": _note,
    },
    "gpu drawing": {
        "what": lambda r: r["what"],
        "backend": lambda r: r["backend"],
        "median (min - max)": spread,
        "ns/number": lambda r: figure(r, "ns/number"),
        "times the first": lambda r: number(r.get("ratio")),
        "note": _note,
    },
    "gpu host": {
        "tensors of the host": lambda r: f"`{r['what']}`",
        "backend": lambda r: r["backend"],
        "median (min - max)": spread,
        "GB/s": lambda r: figure(r, "GB/s"),
        "limit of the bus": lambda r: duration(r["limit"]) if "limit" in r else "-",
        "% of limit": lambda r: percent(r, "% of limit"),
        "on the CPU": lambda r: spread(r, "cpu"),
        "target": lambda r: text(r, "reach"),
        "note": _note,
    },
    "gpu disk": {
        "files in the page cache": lambda r: r["what"],
        "backend": lambda r: r["backend"],
        "median (min - max)": spread,
        "GB/s": lambda r: figure(r, "GB/s"),
        "cat+cp": lambda r: spread(r, "roof"),
        "ratio to cat+cp": lambda r: number(r.get("ratio", {}).get("median")),
        "note": _note,
    },
    "gpu profile": {
        "hardware counters": lambda r: f"`{r['what']}`",
        "time": spread,
        "DRAM, % of peak": lambda r: percent(r, "% of peak"),
        "DRAM GB": lambda r: number(r["bytes"] / 1e9) if "bytes" in r else "-",
        **{
            name: lambda r, name=name: figure(r, name)
            for name in ("% issue", "% alu", "% fma", "% fp64", "% xu", "% warps")
        },
        **{name: lambda r, name=name: figure(r, name) for name in ("stall, memory", "stall, pipe", "stall, wait")},
    },
}


def _other(row: Row, key: str) -> str:
    other = row.get(key)
    if not other:
        return "-"
    return duration(other["median"]) + (f" ({other['how']})" if other.get("how") else "")


def sections(result: dict[str, Any]) -> str:
    """How the steps ended, and the tests."""
    body = [
        [
            s["section"],
            s.get("backend") or "-",
            s["status"],
            f"{s['seconds']:.0f} s",
            text(s, "rows"),
            s.get("error") or "-",
        ]
        for s in result["sections"]
    ]
    blocks = [table(["step", "backend", "status", "time", "rows", "error"], body)]
    if tests := result.get("tests"):
        blocks.append(f"Tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped.")
        blocks += [f"- {failure}" for failure in tests["failures"]]
    return "\n\n".join(blocks)


def about(machine: dict[str, Any]) -> str:
    """The GPU that was measured."""
    parts = [
        machine["gpu"] or "no GPU",
        f"driver {machine['driver']}" if machine.get("driver") else "",
        f"CUDA {machine['nvcc'].removeprefix('cuda_')}" if machine.get("nvcc") else "",
        f"runtime {machine['cuda_runtime']} for {machine['cuda_architectures']}" if machine.get("cuda_runtime") else "",
        f"torch {machine['torch']}" if machine.get("torch") else "",
        f"triton {machine['triton']}" if machine.get("triton") else "",
        f"clocks {machine['sm_clock_mhz']:.0f} of {machine['sm_clock_max_mhz']:.0f} MHz before"
        if isinstance(machine.get("sm_clock_mhz"), float) and isinstance(machine.get("sm_clock_max_mhz"), float)
        else "",
    ]
    line = f"GPU: {', '.join(filter(None, parts))}."
    if (used := machine.get("gpu_utilization_percent")) and isinstance(used, float) and used > 5:
        line += f" The GPU was not idle: {used:.0f} % utilisation before the run."
    return line
