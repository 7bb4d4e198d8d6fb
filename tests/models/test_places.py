"""Where an output must not be, whatever link or mount leads there."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
from helpers import SINGLE, contents
from output_helpers import FIXTURES, expected, merge
from warpmerge import system
from warpmerge.models.staging import STAGING

(models,) = FIXTURES


class Mounted(system.System):
    """Paths below `alias` are those below `target`, as after `mount --bind target alias`: by device and inode."""

    def __init__(self, alias, target):
        self.alias, self.target = os.fspath(alias), os.fspath(target)

    def there(self, path):
        path = os.fspath(path)
        return self.target + path[len(self.alias) :] if f"{path}/".startswith(f"{self.alias}/") else path

    def stat(self, path):
        return super().stat(self.there(path))

    def lstat(self, path):
        return super().lstat(self.there(path))

    def listdir(self, path):
        return super().listdir(self.there(path))

    def open(self, path, flags, mode=0o666):
        return super().open(self.there(path), flags, mode)


@contextlib.contextmanager
def mounted(target, alias):
    alias.mkdir()
    with system.using(Mounted(alias, target)):
        yield


OUTPUTS = {"the input": "mount", "below it": "mount/merged", "deep below it": "mount/x/y/merged"}


@pytest.mark.parametrize("out", OUTPUTS.values(), ids=OUTPUTS)
def test_a_mount_of_an_input_is_never_the_output(models, out):
    before = contents(models / "a")
    with mounted(models / "a", models / "mount"):
        refused = merge(models, "--overwrite", out=out)
    assert refused.status == 1 and "choose another directory" in refused.stderr
    assert contents(models / "a") == before


def test_a_mount_as_staging_directory(models):
    """All that lies in the staging directory is removed when a merge begins."""
    (models / "out").mkdir()
    before = contents(models / "a")
    with mounted(models / "a", models / "out" / STAGING):
        refused = merge(models, "--overwrite")
    assert refused.status == 1 and "is also an input" in refused.stderr
    assert contents(models / "a") == before


def test_a_real_mount(models):
    """In a mount namespace of its own, where the system allows one."""
    (models / "mount").mkdir()
    before = contents(models / "a")
    command = f'mount --bind {models / "a"} {models / "mount"} && exec "$@"'
    merging = [sys.executable, "-m", "warpmerge", "merge", models / "r.yml", models / "mount", "--overwrite"]
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command, "sh", *map(str, merging)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    if "unshare" not in done.stderr and "mount:" not in done.stderr:
        assert "is also an input" in done.stderr
    assert contents(models / "a") == before


@pytest.mark.parametrize("where", ["out", f"out/{STAGING}"])
def test_an_input_whose_shards_are_links_into_the_output(models, where):
    """Also through a directory that is a link itself."""
    (models / where).mkdir(parents=True)
    (models / "way").symlink_to(models / where)
    shutil.move(models / "b" / SINGLE, models / where / "blob")
    (models / "b" / SINGLE).symlink_to(models / "way" / "blob")
    before = contents(models / "out")
    for options in [("--overwrite",), ("--resume", "--overwrite")]:
        refused = merge(models, *options)
        assert refused.status == 1 and f"{models / 'b' / SINGLE} lies in the output" in refused.stderr
    assert contents(models / "out") == before


def test_hard_links_to_inputs_in_the_output_are_replaced_and_not_written_to(models):
    """As in a copy that `cp -al` made."""
    shutil.copytree(models / "b", models / "out", copy_function=os.link)
    before = contents(models / "b")
    assert merge(models, "--overwrite").status == 0
    assert contents(models / "b") == before
    # That an inode has a link less is a change of an input, which the next manifest shows.
    assert contents(models / "out")[SINGLE] == expected(models)[SINGLE]


def test_a_link_in_the_output_to_an_inputs_file_is_replaced(models):
    (models / "out").mkdir()
    (models / "out" / SINGLE).symlink_to(models / "b" / SINGLE)
    before = contents(models / "b")
    assert merge(models, "--overwrite").status == 0
    assert contents(models / "b") == before
    assert contents(models / "out") == expected(models)
