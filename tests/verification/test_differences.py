"""`diff`: which tensors of two checkpoints differ, and by how much."""

import json
import threading
from time import sleep

import numpy as np
import pytest
import warpmerge as wm
from helpers import INDEX, SINGLE, array, bf16, llama, run_cli, write_model, write_safetensors
from warpmerge.verification import TensorDiff, comparison

W = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a", llama(0), shards=2)
    return tmp_path


def compare(folder, a, b, **options):
    """The report on two state dicts, in files."""
    return wm.diff(write_model(folder / "x", a), write_model(folder / "y", b), **options)


def only(report):
    (found,) = report.differing
    return found


def test_equal_checkpoints(folder):
    write_model(folder / "b", llama(0), shards=3)
    report = wm.diff("a", folder / "b")
    assert report.equal and report.count == 0 and report.differing_bytes == 0
    assert (report.tensors, report.nbytes, report.a, report.b) == (8, 2144, "a", str(folder / "b"))


def in_float64(tensor):
    return array(tensor).astype(np.float64) if isinstance(tensor, tuple) else tensor.astype(np.float64)


@pytest.mark.parametrize("dtypes", [("float32",) * 2, ("float16",) * 2, ("bfloat16",) * 2, ("float64", "float32")])
@pytest.mark.parametrize("threads", [1, 3])
def test_measures(folder, dtypes, threads, monkeypatch):
    """They are those of numpy in float64, for tensors of several batches and pieces."""
    monkeypatch.setattr(comparison, "BATCH", 4096)
    monkeypatch.setattr(comparison, "PIECE", 256)
    a, b = (llama(seed, dtype=dtype, width=32) for seed, dtype in zip((0, 1), dtypes, strict=True))
    report = compare(folder, a, b, threads=threads)
    assert {found.name for found in report.differing} == set(a)
    assert report.count == report.tensors == len(a) and report.differing_bytes == report.nbytes
    for found in report.differing:
        x, y = in_float64(a[found.name]), in_float64(b[found.name])
        assert (found.dtypes, found.shape, found.count) == (dtypes, x.shape, x.size)
        assert found.differing == np.count_nonzero(x != y) and found.not_finite == 0
        np.testing.assert_allclose(found.largest, np.abs(x - y).max(), rtol=1e-6)
        np.testing.assert_allclose(found.relative, np.linalg.norm(x - y) / np.linalg.norm(y), rtol=1e-6)
        np.testing.assert_allclose(found.cosine, (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), atol=1e-6)
    relative = [found.relative for found in report.differing]
    assert relative == sorted(relative, reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("place", [0, 255, 256, 1023])
def test_one_bit(folder, dtype, place, monkeypatch):
    """Of one element anywhere, the lowest bit."""
    monkeypatch.setattr(comparison, "PIECE", 512)
    a = llama(3, dtype=dtype, width=32)
    code, shape, data = a[W] if dtype == "bfloat16" else (None, a[W].shape, a[W].tobytes())
    size = len(data) // (shape[0] * shape[1])
    changed = bytearray(data)
    changed[size * place] ^= 1
    b = {**a, W: (code or {"float32": "F32", "float16": "F16", "float64": "F64"}[dtype], shape, bytes(changed))}
    report = compare(folder, a, b)
    found = only(report)
    assert (found.name, found.differing, report.count) == (W, 1, 1)
    assert report.differing_bytes == len(data)
    assert 0 < found.relative < 1e-2 and 0 < found.largest < 0.1


NAN, OTHER_NAN = np.array([0x7FC00000, 0x7FC00001], "<u4").view("f4")


@pytest.mark.parametrize(
    ("a", "b", "differing", "not_finite", "largest"),
    [
        ([0.0, 1], [-0.0, 1], 1, 0, 0.0),
        ([NAN, 1], [NAN, 1], 0, 0, None),
        ([NAN, 1], [OTHER_NAN, 1], 1, 0, 0.0),
        ([NAN, 1], [2, 1], 1, 1, 0.0),
        ([NAN, 1], [2, 3], 2, 1, 2.0),
        ([np.inf, 1], [np.inf, 1], 0, 0, None),
        ([np.inf, 1], [-np.inf, 1], 1, 1, 0.0),
        ([np.inf, 1], [7, 1.5], 2, 1, 0.5),
        ([0, 0], [0, 0], 0, 0, None),
    ],
)
def test_odd_elements(folder, a, b, differing, not_finite, largest):
    a, b = (np.array(values, "float32") for values in (a, b))
    report = compare(folder, {"w": a}, {"w": b})
    assert report.equal is (a.tobytes() == b.tobytes()) is (differing == 0)
    if differing:
        found = only(report)
        assert (found.differing, found.not_finite, found.largest) == (differing, not_finite, largest)
        json.dumps(report.as_dict(), allow_nan=False)


def test_a_difference_that_overflows(folder):
    found = only(compare(folder, {"w": np.array([1e308, 1, 3])}, {"w": np.array([-1e308, 1, 1])}))
    assert (found.differing, found.not_finite, found.largest, found.relative) == (2, 1, 2.0, None)


def test_nothing_to_divide_by(folder):
    """A model of zeros has no direction and no length."""
    found = only(compare(folder, {"w": np.ones(4, "float32")}, {"w": np.zeros(4, "float32")}))
    assert found == TensorDiff("w", ("float32", "float32"), (4,), 4, 4, 0, 1.0, None, None)
    assert compare(folder, {"w": np.zeros((0, 4), "float32")}, {"w": np.zeros((0, 4), "float32")}).equal


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.array([1, 2, 3]), np.array([1, 5, 4])),
        (np.array([True, True, False]), np.array([True, False, True])),
        (np.array([1, 2, 3], "uint8"), np.array([1, 0, 0], "uint8")),
        (("F8_E4M3", (3,), b"abc"), ("F8_E4M3", (3,), b"aBC")),
        (("C64", (3,), bytes(range(24))), ("C64", (3,), bytes(range(8)) + bytes(16))),
    ],
)
def test_what_is_no_float_is_counted_only(folder, a, b):
    found = only(compare(folder, {"w": a, "v": np.ones(2)}, {"w": b, "v": np.ones(2)}))
    assert (found.name, found.count, found.differing) == ("w", 3, 2)
    assert (found.largest, found.relative, found.cosine) == (None, None, None)


