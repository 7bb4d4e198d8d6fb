"""The rules of docs/architecture.md and CONTRIBUTING.md about who may import whom."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
import warpmerge

PACKAGE = Path(warpmerge.__file__).parent
# Rooms from the bottom up: a module imports modules of its own room and of rooms before it. A room is a folder, or a
# module beside the folders.
ROOMS = [
    ["errors"],
    ["units", "random", "dtypes", "callable_package", "finite", "signals", "threads", "system", "worker", "plain"],
    ["expr"],
    ["requests"],
    ["models"],
    ["methods"],
    ["twins"],
    ["tasks"],
    ["recipe"],
    ["vocabulary"],
    ["plan"],
    ["backends"],
    ["engine"],
    ["verification", "pool", "running", "staged"],
    ["api"],
    ["demo", "mergekit_options"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
NATIVE = {"_core", "_cuda", "_cuda_emulated", "triton_kernels", "__version__"}


@functools.cache
def imports(type_checking=False):
    """Of each module the modules of the package that it imports, anywhere in its text."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] == "triton_kernels":
            continue
        package = parts if file.name == "__init__.py" else parts[:-1]
        name = ".".join(p for p in parts if p != "__init__")
        found[name] = {
            target
            for node in nodes(ast.parse(file.read_text()), type_checking)
            for target in targets(node, [p for p in package if p != "__init__"])
        }
    return found


def nodes(tree, type_checking):
    """Every import, without those that only a type checker reads unless they are asked for."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not type_checking:
            pending += node.orelse
        elif isinstance(node, ast.ImportFrom):
            yield node
        else:
            pending += ast.iter_child_nodes(node)


def targets(node, package):
    if not node.level:
        return
    above = package[: len(package) - node.level + 1]
    base = [*above, *(node.module.split(".") if node.module else [])]
    for alias in node.names:
        inner = PACKAGE.joinpath(*base, alias.name)
        is_module = inner.is_dir() or inner.with_suffix(".py").exists()
        target = ".".join([*base, alias.name] if is_module else base)
        if target and target.split(".")[0] not in NATIVE:
            yield target


def room(module):
    return module.split(".")[0]


def test_every_room_has_its_place():
    assert {room(m) for m in imports() if m not in ("", "__main__")} == set(LEVEL)


@pytest.mark.parametrize("level", range(len(ROOMS)), ids=lambda level: "-".join(ROOMS[level]))
def test_a_room_imports_itself_and_lower_ones_only(level):
    upward = [
        f"{module} imports {target}"
        for module, found in imports().items()
        for target in sorted(found)
        if room(module) in ROOMS[level] and room(target) != room(module) and LEVEL[room(target)] >= level
    ]
    assert not upward


def test_no_module_imports_itself_in_a_circle():
    graph = {m: {t for t in found if t != m} for m, found in imports().items()}
    # A package's __init__ gathers the names of its modules; a module that imports a sibling does not import it.
    graph = {m: {t for t in found if not m.startswith(f"{t}.")} for m, found in graph.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_backends_know_no_method_and_methods_no_backend():
    both = imports(type_checking=True)
    assert not [(m, t) for m, found in both.items() for t in found if (room(m), room(t)) == ("methods", "backends")]
    assert not [(m, t) for m, found in both.items() for t in found if (room(m), room(t)) == ("backends", "methods")]


def test_no_backend_names_a_method():
    names = {f'"{m.name}"' for m in warpmerge.list_methods()} - {'"median"'}
    for folder in ("backends", "engine", "plan"):
        for file in (PACKAGE / folder).rglob("*.py"):
            strings = {
                f'"{node.value}"'
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not strings & names, file


def test_importing_the_package_imports_neither_numpy_nor_torch():
    code = "import sys, warpmerge; sys.exit(bool({'numpy', 'torch', 'triton', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_native_sources_include_no_torch_and_mathematics_includes_no_library():
    csrc = Path(__file__).parents[1] / "csrc"
    for file in csrc.rglob("*.*"):
        included = [line for line in file.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in included if "torch" in line], file
        if file.parent.name == "ops":
            outside = [line for line in included if "<" in line and not line.endswith(("math.h>", "int>", "cmath>"))]
            assert not outside, file
