"""A merge of views is the merge of the tensors that they stand for, bit for bit, and reads what it says it reads."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import read_model, write_model, write_recipe
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_helpers import ISAS, assert_same_bits, buffer, changed, cpu, native_file, opened, pool, reference, run, work
from view_helpers import Views, shape_of
from warpmerge import _core
from warpmerge.backends.reference.backend import digest
from warpmerge.engine import file_merge
from warpmerge.engine.read_ahead import ReadAhead
from warpmerge.models import OutputDirectory
from warpmerge.models.views import FileRegion, GatheredRows, JoinedParts
from warpmerge.plan.file_plan import make_plan
from warpmerge.recipe import Recipe

few = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32)
DTYPES = [torch.bfloat16, torch.float32, torch.int8, torch.float64]
# Measured in one pass or several, whole rows at once, random drops, in torch as a whole, and not at all.
METHODS = {
    "linear": {"weight": [0.5, 0.3]},
    "ties": {"weight": [0.5, 0.3], "density": [0.5, 0.7]},
    "dare_ties": {"weight": [0.5, 0.3], "density": [0.5, 0.7]},
    "della": {"weight": [0.5, 0.3], "density": [0.5, 0.7]},
    "iso_c": {},
}


def bytes_of(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def copied(view, tile_bytes, start=0):
    """What the native loader makes of a view from a byte on, and the digest, in tiles that are written as they come."""
    result = np.full(view.nbytes - start, 123, np.uint8)
    output = _core.Output(0, memory=result.ctypes.data)
    item = pool(ISAS[0]).copy(view.native().from_byte(start), result.size, tile_bytes, output)
    work(pool(ISAS[0]), item)
    return result.tobytes(), item.digest


# --- ranges ---------------------------------------------------------------------------------------------------------


@given(seed=seeds, dtype=st.sampled_from(DTYPES), count=st.integers(0, 500), depth=st.integers(0, 4), data=st.data())
@example(seed=0, dtype=torch.bfloat16, count=0, depth=3, data=None)
@few
def test_any_range_is_that_of_the_tensor(seed, dtype, count, depth, data):
    with Views(seed, dtype) as views:
        view, tensor = views.view(shape_of(count, random.Random(seed)), depth)
        wanted, size = bytes_of(tensor), tensor.element_size()
        assert (view.shape, view.count, view.nbytes) == (tuple(tensor.shape), tensor.numel(), len(wanted))
        assert bytes(view.read()) == wanted
        start = data.draw(st.integers(0, view.count)) if data else 0
        length = data.draw(st.integers(0, view.count - start)) if data else 0
        assert bytes(view.read(start, length)) == wanted[start * size : (start + length) * size]
        assert b"".join(map(bytes, view.chunks(24))) == wanted
        for tile in (8, 104, 1 << 20):
            assert copied(view, tile) == (wanted, digest(np.frombuffer(wanted, np.uint8)))
        assert copied(view, 1 << 20, start * size)[0] == wanted[start * size :]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("middle", [3, 40, 3000])  # pieces that are read many at a time, and that are read alone
def test_parts_of_files_joined_along_each_axis(axis, middle):
    with Views(axis) as views:
        view, tensor = views.joined((4, middle, 21), 1, axis)
        for tile in (504, 1 << 16, 1 << 22):
            assert copied(view, tile)[0] == bytes_of(tensor)


@given(seed=seeds, depth=st.integers(1, 3), data=st.data())
@few
def test_what_is_read_ahead_holds_all_that_is_read(seed, depth, data):
    with Views(seed) as views:
        view, _ = views.view((data.draw(st.integers(1, 30)), 7), depth)
        start = data.draw(st.integers(0, view.count))
        count = data.draw(st.integers(0, view.count - start))
        ahead = {(file, byte) for file, at, nbytes in view.ranges(start, count) for byte in range(at, at + nbytes)}
        read = set()
        original = FileRegion.read

        def noted(self, start=0, count=None):
            count = self.count - start if count is None else count
            first = self.offset + start * self.dtype.itemsize
            read.update((self.file, byte) for byte in range(first, first + count * self.dtype.itemsize))
            return original(self, start, count)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FileRegion, "read", noted)
            # Whole rows are read for the definition's sake; of a joined view, only what is asked for.
            view.read(start, count)
        if isinstance(view, JoinedParts) and depth == 1:
            assert ahead == read
        elif start == 0 and count == view.count:
            assert ahead >= read


def test_near_rows_are_read_ahead_in_one_request_and_far_ones_are_not():
    file = opened(__file__)
    dtype = buffer(torch.zeros(1)).dtype
    rows = FileRegion(dtype, (1000, 1024), file, 100)
    gathered = GatheredRows(rows, [500, 3, 1, 501, 3], "t")
    assert list(gathered.ranges()) == [(file, 100 + 4096, 3 * 4096), (file, 100 + 500 * 4096, 2 * 4096)]
    assert list(gathered.ranges(0, 1024)) == [(file, 100 + 500 * 4096, 4096)]


# --- merges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@given(seed=seeds, count=st.sampled_from([0, 1, 30, 511, 5000, 20_000]), dtype=st.sampled_from(DTYPES[:2]))
@settings(few, max_examples=12)
def test_merges_have_the_bits_of_tensors(method, seed, count, dtype):
    with Views(seed, dtype) as views:
        shape = shape_of(count, random.Random(seed))
        backends = [reference(), *(cpu(isa, threads, tile) for isa in ISAS for threads, tile in ((2, 512), (1, None)))]
        for backend in backends:
            views.random.seed(seed)
            composed, plain = views.task(method, shape, 2, **METHODS[method])
            assert_same_bits(run(backend, composed)[0], run(backend, plain)[0], method)


@pytest.mark.parametrize("index", [0, 1])
def test_a_copy_of_a_view(index):
    with Views(5) as views:
        composed, plain = views.task("linear", (300, 70), 2, weight=[1.0, 1.0])
        composed, plain = (
            (changed(made, method=None, inputs=[made.inputs[index]]), result) for made, result in (composed, plain)
        )
        for backend in (reference(), cpu(tile=512)):
            assert_same_bits(run(backend, composed)[0], run(backend, plain)[0])


# --- plans ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def permuted(tmp_path):
    """Two models and a base whose vocabularies are permuted and lie in two tensors each, and as plain tensors."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(300)
    plain, cut = [], []
    for name in ("base", "a", "b"):
        embed = rng.normal(size=(300, 40)).astype(np.float32)
        sorted_rows = embed[rows]
        plain.append(write_model(tmp_path / "plain" / name, {"embed": embed, "id": np.arange(9)}))
        parts = {"low": sorted_rows[:123], "high": sorted_rows[123:]}
        cut.append(write_model(tmp_path / "cut" / name, {**parts, "embed": embed * 0, "id": np.arange(9)}, shards=2))
    return plain, cut, np.argsort(rows)


