"""Views that are computed: the compiled loader gives the bits of the definition, and these are right to one ulp."""

import numpy as np
import pytest
import torch
from kernel_helpers import ISAS, buffer, pool, work
from view_helpers import Views
from warpmerge import _core
from warpmerge.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from warpmerge.models import low_rank
from warpmerge.models.low_rank import Factors, LowRank, Rounded
from warpmerge.models.views import GatheredRows, JoinedParts

KINDS = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, torch.float32: FLOAT32, torch.float64: FLOAT64}
SHAPES = [(1, 1), (1, 300), (7, 1), (5, 33), (9, 256), (6, 700), (130, 64)]


def low_rank_view(views, shape, rank, dtype, *, transposed=False, magnitudes=None, of=torch.float32):
    """A view, and what it is in float64."""
    rows, columns = shape
    base, w = views.leaf(shape)
    views.dtype = of
    left, own_left = views.leaf((rank, rows) if transposed else (rows, rank))
    right, own_right = views.leaf((columns, rank) if transposed else (rank, columns))
    views.dtype = dtype
    own_left, own_right = own_left.double(), own_right.double()
    delta = (own_right @ own_left).T if transposed else own_left @ own_right
    wanted = w.double() + 1.5 * delta
    lengths = None
    if magnitudes:
        size = columns if magnitudes == "columns" else rows
        views.dtype = torch.float32
        lengths, m = views.leaf((size,))
        views.dtype = dtype
        axis = 0 if magnitudes == "columns" else 1
        wanted = wanted * (m.double() / wanted.norm(dim=axis)).unsqueeze(axis)
    factors = Factors(left, right, rank, transposed, 1.5, lengths, magnitudes == "columns")
    return LowRank(base, factors), wanted


def native(view, isa, tile):
    result = np.full(view.nbytes, 123, np.uint8)
    item = pool(isa).copy(view.native(), result.size, tile, _core.Output(0, memory=result.ctypes.data))
    work(pool(isa), item)
    return result.tobytes()


def ulps(found, wanted):
    """The largest difference in units of the last place of the result's dtype."""
    step = torch.nextafter(wanted.to(found.dtype).abs(), torch.tensor(torch.inf, dtype=found.dtype)).double()
    return ((found.double() - wanted).abs() / (step - wanted.to(found.dtype).abs().double())).max().item()


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("magnitudes", [None, "rows", "columns"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_loader_gives_the_bits_of_the_definition(dtype, magnitudes, transposed, monkeypatch):
    for seed, shape in enumerate(SHAPES):
        with Views(seed, dtype) as views:
            of = torch.float64 if seed == 3 else torch.bfloat16 if seed == 4 else torch.float32
            view, wanted = low_rank_view(
                views, shape, 1 + 5 * seed, dtype, transposed=transposed, magnitudes=magnitudes, of=of
            )
            defined = bytes(view.read())
            found = torch.frombuffer(bytearray(defined), dtype=dtype).reshape(shape)
            if dtype == torch.float64:
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)
            else:
                assert ulps(found, wanted) <= 0.51
            for start in range(0, view.count, 97):
                size = view.dtype.itemsize
                assert (
                    bytes(view.read(start, min(61, view.count - start))) == defined[start * size : (start + 61) * size]
                )
            for isa in ISAS:
                monkeypatch.setenv("WARPMERGE_ISA", isa)
                for tile in (24, 1000, 1 << 20):
                    fresh = LowRank(view.base, view.factors)
                    assert native(fresh, isa, tile) == defined


def test_under_other_views(monkeypatch):
    """Rows of a weight under an adapter, joined with others: a vocabulary that is put together."""
    with Views(1, torch.bfloat16) as views:
        view, _ = low_rank_view(views, (40, 48), 4, torch.bfloat16, transposed=True)
        extra, _ = views.leaf((3, 48))
        index = [41, 3, 4, 5, 42, 39, 0]
        gathered = GatheredRows(JoinedParts([view, extra], 0, "t"), index, "t")
        whole = np.concatenate([np.frombuffer(view.read(), "u2"), np.frombuffer(extra.read(), "u2")]).reshape(43, 48)
        assert bytes(gathered.read()) == whole[index].tobytes()
        for tile in (56, 1 << 20):
            assert native(gathered, ISAS[0], tile) == whole[index].tobytes()


@pytest.mark.parametrize("source", KINDS, ids=str)
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_rounded_once(source, dtype):
    values = torch.randn(70_000, dtype=torch.float64) * 10.0 ** torch.randint(-9, 4, (70_000,))
    values[:5] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    values = values.to(source)
    view = Rounded(buffer(values), KINDS[dtype])
    found = bytes(view.read())
    if not (source == torch.float64 and dtype.itemsize == 2):  # torch rounds that twice
        torch.testing.assert_close(
            torch.frombuffer(bytearray(found), dtype=dtype), values.to(dtype), rtol=0, atol=0, equal_nan=True
        )
    for isa in ISAS:
        for tile in (8, 4096, 1 << 20):
            assert native(Rounded(buffer(values), KINDS[dtype]), isa, tile) == found


def test_memory_of_factors_is_bounded():
    with Views(0, torch.bfloat16) as views:
        views_of = [low_rank_view(views, (30, 20), 4, torch.bfloat16, magnitudes="rows")[0] for _ in range(3)]
    assert low_rank.memory(views_of, 2) == (3 + 2) * 4 * (30 + 32) * 8 + 3 * 30 * 8
    large = [LowRank.__new__(LowRank) for _ in range(5)]
    for view in large:
        view.factors, view.rows, view.columns = Factors(None, None, 64, False, 1.0), 1 << 16, 1 << 16
    assert low_rank.memory(large, 2) == low_rank.HELD + (2 + 2) * 8 * 64 * (1 << 17)
