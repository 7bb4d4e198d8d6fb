"""The files of measurements: what is collected, what it supersedes, and how it is written."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import results


@pytest.fixture
def collect(tmp_path):
    def collect(commit, *names, machine="cpu"):
        rows = [
            {
                "fullname": name,
                "group": "kernel",
                "extra_info": {"what": name},
                "stats": {"median": 1, "min": 1, "max": 2},
            }
            for name in names
        ]
        measured = tmp_path / "measured.json"
        about = {"cpu": machine, "cores": 2, "commit": commit}
        report = {"machine_info": {"warpmerge": about}, "datetime": "2026-01-01T00", "benchmarks": rows}
        measured.write_text(json.dumps(report))
        return results.collect(measured, tmp_path / "results")

    return collect


def ids(path):
    return [row["id"] for row in json.loads(path.read_text())["rows"]]


def test_a_newer_commit_supersedes_the_rows_that_it_measured(collect):
    first = collect("aaaaaaaaaa", "a", "b")
    other = collect("aaaaaaaaaa", "a", "b", machine="cpu of another make")
    second = collect("bbbbbbbbbb", "b", "c")
    assert (ids(first), ids(second), ids(other)) == (["a"], ["b", "c"], ["a", "b"])
    collect("cccccccccc-dirty", "a")
    assert not first.exists() and ids(second) == ["b", "c"]


def test_the_same_commit_adds_rows(collect):
    collect("aaaaaaaaaa", "a", "b")
    assert ids(collect("aaaaaaaaaa", "b", "c")) == ["a", "b", "c"]


def test_a_row_is_a_line(tmp_path):
    result = {
        "format": 1,
        "machine": {"cpu": "x"},
        "rows": [{"id": "é", "seconds": {"median": 1.23456789}}, {"id": "b"}],
    }
    path = tmp_path / "new" / "result.json"
    results.write(result, path)
    assert json.loads(path.read_text()) == result
    assert len(path.read_text().splitlines()) == len(["{", "format", "machine", "rows [", "é", "b", "]", "}"])
    results.write({"rows": []}, path)
    assert json.loads(path.read_text()) == {"rows": []} and list(path.parent.iterdir()) == [path]