def test_other_float_dtypes_are_compared_by_value(folder):
    """Equal values are still another tensor."""
    exact = np.array([1.0, 2.5, np.nan, np.inf])
    report = compare(folder, {"w": exact.astype("float32")}, {"w": exact.astype("float16")})
    found = only(report)
    assert (found.dtypes, found.differing, found.not_finite) == (("float32", "float16"), 0, 0)
    assert found.relative == 0 and not report.equal
    rounded = only(compare(folder, {"w": np.array([1.0, 1.001], "float32")}, {"w": bf16([1.0, 1.001])}))
    assert rounded.differing == 1 and 0 < rounded.largest < 0.01


def test_names_shapes_and_dtypes(folder):
    a = {"one": np.ones(3, "float32"), "shape": np.ones((2, 3)), "kind": np.ones(2, "int32"), "same": np.ones(1)}
    b = {"two": np.ones(5, "float32"), "shape": np.ones((3, 2)), "kind": np.ones(2, "float32"), "same": np.ones(1)}
    report = compare(folder, a, b)
    assert (report.only_a, report.only_b, report.differing) == (("one",), ("two",), ())
    described = [(u.name, u.dtypes, u.shapes) for u in report.unlike]
    assert described == [
        ("shape", ("float64", "float64"), ((2, 3), (3, 2))),
        ("kind", ("int32", "float32"), ((2,), (2,))),
    ]
    assert (report.tensors, report.count, report.nbytes, report.differing_bytes) == (5, 4, 76, 68)


def test_nothing_in_common(folder):
    report = compare(folder, {"a": np.ones(1)}, {"b": np.ones(1)})
    assert (report.only_a, report.only_b, report.count) == (("a",), ("b",), 2)


def test_single_files_and_directories(folder):
    write_safetensors(folder / "one.safetensors", llama(0))
    assert wm.diff("one.safetensors", "a").equal and wm.diff("a", folder / "one.safetensors").equal
    write_model(folder / "dir.safetensors", llama(0))
    assert wm.diff("dir.safetensors", "one.safetensors").equal
    assert wm.diff("a", "a").equal


def test_a_finite_copy_differs_less_than_what_is_not(folder):
    a, b = llama(0), llama(0)
    b[W] = b[W] * 100
    b["model.norm.weight"][0] = np.inf
    b["model.embed_tokens.weight"] = b["model.embed_tokens.weight"] * 2
    names = [found.name for found in compare(folder, a, b).differing]
    assert names == ["model.norm.weight", W, "model.embed_tokens.weight"]


