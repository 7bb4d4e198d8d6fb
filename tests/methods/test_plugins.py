"""Methods that others add: registered in a program, or found as entry points of installed packages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warpmerge as wm
from helpers import SINGLE, array, contents, read_model, run_process, write_recipe, write_ties
from warpmerge.methods import Parameter, boolean, choice, integer, number, registry
from warpmerge.requests import Copy, WeightedSum

pytestmark = pytest.mark.usefixtures("registry")

DOCUMENT = Path(__file__).parents[2] / "docs" / "plugins.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def named(file):
    """The block of the document that begins with the name of a file."""
    return next(b for language in ("toml", "python") for b in blocks(language) if b.startswith(f"# {file}\n"))


def install(site, module, source, *, entry="", package="", version="1.0"):
    """What pip leaves of a package of one module: the module, its metadata and entry points."""
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(source)
    package = package or module.replace("_", "-")
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{entry or f'{module} = {module}'}\n")
    return {**os.environ, "PYTHONPATH": str(site)}


def install_example(site):
    """The package that the document shows, with the entry point that its pyproject.toml declares."""
    project = named("pyproject.toml")
    assert 'py-modules = ["warpmerge_prune"]' in project
    name, version = (re.search(rf'^{key} = "(.*)"$', project, re.MULTILINE)[1] for key in ("name", "version"))
    entry = re.search(rf'^\[project\.entry-points\."{registry.GROUP}"\]\n(.*)$', project, re.MULTILINE)[1]
    source = named("warpmerge_prune.py")
    return install(site, "warpmerge_prune", source, entry=entry.replace('"', ""), package=name, version=version)


def python(code, env):
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def models(tmp_path):
    return write_ties(tmp_path)


# --- packages ---------------------------------------------------------------------------------------------------------


def pruned(x0, xs, weight, density):
    """What the document's method computes, in float64."""
    result = x0.astype(np.float64)
    for x, w in zip(xs, weight, strict=True):
        delta = x - x0
        order = np.argsort(-np.abs(delta.reshape(-1)), kind="stable")[int(density * delta.size) :]
        delta.reshape(-1)[order] = 0
        result += w * delta.astype(np.float64)
    return result


def test_the_documents_package_is_found_by_the_command_line(models, tmp_path):
    env = install_example(tmp_path / "site")
    listed = run_process("methods", env=env)
    assert (listed.status, listed.stderr) == (0, "")
    assert re.search(r"^prune +Base plus .*\(from warpmerge_prune\)$", listed.stdout, re.MULTILINE)
    shown = run_process("methods", "prune", env=env)
    assert shown.status == 0 and re.search(r"^density +per model +1 ", shown.stdout, re.MULTILINE)
    assert "y = x_0 + sum w_k t_k" in shown.stdout
    document = {
        "merge_method": "prune",
        "base_model": str(models / "base"),
        "models": [{"model": str(models / m), "parameters": {"weight": w}} for m, w in (("a", 0.5), ("b", -0.25))],
        "parameters": {"density": 0.5},
    }
    recipe = write_recipe(models / "p.yml", document)
    assert run_process("plan", recipe, env=env).status == 0
    done = run_process("merge", recipe, models / "out", "--json", env=env)
    assert (done.status, json.loads(done.stdout)["method"]) == (0, "prune")
    sources = [read_model(models / m) for m in ("base", "a", "b")]
    for name, raw in read_model(models / "out").items():
        x0, *xs = (array(s[name]) for s in sources)
        np.testing.assert_allclose(array(raw), pruned(x0, xs, (0.5, -0.25), 0.5), rtol=2e-6, atol=1e-6)
    for backend in ("torch", "cpu"):
        again = run_process("merge", recipe, models / backend, "--backend", backend, env=env)
        assert again.status == 0 and contents(models / backend)[SINGLE] == contents(models / "out")[SINGLE]
    document["parameters"]["density"] = 0
    refused = run_process("plan", write_recipe(models / "p.yml", document), env=env)
    assert refused.status == 2 and "every density is 0" in refused.stderr


