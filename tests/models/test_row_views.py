"""Views of rows that several views give: what they hold, to the last bit, and what they read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import ISAS, buffer, opened, pool, work
from warpmerge import _core
from warpmerge.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from warpmerge.errors import CheckpointError
from warpmerge.models.row_views import MeanRows, RowsMean
from warpmerge.models.views import FileRegion, GatheredRows, JoinedParts

DTYPES = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16, FLOAT32: torch.float32, FLOAT64: torch.float64}
dtypes = st.sampled_from(list(DTYPES))


def bytes_of(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def native(view, tile_bytes):
    """What the native loader makes of a view, in tiles of so many bytes."""
    result = np.full(view.nbytes, 123, np.uint8)
    output = _core.Output(0, memory=result.ctypes.data)
    work(pool(ISAS[0]), pool(ISAS[0]).copy(view.native(), result.size, tile_bytes, output))
    return result.tobytes()


def mean(tensors, index, dtype):
    """In float64, a row at a time, rounded once by torch through float32 only where that is exact."""
    rows = []
    for row in index.T:
        found = [tensor[at].double() for tensor, at in zip(tensors, row, strict=True) if at >= 0]
        rows.append(sum(found[1:], found[0]) / len(found) if found else torch.zeros(tensors[0].shape[1:]).double())
    return torch.stack(rows).to(DTYPES[dtype])


@given(seed=st.integers(0, 2**32), kinds=st.lists(dtypes, min_size=1, max_size=4), dtype=dtypes, data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_range_is_the_mean_of_the_rows(seed, kinds, dtype, data):
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    width, rows, count = (int(n) for n in random.integers([1, 1, 1], [3000, 8, 12]))
    # Eighths of small numbers: their sums are exact, and means of up to 4 of them have ties in 16 bits at most by 3.
    tensors = [(torch.randint(-64, 64, (rows, width), generator=generator) / 8).to(DTYPES[k]) for k in kinds]
    index = random.integers(-1, rows, (len(kinds), count))
    view = MeanRows([buffer(tensor) for tensor in tensors], index, dtype, "t")
    wanted = bytes_of(mean(tensors, index, dtype))
    assert (view.shape, view.nbytes) == ((count, width), len(wanted))
    assert bytes(view.read()) == wanted
    start = data.draw(st.integers(0, view.count))
    length = data.draw(st.integers(0, view.count - start))
    size = dtype.itemsize
    assert view.read(start, length) == wanted[start * size : (start + length) * size]
    for tile in (8, 104, 1 << 20):
        assert native(view, tile) == wanted


@given(seed=st.integers(0, 2**32), dtype=dtypes)
@settings(deadline=None, max_examples=40)
def test_both_definitions_round_alike(seed, dtype):
    """Sums that are not exact, ties, subnormals, zeros of both signs, infinities and NaN."""
    random = np.random.default_rng(seed)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 6e-8, 65520, 1 + 2**-9, 1 + 2**-8 + 2**-30, 3e38]
    numbers = np.concatenate([random.standard_normal((3, 100)), random.choice(special, (3, 100))], 1)
    tensors = [torch.from_numpy(row[None]).to(torch.float64 if dtype is FLOAT64 else torch.float32) for row in numbers]
    for parts in ([0, 0, 0], [0, 0, -1], [0, -1, -1]):
        view = MeanRows([buffer(t) for t in tensors], np.array(parts)[:, None], dtype, "t")
        assert bytes(view.read()) == native(view, 104)


def test_a_single_row_keeps_every_bit():
    odd = torch.tensor([[-0.0, float("nan"), 1.0]], dtype=torch.bfloat16)
    odd.view(torch.int16)[0, 1] = 0x7FA1  # a NaN that is not the canonical one
    view = MeanRows([buffer(odd), buffer(odd)], [[0, -1], [-1, -1]], BFLOAT16, "t")
    assert bytes(view.read()) == native(view, 8) == bytes_of(odd) + bytes(6)


def test_what_is_read_of_files():
    file = opened(__file__)
    one, two = (FileRegion(dtype, (40, 1 << 14), file, at) for dtype, at in ((BFLOAT16, 0), (FLOAT32, 100)))
    view = MeanRows([one, two], [[3, -1, 4], [-1, 7, 30]], FLOAT32, "t")
    row = 1 << 14
    assert list(view.ranges()) == [
        (file, 3 * row * 2, 2 * row * 2),
        (file, 100 + 7 * row * 4, row * 4),
        (file, 100 + 30 * row * 4, row * 4),
    ]
    assert list(view.ranges(row, row)) == [(file, 100 + 7 * row * 4, row * 4)]
    assert view.read_bytes == 2 * row * 2 + 2 * row * 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_all_rows(dtype):
    random = np.random.default_rng(1)
    tensor = torch.from_numpy(random.integers(-64, 64, (1000, 33)) / 8).to(DTYPES[dtype])
    row = RowsMean(buffer(tensor))
    wanted = bytes_of(tensor.double().mean(0, keepdim=True).to(DTYPES[dtype]))
    assert bytes(row.read()) == wanted and row.shape == (1, 33)
    padded = JoinedParts([buffer(tensor), GatheredRows(row, [0, 0], "t")], 0, "t")
    assert native(padded, 104) == bytes_of(tensor) + 2 * wanted == bytes(padded.read())


def test_rows_that_do_not_go_together():
    narrow, wide = buffer(torch.zeros(3, 4)), buffer(torch.zeros(3, 5))
    with pytest.raises(CheckpointError, match=r"'embed': the shapes \[3, 4\] and \[3, 5\]"):
        MeanRows([narrow, wide], [[0], [0]], FLOAT32, "embed")
    with pytest.raises(CheckpointError, match="'embed': row 3 is needed, but there are 3 rows"):
        MeanRows([narrow], [[3]], FLOAT32, "embed")


def test_a_file_that_ends_early_is_an_error_of_the_input(tmp_path):
    (tmp_path / "short").write_bytes(bytes(100))
    region = FileRegion(FLOAT32, (10, 3), opened(tmp_path / "short"), 0)
    for view in (MeanRows([region, region], [[0, 9], [1, 9]], FLOAT32, "t"), RowsMean(region)):
        with pytest.raises(CheckpointError, match="changed while it was being read"):
            view.read()
