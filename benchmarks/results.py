"""Turns what pytest-benchmark measured into one small file per machine and commit, and that into tables.

    python -m benchmarks.results collect build/bench/merge.json     prints the path of the file it wrote
    python -m benchmarks.results table benchmarks/results/FILE.json
    python -m benchmarks.results readme benchmarks/results/FILE.json

A second `collect` on the same machine and commit replaces the rows that were measured again and keeps the rest. Rows of
the machine's earlier commits go once they were measured again, and a file without rows is deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from . import machine, tables
from .machine import ROOT

FOLDER = ROOT / "benchmarks" / "results"
MARKERS = ("<!-- benchmarks:begin -->", "<!-- benchmarks:end -->")
COMMIT = r"[0-9a-f]{7,40}(-dirty)?|uncommitted"
ROUNDS_KEPT = 20  # of a micro-benchmark's thousands of rounds the statistics say enough


def collect(measured: Path, folder: Path = FOLDER, name: str | None = None) -> Path:
    """Merges one pytest-benchmark file into the result file of its machine and commit."""
    report = json.loads(measured.read_text())
    about = report["machine_info"].get("warpmerge") or machine.describe()
    made = [_row(benchmark) for benchmark in report["benchmarks"]]
    rows = {row["id"]: row for row in made if row.keys() & {"what", "kernel"}}  # else its test failed
    stem = name or machine.slug(about)
    path = folder / f"{stem}-{about['commit']}.json"
    earlier = [file for file in folder.glob(f"{stem}-*.json") if re.fullmatch(COMMIT, file.stem[len(stem) + 1 :])]
    for file in earlier:
        result = json.loads(file.read_text())
        kept = [row for row in result["rows"] if row["id"] not in rows]
        if file == path:
            rows = {row["id"]: row for row in result["rows"]} | rows
        elif kept:
            write(result | {"rows": kept}, file)
        else:
            file.unlink()
    result = {"format": 1, "date": report["datetime"][:10], "machine": about, "rows": list(rows.values())}
    write(rounded(result), path)
    return path


def write(result: dict[str, Any], path: Path) -> None:
    """Writes a result as JSON, one line for each entry of its lists. A reader sees the old file or the new one."""
    fields = []
    for name, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
        fields.append(f"{json.dumps(name)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")
    unfinished.replace(path)


def _row(benchmark: dict[str, Any]) -> dict[str, Any]:
    stats = benchmark["stats"]
    seconds = {key: stats[key] for key in ("median", "min", "max")}
    data = stats.get("data") or []
    if len(data) <= ROUNDS_KEPT:
        seconds["rounds"] = data
    return {
        "id": f"{benchmark['fullname']} {benchmark['extra_info'].get('shape', '')}".strip(),
        "group": benchmark["group"] or "other",
        "seconds": seconds,
        **benchmark["extra_info"],
    }


def rounded(value: Any) -> Any:
    """Six significant digits: no measurement has more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def splice(readme: Path, text: str) -> None:
    """Replaces what is between the markers."""
    content = readme.read_text()
    begin, end = MARKERS
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise SystemExit(f"{readme}: needs one {begin} and, after it, one {end}")
    head, rest = content.split(begin)
    readme.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Collect and show benchmark results.")
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("collect", help="pytest-benchmark files -> the file of this machine and commit")
    action.add_argument("file", type=Path, nargs="+")
    action.add_argument("--machine", help="the name of the machine in the file's name")
    action.add_argument("--folder", type=Path, default=FOLDER)
    for name, text in (("table", "print the tables"), ("readme", "put the tables into the README")):
        action = actions.add_parser(name, help=text)
        action.add_argument("file", type=Path, nargs="+")
        action.add_argument("--readme", type=Path, default=ROOT / "README.md")
    arguments = parser.parse_args()
    if arguments.action == "collect":
        paths = {collect(file, arguments.folder, arguments.machine) for file in arguments.file}
        print(*sorted(paths), sep="\n")
        return
    brief = arguments.action == "readme"
    text = "\n\n".join(tables.render(json.loads(file.read_text()), brief=brief) for file in arguments.file)
    if brief:
        splice(arguments.readme, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