def test_a_packages_method_from_python(tmp_path):
    env = install_example(tmp_path / "site")
    code = """
import sys
import numpy as np, warpmerge as wm
import warpmerge.methods
assert "warpmerge_prune" not in sys.modules
wm.merge_tensors([np.ones(3)], "linear", weight=1)
assert "warpmerge_prune" not in sys.modules  # a built-in method does not look for others
import torch
x0, x1, x2 = torch.zeros(6), torch.arange(6.0), -torch.arange(6.0)
y = wm.merge_tensors([x1, x2], "prune", base=x0, weight=[1, 0.5], density=[0.5, 0])
assert y.tolist() == [0, 0, 0, 3, 4, 5], y
assert "prune" in [m.name for m in wm.list_methods()]
with wm.Pool({"w": x0}, [{"w": x1}, {"w": x2}]) as pool:
    assert pool.merge("prune", weight=[1, 0.5], density=[0.5, 0])["w"].tolist() == y.tolist()
"""
    python(code, env)


def test_listing_loads_plugins(tmp_path):
    env = install_example(tmp_path / "site")
    python("import warpmerge as wm; assert 'prune' in [m.name for m in wm.list_methods()]", env)


@pytest.mark.parametrize(
    ("source", "entry", "reason"),
    [
        ("import there_is_none", "", "ModuleNotFoundError: No module named 'there_is_none'"),
        ("x = 1", "broken = broken:f", "AttributeError: module 'broken' has no attribute 'f'"),
        ("raise SystemExit(3)", "", "SystemExit: 3"),
        ("raise ValueError('two\\nlines.')", "", "ValueError: two lines"),
        (
            "import warpmerge as wm\n"
            "@wm.method('half', base=wm.Base.METADATA)\ndef half(t, p):\n    return wm.requests.Copy()\n    yield\n"
            "@wm.method('ties', base=wm.Base.METADATA)\ndef ties(t, p):\n    return wm.requests.Copy()\n    yield\n",
            "",
            "UsageError: merge method 'ties' is already registered by ties of the module "
            "warpmerge.methods.task_vectors; give the method of broken another name",
        ),
    ],
)
def test_a_plugin_that_fails_is_named_and_breaks_nothing_else(models, tmp_path, source, entry, reason):
    install_example(tmp_path / "site")
    env = install(tmp_path / "site", "broken", source, entry=entry)
    listed = run_process("methods", env=env)
    assert listed.status == 0
    assert listed.stderr == f"the plug-in 'broken' of broken 1.0 could not be loaded: {reason}.\n"
    assert re.search(r"^prune ", listed.stdout, re.MULTILINE)
    assert not re.search(r"^half ", listed.stdout, re.MULTILINE)
    unknown = run_process("methods", "prunes", env=env)
    assert unknown.status == 2
    assert "did you mean 'prune'?" in unknown.stderr
    assert f"The plug-in 'broken' of broken 1.0 could not be loaded: {reason}." in unknown.stderr
    merged = run_process("merge", models / "r.yml", models / "out", env=env)
    assert (merged.status, merged.stderr) == (0, "")


def test_a_plugin_that_another_one_imports_outlives_it(tmp_path):
    install_example(tmp_path / "site")
    env = install(tmp_path / "site", "broken", "import warpmerge_prune\nraise ValueError('later')")
    assert re.search(r"^prune ", run_process("methods", env=env).stdout, re.MULTILINE)


def test_plugins_that_ask_for_methods_while_they_are_loaded(tmp_path):
    source = "import warpmerge as wm\nassert 'ties' in [m.name for m in wm.list_methods()]\n"
    env = install(tmp_path / "site", "curious", source)
    assert run_process("methods", env=env).stderr == ""


# --- programs ---------------------------------------------------------------------------------------------------------


def define(name="mine", module="notebook", **options):
    def steps(tensor, p):
        """Copies the first model.

        More text.
        """
        return Copy()
        yield

    steps.__module__ = module
    return wm.method(name, **{"base": wm.Base.METADATA, **options})(steps)