def planned(tmp_path, models):
    base, *others = map(str, models)
    document = {
        "merge_method": "ties",
        "base_model": base,
        "models": [{"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in others],
    }
    return make_plan(Recipe.load(write_recipe(tmp_path / "recipe.yml", document)))


def with_views(plan, index):
    """The plan with the tensor `embed` put together anew from its rows."""
    row = list(plan.jobs.names).index("embed")
    for checkpoint, column in zip([*plan.inputs, *plan.bases], plan.jobs.group(row).columns, strict=True):
        joined = JoinedParts([checkpoint.view("low"), checkpoint.view("high")], 0, "embed")
        column.replace({row: GatheredRows(joined, index, "embed")})
    return row


def test_a_plan_of_views_is_merged_from_files(tmp_path, permuted):
    plain, cut, index = permuted
    wm.merge(planned(tmp_path, plain).recipe, tmp_path / "wanted", sync=False)
    plan = planned(tmp_path, cut)
    before = plan.read_bytes
    row = with_views(plan, index)
    assert plan.jobs.read_bytes(row) == 3 * 300 * 40 * 4 and plan.read_bytes == before
    seen = []
    directory = OutputDirectory(tmp_path / "out", inputs=[], overwrite=False, resume=False, sync=False)
    file_merge.run_plan(plan, directory, cpu(tile=512), lambda done, total: seen.append((done, total)))
    plan.close()
    assert seen[-1] == (before, before)
    got, wanted = read_model(tmp_path / "out"), read_model(tmp_path / "wanted")
    assert got["embed"] == wanted["embed"]


class Background:
    def __init__(self):
        self.asked = []

    def read_ahead(self, file, offset, nbytes):
        self.asked.append((file, offset, nbytes))


def test_a_plan_of_views_is_read_ahead(tmp_path, permuted):
    _, cut, index = permuted
    plan, background = planned(tmp_path, cut), Background()
    ReadAhead(plan.jobs, [with_views(plan, index)], background).advance(0)
    # The two tensors lie behind one another: a request for each file.
    wanted = [(low.file, low.offset, 300 * 40 * 4) for low in (c.view("low") for c in [*plan.inputs, *plan.bases])]
    assert set(background.asked) == set(wanted) and len(background.asked) == len(wanted)
    plan.close()


PEAK = """
import resource, sys
import numpy as np
from warpmerge import _core
from warpmerge.dtypes import FLOAT32
from warpmerge.models.views import GatheredRows, JoinedParts, Memory

rows = np.ones((8, 64), np.float32)
source = Memory(FLOAT32, rows.shape, rows.ctypes.data, rows)
view = GatheredRows(source, np.arange(1 << 20) % 8, "t")
view = JoinedParts([view, view], 1, "t")  # 512 MiB
native, pool = view.native(), _core.Pool(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
launch = pool.submit([pool.copy(native, view.nbytes, 1 << 20, _core.Output(0))])
while not launch.wait(100):
    pass
print(view.nbytes >> 10, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_view_needs_the_memory_of_tiles():
    finished = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    whole, used = map(int, finished.stdout.split())  # KiB
    assert whole == 512 << 10 and used < 16 << 10


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 3], "tensor 'embed': index 1 asks for row 3, but there are 3 rows"),
        ([-1], "tensor 'embed': index 0 asks for row -1"),
        (np.array([2**64 - 1], np.uint64), "tensor 'embed': index 0 asks for row 18446744073709551615"),
        ([[0]], "not by int64 of the shape [1, 1]"),
        ([0.0], "not by float64"),
    ],
)
def test_an_index_that_cannot_be_used(index, message):
    with pytest.raises(wm.CheckpointError) as error:
        GatheredRows(buffer(torch.zeros(3, 4)), index, "embed")
    assert message in str(error.value)


def test_a_scalar_has_no_rows():
    with pytest.raises(wm.CheckpointError, match="tensor 'scale': a scalar has no rows"):
        GatheredRows(buffer(torch.zeros(())), [0], "scale")


@pytest.mark.parametrize(
    ("parts", "axis", "message"),
    [
        ([(2, 3), (2, 4)], 0, r"of the shapes \[2, 3\] and \[2, 4\] do not join along axis 0"),
        ([(2, 3), (2, 3, 1)], 1, r"do not join along axis 1"),
        ([(2, 3)], 2, "has no axis 2"),
        ([(2, 3)], -3, "has no axis -3"),
        ([()], 0, "has no axis 0"),
        ([], 0, "no parts"),
    ],
)
def test_shapes_that_do_not_join(parts, axis, message):
    with pytest.raises(wm.CheckpointError, match=f"tensor 'w'.*{message}"):
        JoinedParts([buffer(torch.zeros(shape)) for shape in parts], axis, "w")


def test_dtypes_that_do_not_join():
    with pytest.raises(wm.CheckpointError, match="tensor 'w': parts of float32 and bfloat16"):
        JoinedParts([buffer(torch.zeros(2)), buffer(torch.zeros(2, dtype=torch.bfloat16))], 0, "w")


def test_a_file_that_ends_early_is_an_error_of_the_input(tmp_path):
    (tmp_path / "short").write_bytes(bytes(100))
    with (tmp_path / "short").open("rb") as file:
        region = FileRegion(buffer(torch.zeros(1)).dtype, (30,), native_file(file), 0)
        for view in (region, GatheredRows(region, [0, 29], "t"), JoinedParts([region, region], 0, "t")):
            for read in (view.read, lambda view=view: copied(view, 64)):
                with pytest.raises(wm.CheckpointError, match="changed while it was being read"):
                    read()
