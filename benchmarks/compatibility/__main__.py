"""Runs everything and writes the page (`make compatibility`): two minutes, and 1.6 GB for the other programs."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from typing import Any

from .. import machine, peers, results
from . import accuracy, agreement, drops, page
from .cases import CASES
from .run import peer_results


def measured(backend: str) -> dict[str, Any]:
    of_case, of_accuracy, of_drops = agreement.jobs(CASES), accuracy.jobs(), drops.jobs()
    everything = [job for jobs in of_case for job in jobs] + of_drops
    everything += [job for jobs in of_accuracy for job in jobs.values()]
    theirs, versions = peer_results(everything)
    rows = zip(CASES, of_case, strict=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "backend": backend,
        "versions": versions,
        "agreement": [agreement.row(case, jobs, theirs, backend) for case, jobs in rows],
        "accuracy": [accuracy.row(jobs, theirs, backend) for jobs in of_accuracy],
        "drops": [drops.row(job, theirs, backend) for job in of_drops],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares warpmerge with mergekit and PEFT; writes the page on it.")
    parser.add_argument("--backend", default="auto", help="warpmerge's")
    parser.add_argument("--page-only", action="store_true", help="make the page again of what was measured last")
    arguments = parser.parse_args()
    if not arguments.page_only:
        peers.install()
        results.write(measured(arguments.backend), page.RESULTS)
    result = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    page.PAGE.write_text(page.render(result), encoding="utf-8")
    odd = [(row, outcome) for row in result["agreement"] for outcome in agreement.unexpected(row)]
    for row, outcome in odd:
        errors = "; ".join(row["errors"].values())
        print(f"unexpected: {page.described(row)}: {outcome} {row['outcomes'][outcome]} {row['ulps']} {errors}")
    sys.exit(1 if odd else 0)


if __name__ == "__main__":
    main()
