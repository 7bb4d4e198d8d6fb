"""A plugin of pytest that notes how each test ended as soon as it has: one that is stopped leaves what it did."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "WARPMERGE_TEST_LINES"


def pytest_runtest_logreport(report: Any) -> None:
    """A line for each test, by the process that collects the reports of the others."""
    ended = report.when == "call" or (report.when == "setup" and not report.passed) or report.failed
    if not ended or "PYTEST_XDIST_WORKER" in os.environ:
        return
    last = report.longreprtext.strip().splitlines() if report.failed else []
    line = {"test": report.nodeid, "outcome": report.outcome, "error": last[-1][:200] if last else ""}
    with Path(os.environ[VARIABLE]).open("a") as file:
        file.write(json.dumps(line) + "\n")
