"""Fuzzes the native scanner of headers with libFuzzer, guided by coverage, under sanitizers. It needs clang.

python tests/fuzz/native.py --runs 10000000
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS / folder) for folder in ("fuzz", "attacks", "")]

import header_attacks  # noqa: E402, F401 - the path is set above; it registers the attacks
from attack import ATTACKS  # noqa: E402

BUILD = ROOT / "build" / "fuzz"
LONGEST = 4096  # bytes of an input


def compiler() -> str | None:
    names = ["clang++", *(f"clang++-{version}" for version in range(25, 13, -1))]
    return next(filter(None, map(shutil.which, names)), None)


def build(clang: str) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "header_scan"
    sources = [TESTS / "fuzz" / "header_scan_fuzzer.cpp", ROOT / "csrc" / "io" / "header_scan.cpp"]
    options = ["-std=c++17", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([clang, *options, *sources, "-o", program], check=True)
    return program


def seed(corpus: Path) -> None:
    """The attacks on headers, in the form that the harness reads."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, attack in enumerate(a for a in ATTACKS.values() if a.target == "header"):
        data = attack.content
        if len(data) <= LONGEST:
            length = int.from_bytes(data[:8], "little")
            size = max(0, len(data) - 8 - length)
            (corpus / f"attack-{number}").write_bytes(size.to_bytes(2, "little") + data[8 : 8 + length])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    clang = compiler()
    if clang is None:
        print("the native scanner is not fuzzed: there is no clang")
        return
    program = build(clang)
    corpus = BUILD / "header_scan_corpus"
    seed(corpus)
    limits = ["-timeout=5", "-rss_limit_mb=1024", "-malloc_limit_mb=64", f"-max_len={LONGEST}"]
    options = [f"-runs={arguments.runs}", f"-seed={arguments.seed}", f"-dict={TESTS / 'fuzz' / 'header.dict'}"]
    command = [program, *limits, *options, f"-artifact_prefix={BUILD}/", "-print_final_stats=1", "-verbosity=1", corpus]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
