"""Fuzzes the readers of files guided by the coverage of their Python code, with atheris.

python tests/fuzz/guided.py --inputs 100000

Inputs grow from good files and from the attacks. They are changed as in `run.py`, so that most of them stay JSON; those
that reach new code are kept in build/fuzz and changed further.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("fuzz", "attacks", "")]
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

try:
    import atheris
except ImportError:
    print("no inputs are guided by coverage: atheris is not installed")
    sys.exit()

with atheris.instrument_imports(include=["warpmerge", "yaml"], enable_loader_override=False):
    import run
    from attack import ATTACKS
    from fuzz_targets import TARGETS, Target

LONGEST = 4096  # bytes of an input


def corpus_of(name: str, target: Target) -> Path:
    """Where the inputs of a target are kept, with the first ones."""
    corpus = run.KEPT / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in range(20):
        (corpus / f"seed-{seed}").write_bytes(target.generate(random.Random(seed)))
    for number, attack in enumerate(a for a in ATTACKS.values() if a.target == name and a.content is not None):
        if len(attack.content) <= LONGEST:
            (corpus / f"attack-{number}").write_bytes(attack.content)
    return corpus


def fuzz_one(name: str, inputs: int) -> None:
    """Fuzzes one target in this process, which ends afterwards."""
    place = run.KEPT / f"work-{name}"  # the process ends within atheris, so it is removed by the next one
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    target = TARGETS[name](place)

    def change(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(4) == 0:
            return atheris.Mutate(data, longest)
        return target.damage(data, rng)[:longest]

    limits = [f"-timeout={run.SECONDS}", "-rss_limit_mb=2048", f"-max_len={LONGEST}", f"-artifact_prefix={run.KEPT}/"]
    atheris.Setup(
        [sys.argv[0], f"-runs={inputs}", "-seed=1", *limits, "-print_final_stats=1", str(corpus_of(name, target))],
        lambda data: target.check(data) and None,
        custom_mutator=change,
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--target", choices=TARGETS)
    arguments = parser.parse_args()
    if arguments.target:
        fuzz_one(arguments.target, arguments.inputs)
    for name, share in run.SHARES.items():
        count = arguments.inputs * share // 100
        subprocess.run([sys.executable, __file__, "--target", name, "--inputs", str(count)], check=True)


if __name__ == "__main__":
    main()
