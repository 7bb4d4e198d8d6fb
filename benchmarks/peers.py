"""Other merge tools, in an environment of their own (`python -m benchmarks.peers install`)."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .cases import Case
from .machine import ROOT

CONSTRAINTS = Path(__file__).with_name("peers-constraints.txt")
TOOLS = ("torch", "mergekit")

# No tool may look for anything on a network while it is timed.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def environment() -> Path:
    """`WARPMERGE_PEERS_VENV`, by default build/peers-venv. Needs 1.6 GB."""
    return Path(os.environ.get("WARPMERGE_PEERS_VENV") or ROOT / "build" / "peers-venv").resolve()


def mergekit() -> Path:
    return environment() / "bin" / "mergekit-yaml"


def version(tool: str) -> str:
    pin = re.search(rf"^{tool}==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    assert pin, f"{CONSTRAINTS} does not pin {tool}"
    return pin.group(1)


def mergekit_command(case: Case, out: Path, flags: Sequence[str] = ()) -> list[str]:
    return [str(mergekit()), str(case.recipe), str(out), "--quiet", *flags]


def mergekit_environment() -> dict[str, str]:
    return os.environ | OFFLINE


def install() -> None:
    """Makes the environment, or completes it. Every version comes from the constraints file."""
    python = environment() / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment())], check=True)
    wanted = [f"{tool}=={version(tool)}" for tool in TOOLS]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(CONSTRAINTS), *wanted], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The environment of the tools to compare with.")
    parser.add_argument("action", choices=["install", "path"])
    if parser.parse_args().action == "install":
        install()
    print(environment())


if __name__ == "__main__":
    main()
