"""Runs tests under the sanitizers of GCC or clang. `make sanitize` runs this.

    python tests/sanitizers/run.py                 everything
    python tests/sanitizers/run.py native cpu      some steps
    python tests/sanitizers/run.py cpu --isa avx2 -- tests/backends/cpu/test_select.py

steps   native      the pool, files and the pipeline without Python: thread sanitizer, then address and undefined
        cpu         tests of kernels, views, pools and hostile files, with each instruction set: address and undefined
        fuzz        inputs of the fuzzers: address and undefined
        interrupts  merges that are interrupted once and twice: address and undefined

Any report fails the run. The builds are in build/sanitize-*.

Python is not built with a sanitizer, so the address sanitizer's library is loaded before it, and PYTHONMALLOC=malloc
puts every object of Python where the sanitizer watches it. Leaks are looked for in the native program only: Python and
torch never free what they use to their end. The thread sanitizer would report Python itself, so it sees a program
without Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS, THREAD = ROOT / "build" / "sanitize-address", ROOT / "build" / "sanitize-thread"
ISAS = ("baseline", "avx2", "avx512")
CPU = [
    *("tests/backends/cpu", "tests/models/test_views.py", "tests/models/test_safetensors.py", "tests/test_pool.py"),
    *("tests/engine/test_concurrency.py", "tests/engine/test_targets.py", "tests/attacks", "tests/fuzz"),
]
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def tool(name: str) -> str:
    """A program of this Python's environment, else of the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        sys.exit(f"{name} is missing: pip install cmake ninja pybind11")
    return found


def pybind11() -> str:
    if importlib.util.find_spec("pybind11"):
        import pybind11

        return str(pybind11.get_cmake_dir())
    return subprocess.check_output([tool("pybind11-config"), "--cmakedir"], text=True).strip()


def build(where: Path, sanitizers: str, *targets: str) -> None:
    definitions = {
        "WARPMERGE_SANITIZE": sanitizers,
        "WARPMERGE_CUDA": "off",
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "CMAKE_CXX_FLAGS_RELWITHDEBINFO": "-O1 -g1",
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "CMAKE_CXX_COMPILER_LAUNCHER": shutil.which("ccache") or "",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11(),
    }
    defined = [f"-D{name}={value}" for name, value in definitions.items() if value]
    configure = [tool("cmake"), "-S", ROOT, "-B", where, "-GNinja", *defined]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    chosen = ["--target", *targets] if targets else []
    cached = os.environ | {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}
    subprocess.run([tool("cmake"), "--build", where, *chosen], check=True, env=cached)


def package() -> Path:
    """A folder to import warpmerge from: the sources, with the modules of the sanitized build."""
    made = ADDRESS / "package"
    shutil.rmtree(made, ignore_errors=True)
    (made / "warpmerge").mkdir(parents=True)
    source = ROOT / "python" / "warpmerge"
    kernels = [] if (source / "triton_kernels").exists() else [ROOT / "triton_kernels"]
    for path in [*(p for p in source.iterdir() if p.suffix != ".so"), *ADDRESS.glob("_core*.so"), *kernels]:
        (made / "warpmerge" / path.name).symlink_to(path)
    return made


def runtimes() -> str:
    """The libraries of the sanitizers that Python needs first. libstdc++ is among them: the sanitizer looks for its
    `throw` when it starts."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    compiler = os.environ.get("CXX", "g++")
    return " ".join(
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip() for name in names
    )


def python(*arguments: str, isa: str = "") -> None:
    """Python under the address sanitizer."""
    environment = os.environ | OPTIONS
    environment |= {"LD_PRELOAD": runtimes(), "PYTHONPATH": str(package()), "PYTHONMALLOC": "malloc"}
    environment |= {"HF_HUB_OFFLINE": "1", "WARPMERGE_ISA": isa}
    run([sys.executable, *arguments], environment, f"{isa} {' '.join(arguments)}")


def run(command: list[str | Path], environment: dict[str, str], title: str) -> None:
    print(f"--- {title.strip()}", flush=True)
    status = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
    if status:
        sys.exit(f"failed with status {status}: {title.strip()}")


def native(rounds: int) -> None:
    for where, sanitizers in ((THREAD, "thread"), (ADDRESS, "address,undefined")):
        build(where, sanitizers, "stress")
        environment = os.environ | OPTIONS | {"ASAN_OPTIONS": "detect_leaks=1"}
        run([where / "tests" / "native" / "stress", str(rounds)], environment, f"stress under {sanitizers}")


def pytest(tests: list[str], isa: str) -> None:
    # Deadlines are for other builds.
    python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "1200", *tests, isa=isa)


def main() -> None:
    steps = ("native", "cpu", "fuzz", "interrupts")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help=", ".join(steps))
    parser.add_argument("--isa", choices=ISAS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=50, help="of the native program")
    parser.add_argument("--inputs", type=int, default=20_000, help="of the fuzzers")
    parser.add_argument("--interrupts", type=int, default=1000, help="single ones, and as many double ones")
    arguments, tests = sys.argv[1:], []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, tests = arguments[:place], arguments[place + 1 :]
    chosen = parser.parse_args(arguments)
    for step in chosen.steps or steps:
        if step == "native":
            native(chosen.rounds)
            continue
        build(ADDRESS, "address,undefined", "_core")
        if step == "fuzz":
            python("tests/fuzz/run.py", "--inputs", str(chosen.inputs))
        elif step == "interrupts":
            python("tests/torture/__main__.py", "interrupts", "--interrupts", str(chosen.interrupts))
        else:
            for isa in chosen.isa or ISAS:
                pytest(tests or CPU, isa)
    print("no report")


if __name__ == "__main__":
    main()