def test_the_documents_programs():
    rng = np.random.default_rng(0)
    x0 = rng.standard_normal(50)
    a, b = x0 + rng.standard_normal(50), x0 + 3 * rng.standard_normal(50)
    space = {"x0": x0, "a": a, "b": b}
    for block in blocks("python"):
        if not block.startswith("# warpmerge_prune.py"):
            exec(block, space)
            exec(block, space)  # as in a notebook
    deltas = [a - x0, b - x0]
    norms = [np.linalg.norm(d) for d in deltas]
    expected = x0 + sum(w * d / n for w, d, n in zip([0.6, 0.4], deltas, norms, strict=True)) * np.mean(norms)
    np.testing.assert_allclose(space["y"], expected, rtol=1e-12)
    mean, spread = np.mean(deltas, 0), np.var(deltas, 0)
    np.testing.assert_allclose(space["shrunken"], x0 + mean**3 / (mean**2 + spread), rtol=1e-12)
    u, s, vt = np.linalg.svd(sum(deltas).reshape(5, 10), full_matrices=False)
    nearest = x0.reshape(5, 10) + (u[:, :2] * s[:2]) @ vt[:2]
    np.testing.assert_allclose(space["plain"], nearest, rtol=1e-10, atol=1e-12)
    counts = [abs(a) + 1, abs(b) + 1]
    np.testing.assert_allclose(space["used"], (counts[0] * a + counts[1] * b) / sum(counts), rtol=1e-10, atol=1e-12)
    assert wm.methods.find("balanced").summary == "Task arithmetic on deltas that are first brought to their mean norm."


def test_a_name_is_registered_once():
    define()
    with pytest.raises(wm.UsageError, match=r"'mine' is already registered by .*steps of the module notebook; "):
        define(module="other")
    with pytest.raises(wm.UsageError, match=r"'slerp' is already .* warpmerge\.methods\.spherical; .* of notebook"):
        define("slerp")
    assert wm.methods.find("slerp").built_in and wm.methods.find("mine").module == "notebook"


def test_a_definition_that_is_run_again_replaces_itself():
    define(passes=1)
    define(passes=2)
    assert wm.methods.find("mine").reads == "2"
    assert wm.methods.find("mine").summary == "Copies the first model."
    assert wm.merge_tensors([np.ones(2), np.zeros(2)], "mine").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: define(""), "the name of a merge method is a string, got ''"),
        (lambda: define(7), "the name of a merge method is a string, got 7"),
        (lambda: define(parameters=[number("a"), boolean("a")]), "'a' is given twice"),
        (lambda: define(parameters=[number("base")]), "'base' is reserved"),
        (lambda: define(parameters=[number("semantics")]), "'semantics' is reserved"),
        (lambda: define(presets={"own": {"b": 1}}), "a preset is wrong: 'b'"),
        (lambda: define(parameters=[integer("b", low=3)], presets={"own": {"b": 1}}), "a preset is wrong: expected"),
        (lambda: wm.methods.find(["ties"]), "is a string, got"),
    ],
)
def test_wrong_definitions_are_refused(make, part):
    with pytest.raises(wm.UsageError, match=re.escape(part)):
        make()


def test_presets_of_a_plugin():
    @wm.method(
        "scaled",
        base=wm.Base.METADATA,
        parameters=[number("by", required=True), choice("sign", ["plus", "minus"], default="plus")],
        presets={"own": {}, "theirs": {"by": 3, "sign": "minus"}},
    )
    def scaled(tensor, p):
        return WeightedSum((p["by"] * (1 if p["sign"] == "plus" else -1),), on_deltas=False)
        yield

    assert isinstance(wm.methods.find("scaled").by_name["semantics"], Parameter)
    x = [np.ones(1)]
    assert wm.merge_tensors(x, "scaled", by=2) == [2]
    assert wm.merge_tensors(x, "scaled", semantics="theirs") == [-3]
    assert wm.merge_tensors(x, "scaled", semantics="theirs", by=2) == [-2]
    with pytest.raises(wm.UsageError, match="needs the parameter 'by'"):
        wm.merge_tensors(x, "scaled")
