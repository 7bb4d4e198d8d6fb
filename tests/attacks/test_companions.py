"""Companions: what the output takes over of a model is the model's own, and is copied in pieces."""

import errno
import json
import os
import resource

import pytest
from helpers import SINGLE, contents, llama, run_cli, run_process, write_model, write_recipe
from warpmerge import system
from warpmerge.errors import CheckpointError
from warpmerge.models import Checkpoint
from warpmerge.models.companions import LARGEST, companions
from warpmerge.models.sidecars import taken_over
from warpmerge.plan.file_plan import make_plan
from warpmerge.recipe import Recipe

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, llama(seed))
    document = {"merge_method": "linear", "models": [str(tmp_path / name) for name in "ab"]}
    write_recipe(tmp_path / "r.yml", document | {"parameters": {"weight": 1}})
    (tmp_path / "secret.json").write_text('{"password": "x"}')
    return tmp_path


def absolute(models):
    (models / "a" / "vocab.txt").symlink_to("/etc/passwd")


def relative(models):
    (models / "a" / "tokenizer.json").symlink_to("../secret.json")


def of_two_links(models):
    (models / "a" / "one").symlink_to("../secret.json")
    (models / "a" / "tokenizer.json").symlink_to("one")


def through_a_directory(models):
    (models / "a" / "up").symlink_to("..")
    (models / "a" / "tokenizer.json").symlink_to("up/secret.json")


def to_a_neighbour(models):
    """A directory whose name begins with the model's."""
    (models / "a2").mkdir()
    (models / "a2" / "secret.json").write_text("{}")
    (models / "a" / "tokenizer.json").symlink_to("../a2/secret.json")


def of_the_config(models):
    (models / "a" / "config.json").unlink()
    (models / "a" / "config.json").symlink_to("../secret.json")


def of_the_process(models):
    (models / "a" / "environment.txt").symlink_to("/proc/self/environ")


LINKS = (absolute, relative, of_two_links, through_a_directory, to_a_neighbour, of_the_config, of_the_process)


@pytest.mark.parametrize("make", LINKS, ids=lambda make: make.__name__)
def test_links_out_of_the_model_are_refused(models, make):
    make(models)
    for done in (run_cli("plan", models / "r.yml"), run_cli("merge", models / "r.yml", models / "out")):
        assert (done.status, done.stdout) == (1, "")
        assert "outside of the model's directory" in done.stderr and str(models / "a") in done.stderr
    assert not (models / "out").exists()


def test_links_within_the_model_are_followed(models):
    (models / "a" / "files").mkdir()
    (models / "a" / "files" / "t").write_text("tokens")
    (models / "a" / "tokenizer.json").symlink_to("files/t")
    (models / "a" / "vocab.txt").symlink_to(models / "a" / "tokenizer.json")
    (models / "link").symlink_to("a")  # the directory itself may be one
    assert companions(models / "link").keys() == {"tokenizer.json", "vocab.txt"}
    assert run_cli("merge", models / "r.yml", models / "out").status == 0
    found = contents(models / "out")
    assert found["tokenizer.json"] == found["vocab.txt"] == b"tokens"
    assert not [p for p in (models / "out").iterdir() if p.is_symlink()]


def cached(models, name="models--org--m"):
    """Model `a` as the hub's cache has it: a snapshot of links to blobs."""
    snapshot = models / name / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (models / name / "blobs").mkdir()
    (models / "a" / "tokenizer.json").write_text("tokens")
    for number, file in enumerate(sorted((models / "a").iterdir())):
        file.rename(models / name / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    (models / "a").rmdir()
    (models / "a").symlink_to(snapshot)
    return snapshot


def test_the_hubs_cache_is_read(models):
    cached(models)
    assert run_cli("merge", models / "r.yml", models / "out").status == 0
    found = contents(models / "out")
    assert found["tokenizer.json"] == b"tokens" and json.loads(found["config.json"])["model_type"] == "llama"


@pytest.mark.parametrize("target", ["../../../secret.json", "../../../other/blobs/1", "../../refs/main"])
def test_a_snapshot_may_hold_links_to_its_own_blobs_only(models, target):
    snapshot = cached(models)
    (models / "other" / "blobs").mkdir(parents=True)
    (models / "other" / "blobs" / "1").write_text("another model's")
    (snapshot / "../../refs").mkdir()
    (snapshot / "../../refs/main").write_text("0123abcd")
    (snapshot / "vocab.txt").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"vocab\.txt is a link to .*, outside of the model's directory"):
        companions(snapshot)


def test_blobs_that_are_a_link_themselves(models):
    (models / "snapshots" / "x").mkdir(parents=True)
    (models / "blobs").symlink_to("/etc")
    (models / "snapshots" / "x" / "vocab.txt").symlink_to("../../blobs/passwd")
    with pytest.raises(CheckpointError, match="outside of the model's directory"):
        companions(models / "snapshots" / "x")


def test_weights_and_the_configs_of_other_models_may_be_links(models):
    """They go into the output as a merge of weights, or not at all."""
    (models / "disk").mkdir()
    for name in (SINGLE, "config.json"):
        (models / "b" / name).rename(models / "disk" / name)
        (models / "b" / name).symlink_to(models / "disk" / name)
    assert run_cli("merge", models / "r.yml", models / "out").status == 0