def test_progress(folder):
    seen = []
    wm.diff("a", "a", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * 2144, 2 * 2144)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nowhere", wm.UsageError),
        ("nowhere.safetensors", wm.CheckpointError),
        ("empty", wm.CheckpointError),
        ("bad.safetensors", wm.CheckpointError),
        (f"a/{INDEX}", wm.UsageError),
    ],
)
def test_what_is_no_checkpoint(folder, path, error):
    (folder / "empty").mkdir()
    (folder / "bad.safetensors").write_bytes(b"x" * 20)
    for a, b in (("a", path), (path, "a")):
        with pytest.raises(error, match=path):
            wm.diff(a, b)
    assert run_cli("diff", "a", path).status == run_cli("diff", path, "a").status == 2


def test_a_file_that_changes_is_an_error(folder, monkeypatch):
    write_model(folder / "b", llama(0))
    real = comparison.compare

    def later(*arguments):
        sleep(0.05)
        write_model(folder / "b", llama(1))
        return real(*arguments)

    monkeypatch.setattr("warpmerge.verification.differences.compare", later)
    with pytest.raises(wm.CheckpointError, match=r"b/model\.safetensors changed while it was being read"):
        wm.diff("a", "b")


@pytest.mark.parametrize("changed", ["a", "b"])
def test_a_file_that_is_written_to_while_it_is_read_is_an_error(folder, changed):
    write_model(folder / "a", llama(0))
    write_model(folder / "b", llama(1))
    content = (folder / changed / SINGLE).read_bytes()

    def rewrite(done, total):
        sleep(0.05)  # the clock of files ticks every few milliseconds
        with open(folder / changed / SINGLE, "r+b") as file:
            file.write(content)

    with pytest.raises(wm.CheckpointError, match=rf"{changed}/model\.safetensors changed while it was being read"):
        wm.diff("a", "b", progress=rewrite)


def test_an_interrupt_leaves_no_thread(folder):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wm.diff("a", "a", progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("compare")]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_exit_status_is_that_of_diff(folder):
    write_model(folder / "b", llama(1))
    done = run_cli("diff", "a", "a")
    assert (done.status, done.stdout, done.stderr) == (0, "equal: 8 tensors, 2.14 kB\n", "")
    assert (run_cli("diff", "a", "b").status, run_cli("diff", "a", "b", "--json").status) == (1, 1)
    done = run_cli("diff", "a", "nowhere")
    assert (done.status, done.stdout) == (2, "") and done.stderr.startswith("error: model 'nowhere' is not a directory")


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "I/O error", "/x"), wm.CheckpointError("bad.")])
def test_whatever_goes_wrong_is_trouble(folder, monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("warpmerge.verification.diff", broken)
    done = run_cli("diff", "a", "a")
    assert (done.status, done.stdout) == (2, "") and done.stderr.startswith("error: ")


def test_the_table(folder):
    b = llama(0)
    b[W][0, 0] += 1
    b["model.norm.weight"][:] = 0
    del b["model.embed_tokens.weight"]
    write_model(folder / "b", b | {"x": np.ones(2)})
    done = run_cli("diff", "a", "b")
    head, rule, first, second, blank, *rest = done.stdout.splitlines()
    assert head.split() == ["tensor", "dtype", "shape", "differing", "share", "largest", "relative", "cosine"]
    assert set(rule) == {"-", " "} and blank == ""
    assert first.startswith("model.norm.weight ") and first.endswith("-         -")
    assert second.startswith(f"{W}  float32  [16, 8] ") and " 1    0.78%     1.00 " in second
    assert rest == ["only in a: model.embed_tokens.weight", "only in b: x", "4 of 9 tensors differ: 1.06 kB of 2.14 kB"]


def test_the_table_ends_after_the_top_rows(folder):
    write_model(folder / "b", {name: t + 1 for name, t in llama(0).items()})
    lines = run_cli("diff", "a", "b", "--top", "3").stdout.splitlines()
    assert len(lines) == 2 + 3 + 1 + 2 and "... and 5 tensors more; --top 8 shows all" in lines
    lines = run_cli("diff", "a", "b", "--top", "0").stdout.splitlines()
    assert lines == ["... and 8 tensors more; --top 8 shows all", "8 of 8 tensors differ: 2.14 kB of 2.14 kB"]
    write_model(folder / "c", {f"c{n}": np.ones(1) for n in range(4)})
    lines = run_cli("diff", "a", "c", "--top", "2").stdout.splitlines()
    assert lines.count("... and 6 more like this") == lines.count("... and 2 more like this") == 1


def test_json(folder):
    write_model(folder / "b", llama(1))
    done = run_cli("diff", "a", "b", "--json", "--top", "1")
    report = json.loads(done.stdout)
    assert report == json.loads(json.dumps(wm.diff("a", "b").as_dict()))
    assert len(report["differing"]) == 8 and report["equal"] is False
    assert json.loads(run_cli("diff", "a", "a/../a", "--json").stdout)["equal"] is True
