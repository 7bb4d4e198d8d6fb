"""What was measured on, the result file, and the text that is printed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import time
from pathlib import Path
from typing import Any

from .. import machine, results, tables
from .steps import output_of

RESULTS = results.FOLDER
QUERY = {
    "driver": "driver_version",
    "gpu_memory_gb": "memory.total",
    "gpu_memory_used_gb": "memory.used",
    "gpu_utilization_percent": "utilization.gpu",
    "sm_clock_mhz": "clocks.sm",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "compute_capability": "compute_cap",
}


def describe() -> dict[str, Any]:
    """The machine as `make bench` describes it, and its first GPU."""
    about = machine.describe()
    about["commit"] = os.environ.get("WARPMERGE_COMMIT") or about["commit"]  # a copy of the sources has no history
    query = ["nvidia-smi", f"--query-gpu={','.join(QUERY.values())}", "--format=csv,noheader,nounits"]
    line = next(iter(output_of(query)), "")
    for name, text in zip(QUERY, (part.strip() for part in line.split(",")), strict=False):
        try:
            value: Any = float(text)
        except ValueError:
            value = text
        about[name] = round(value * 2**20 / 1e9, 2) if name.startswith("gpu_memory") else value
    about["nvcc"] = next(
        (w.strip(",") for w in " ".join(output_of(["nvcc", "--version"])).split() if w.startswith("cuda_")), ""
    )
    for package in ("torch", "triton", "numpy"):
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = ""
    return about


def make(about: dict[str, Any], rows: list[dict[str, Any]], outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """The result so far: rows, how the steps ended, and the tests of all steps together."""
    sections = [{name: value for name, value in outcome.items() if name != "tests"} for outcome in outcomes]
    result = {"format": 1, "date": time.strftime("%Y-%m-%d"), "machine": about, "rows": rows, "sections": sections}
    counted = [outcome["tests"] for outcome in outcomes if "tests" in outcome]
    if counted:
        result["tests"] = {name: sum((of[name] for of in counted), type(counted[0][name])()) for name in counted[0]}
    return result


def write(result: dict[str, Any], folder: Path) -> Path:
    about = result["machine"]
    slug = re.sub(r"[^a-z0-9]+", "-", (about["gpu"] or "no gpu").lower()).strip("-")
    path = folder / f"{slug}-{about['commit']}.json"
    results.write(results.rounded(result), path)
    return path


def text(result: dict[str, Any]) -> str:
    return aligned(tables.render(result))


def aligned(markdown: str) -> str:
    """The same text with the columns of its tables padded to one width."""
    lines, block = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("| "):
            block.append([cell.strip() for cell in line.strip("| ").split(" | ")])
            continue
        widths = [max(len(cell) for cell in column) for column in zip(*block, strict=True)] if block else []
        for row in block:
            cells = (
                "-" * width if cell == "---" else cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            lines.append(f"| {' | '.join(cells)} |")
        block = []
        lines.append(line)
    return "\n".join(lines[:-1])
