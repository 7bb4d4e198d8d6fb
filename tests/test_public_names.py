"""What `import warpmerge` offers: names, errors that callers of other tools expect, and the former names."""

import importlib.resources
import subprocess
import sys

import pytest
import warpmerge as wm


def test_every_public_name_is_there():
    assert all(getattr(wm, name) is not None for name in wm.__all__)
    assert set(wm.__all__) <= set(dir(wm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        wm.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (wm.UsageError, ValueError),
        (wm.CheckpointError, ValueError),
        (wm.OutputError, OSError),
        (wm.DeviceError, RuntimeError),
    ],
)
def test_errors_are_those_of_python_too(error, builtin):
    assert issubclass(error, wm.MergeError) and issubclass(error, builtin)
    assert str(error("it failed.")) == "it failed."


def test_a_wrong_call_is_a_usage_error():
    with pytest.raises(wm.UsageError, match="unknown merge method"):
        wm.merge_tensors([], "there_is_none")
    assert wm.RecipeError is wm.UsageError  # its former name


@pytest.mark.parametrize("name", ["methods", "backends"])
def test_former_calls_still_answer(name):
    function = getattr(wm, f"list_{name}")
    with pytest.warns(DeprecationWarning, match=rf"call warpmerge\.list_{name}\(\)"):
        assert getattr(wm, name)() == function()


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files(wm).joinpath("py.typed").is_file()


def test_reading_a_header_imports_no_method():
    code = (
        "import sys; from warpmerge.models import read_header, Checkpoint;"
        "sys.exit(any(m.startswith(('warpmerge.methods', 'warpmerge.recipe.', 'torch', 'numpy')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
