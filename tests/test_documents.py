"""docs/methods.md is what the methods say of themselves, and what they say is so."""

import re
from pathlib import Path

import pytest
from helpers import run_cli, run_process
from warpmerge.methods import FAMILIES, REGISTRY, document

BUILT_IN = {name: m for name, m in REGISTRY.items() if m.built_in}
COMMITTED = Path(__file__).parent.parent / "docs" / "methods.md"


def test_the_document_is_what_the_generator_makes():
    text = document.document()
    assert COMMITTED.read_text(encoding="utf-8") == text, "python -m warpmerge.methods.document > docs/methods.md"
    assert re.findall(r"^### `(\w+)`$", text, re.MULTILINE) == [
        m.name for family in FAMILIES for m in BUILT_IN.values() if m.module == family.__name__
    ]
    assert len(re.findall(r"^### ", text, re.MULTILINE)) == len(BUILT_IN)


def test_the_generator_is_a_command():
    code = "import runpy, sys\nrunpy.run_module('warpmerge.methods.document', run_name='__main__')\nsys.exit()"
    assert run_process(setup=code).stdout == document.document()


def test_links_lead_somewhere():
    for page in COMMITTED.parent.glob("*.md"):
        for target in re.findall(r"\]\(([\w./-]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("method", BUILT_IN.values(), ids=BUILT_IN)
def test_every_method_describes_itself(method):
    assert method.formula and method.summary.endswith(".") and method.reads
    for text in (method.summary, *method.notes, *(t for texts in method.differences.values() for t in texts)):
        assert re.match(r"[A-Z`]|(mergekit|warpmerge)\b|\w+: ", text) and text.endswith(".")
    assert all(len(line) <= 116 for line in method.formula.splitlines())
    assert {"mergekit", "the paper", "PEFT"} >= method.differences.keys()
    assert method.presets or "does not implement this method" in method.differences["mergekit"][0]
    for parameter in method.parameters:
        assert parameter.help and parameter.kind


@pytest.mark.parametrize("method", BUILT_IN.values(), ids=BUILT_IN)
def test_a_formula_has_every_number_that_a_method_takes(method):
    """Parameters that are switches or bounds of an iteration may be missing; numbers that scale or choose may not."""
    formula = method.formula + method.summary
    for parameter in method.parameters:
        if parameter.kind.startswith(("number", "auto", "integer")) and parameter.name not in ("tol", "max_iter"):
            symbol = "w_" if parameter.name == "weight" else rf"\b{parameter.name}(_k)?\b"
            assert re.search(symbol, formula), parameter.name


@pytest.mark.parametrize("method", BUILT_IN.values(), ids=BUILT_IN)
def test_the_command_shows_it_all(method):
    done = run_cli("methods", method.name)
    assert (done.status, done.stderr) == (0, "")
    texts = [method.summary, method.reads, *method.formula.splitlines(), *method.notes]
    texts += [text for differences in method.differences.values() for text in differences]
    texts += [sets for _, sets in document.preset_rows(method) if len(method.presets) > 1]
    for text in texts:
        assert text in done.stdout


def values(method, **options):
    """All values of a method for two models."""
    found = {p.name: (p.default,) * 2 if p.per_model else p.default for p in method.parameters}
    return found | {"weight": (1.0, 1.0)} | options


SPARSE, L1, INVERSE = {"density": (1.0, 0.5)}, {"rescale": "l1"}, {"rescale": "inverse_density"}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ties", {}, 1),
        ("ties", SPARSE, 2),
        ("ties", L1, 1),
        ("ties", SPARSE | INVERSE, 2),
        ("ties", SPARSE | L1, 3),
        ("ties", {"density": (1.0, 0.0)}, 1),
        *((name, {}, 1) for name in ("dare_linear", "dare_ties")),
        *((name, SPARSE, 2) for name in ("dare_linear", "dare_ties")),
        *((name, SPARSE | INVERSE, 1) for name in ("dare_linear", "dare_ties")),
        *((name, SPARSE | {"rescale": "false"}, 1) for name in ("dare_linear", "dare_ties")),
        *((name, {}, 1) for name in ("breadcrumbs", "breadcrumbs_ties", "emr")),
        *((name, SPARSE, 2) for name in ("breadcrumbs", "breadcrumbs_ties")),
        *((name, SPARSE | L1, 3) for name in ("breadcrumbs", "breadcrumbs_ties")),
        *((name, {}, 1) for name in ("della", "della_linear")),
        *((name, SPARSE, 2) for name in ("della", "della_linear")),
        *((name, SPARSE | {"rescale": "inverse_probability"}, 1) for name in ("della", "della_linear")),
        ("emr", {"task": 1}, 2),
        ("fisher", {}, 1),
        ("fisher", {"normalize": True}, 2),
        ("sce", {}, 2),
        ("sce", {"select_topk": 0.5}, 4),
    ],
)
def test_passes_are_as_described(name, options, expected):
    assert BUILT_IN[name].passes(values(BUILT_IN[name], **options)) == expected
    assert str(expected) in BUILT_IN[name].reads


def test_a_number_of_passes_is_that_of_the_defaults():
    numbers = {name: method.reads for name, method in BUILT_IN.items() if not method.reads_text}
    assert len(numbers) > 25
    expected = {"linear": "1", "slerp": "2", "median": "1", "ramplus_tl": "2", "arcee_fusion": "4", "tsv": "1"}
    assert {name: numbers[name] for name in expected} == expected
    assert all(reads == str(BUILT_IN[name].passes(BUILT_IN[name].defaults())) for name, reads in numbers.items())