def test_which_files_are_companions(models):
    (models / "a" / "large.json").touch()
    os.truncate(models / "a" / "large.json", LARGEST + 1)
    taken = ["tokenizer.json", "modeling_own.py", "chat template (1).jinja", "ünï 🦊.txt", "x.tiktoken"]
    left = [".hidden.json", "._tokenizer.json", "README.md", "readme.md", "Warpmerge.json", "CONFIG.json", "run.sh"]
    left += ["trainer_state.json", "other.safetensors.index.json", "journal", ".warpmerge-partial", "weights.bin"]
    for name in [*taken, *left]:
        (models / "a" / name).write_text("x")
    assert sorted(companions(models / "a")) == sorted(taken)


@pytest.mark.parametrize("name", ["a\nb.txt", "\x1b[2J.json", "\u202etxt.json", b"\xff.txt"])
def test_names_that_are_not_printable_are_refused(models, name):
    (models / "a" / os.fsdecode(name)).write_text("x")
    with pytest.raises(CheckpointError, match="characters that are not printable") as caught:
        companions(models / "a")
    assert str(caught.value).isprintable()


def test_a_companion_is_copied_in_pieces(models):
    class Notes(system.System):
        copied, pieces = None, ()

        def open(self, path, flags, mode=0o666):
            fd = super().open(path, flags, mode)
            self.copied = fd if str(path) == str(models / "a" / "tokenizer.json") else self.copied
            return fd

        def pread(self, fd, nbytes, offset):
            self.pieces += (nbytes,) if fd == self.copied else ()
            return super().pread(fd, nbytes, offset)

    data = os.urandom(1 << 20) * 5 + b"end"
    (models / "a" / "tokenizer.json").write_bytes(data)
    with system.using(Notes()) as notes:
        assert run_cli("merge", models / "r.yml", models / "out", "--no-sync").status == 0
    assert len(notes.pieces) > 5 and max(notes.pieces) <= system.PIECE
    assert (models / "out" / "tokenizer.json").read_bytes() == data


def test_the_memory_of_a_merge_does_not_grow_with_its_companions(models):
    """Twice: without and with 250 MB of them. The system counts the most that a process has had."""

    def most(out):
        before = "import atexit, resource\n"
        before += "atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
        done = run_process("merge", models / "r.yml", models / out, "--no-sync", "--quiet", setup=before)
        assert done.status == 0
        return int(done.stdout)

    without = most("small")
    (models / "a" / "tokenizer.json").touch()
    os.truncate(models / "a" / "tokenizer.json", 250 << 20)
    assert most("large") < without + 50_000
    assert (models / "large" / "tokenizer.json").stat().st_size == 250 << 20


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_companions_that_cannot_be_opened_are_found_while_the_merge_is_planned(models, code):
    class Refuses(system.System):
        def open(self, path, flags, mode=0o666):
            if str(path).endswith("tokenizer.json"):
                raise OSError(code, os.strerror(code))
            return super().open(path, flags, mode)

    (models / "a" / "tokenizer.json").write_text("tokens")
    with system.using(Refuses()):
        done = run_cli("plan", models / "r.yml")
    path = models / "a" / "tokenizer.json"
    assert (done.status, done.stderr) == (1, f"error: cannot read {path}: {os.strerror(code)}.\n")


CHANGES = {
    "longer": lambda path: path.write_text("longer than it was"),
    "as long": lambda path: path.write_text("TOKENS"),
    "replaced": lambda path: (path.unlink(), path.write_text("tokens")),
    "gone": lambda path: path.unlink(),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_companion_that_changes_after_the_plan_is_not_taken_over(models, name):
    path = models / "a" / "tokenizer.json"
    path.write_text("tokens")
    plan = make_plan(Recipe.load(models / "r.yml"))
    CHANGES[name](path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        plan.sidecars.ready["tokenizer.json"].copy_to(models / "copy", sync=False)
    plan.close()


def test_a_companion_that_changes_while_it_is_copied_is_not_taken_over(models):
    path = models / "a" / "tokenizer.json"
    path.write_text("tokens")

    class Changes(system.System):
        def pwrite(self, fd, data, offset):
            if bytes(data) == b"tokens":
                path.write_text("TOKENS")
            return super().pwrite(fd, data, offset)

    with system.using(Changes()):
        done = run_cli("merge", models / "r.yml", models / "out")
    assert (done.status, "tokenizer.json changed while it was being read" in done.stderr) == (1, True)
    assert not (models / "out").exists()


def test_small_files_are_in_place_before_the_first_weight_is_read(models, monkeypatch):
    """Whatever is wrong with them stops the merge when it has cost nothing."""
    (models / "a" / "tokenizer.json").write_text("tokens")
    seen = []

    def run(*_):
        seen.append({p.name for p in (models / "out" / ".warpmerge-partial").iterdir()})
        raise KeyboardInterrupt

    monkeypatch.setattr("warpmerge.engine.loop.run", run)
    assert run_cli("merge", models / "r.yml", models / "out").status == 130
    assert [names >= {"tokenizer.json", "config.json", "README.md"} for names in seen] == [True]


def test_the_running_mean_takes_over_as_a_merge_does(models):
    (models / "a" / "tokenizer.json").symlink_to("../secret.json")
    with pytest.raises(CheckpointError, match="outside of the model's directory"):
        taken_over(Checkpoint(str(models / "a")), None)


def test_more_companions_than_files_may_be_open(models):
    for number in range(300):
        (models / "a" / f"{number}.txt").write_text(str(number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    setup = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({min(soft, 128)}, {min(hard, 128)}))"
    done = run_process("merge", models / "r.yml", models / "out", "--no-sync", setup=setup)
    assert (done.status, done.stderr) == (0, "")
    assert (models / "out" / "299.txt").read_text() == "299"
