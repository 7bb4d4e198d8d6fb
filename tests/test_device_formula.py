"""Formulas by the CUDA kernels on the emulated device: the reference's bits, wherever the operands are."""

import contextlib

import numpy as np
import pytest
import torch
from device_modes import FIXTURES, MODES, device, emulated
from formula_helpers import (
    KEY,
    adversarial,
    assert_same_tensors,
    everything,
    formula,
    is_wide,
    random_values,
    threshold,
)
from kernel_helpers import ALL_DTYPES, buffer, family, reference, task, unaligned
from warpmerge import formula as f
from warpmerge.device import flight
from warpmerge.device.backend import DeviceBackend
from warpmerge.device.code import LAST, NONE, file_bytes, packed
from warpmerge.device.kernels import CudaKernels
from warpmerge.device.loads import CHUNKS, Cut
from warpmerge.device.tables import BLOCK, CHUNK
from warpmerge.device.torch_runtime import TorchRuntime
from warpmerge.errors import DeviceError, MergeError
from warpmerge.ops import (
    KEEP_ALL,
    Apply,
    Gram,
    Histogram,
    KeepAbove,
    KeepDrawn,
    Moments,
    Rows,
    Select,
    Whole,
)
from warpmerge.tasks import DeviceSink, FileSink, MemorySink

(emulation,) = FIXTURES

TILED = 3 * CHUNK + 4097
PLACES = ("resident", "tiled, late")
IN_PLACE = "in place"


class Case:
    """A request about tensors, which is prepared anew for each backend."""

    def __init__(self, request, tensors, base=None, *, outputs=1, out_dtype=None, nonfinite="propagate"):
        self.request, self.tensors, self.base = request, tensors, base
        self.outputs, self.nonfinite = outputs if isinstance(request, Apply) else 0, nonfinite
        self.out_dtype = out_dtype or (base if base is not None else tensors[0]).dtype

    def prepared(self, in_place=False):
        made, _ = task("task_arithmetic", self.tensors, self.base, weight=1.0, nonfinite=self.nonfinite)
        sink = DeviceSink if in_place else MemorySink
        results = [torch.full(self.tensors[0].shape, 123.0, dtype=self.out_dtype) for _ in range(self.outputs)]
        made.out_dtype = buffer(torch.empty(0, dtype=self.out_dtype)).dtype
        made.sinks = [sink(r.data_ptr(), r) for r in results]
        if in_place:
            made.inputs = [_on_device(t) for t in self.tensors]
            made.base = None if self.base is None else _on_device(self.base)
        return made, results


def _on_device(tensor):
    found = buffer(tensor)
    return type(found)(found.nbytes, found.dtype, found.address, owner=tensor, device="cpu")


@contextlib.contextmanager
def place(mode, cases, **options):
    if mode != IN_PLACE:
        with device(mode, [c.prepared()[0] for c in cases], **options) as backend:
            yield backend
        return
    kernels = CudaKernels(emulated, emulated.Device(0))
    yield DeviceBackend("cuda", TorchRuntime("cpu"), kernels, resident=True)


def carry_out(backend, cases, in_place=False):
    made = [case.prepared(in_place) for case in cases]
    outcomes = backend.launch([(t, case.request) for (t, _), case in zip(made, cases, strict=True)]).wait()
    if hasattr(backend, "release"):
        backend.release([t for (t, _), case in zip(made, cases, strict=True) if not case.outputs])
    return outcomes, [results for _, results in made]


def same(got, wanted, what):
    if isinstance(wanted, np.ndarray):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), what
        assert np.array_equal(got.view(np.int64), wanted.view(np.int64)), what
    else:
        assert got == wanted, what


def compare(cases, modes=PLACES, **options):
    """All cases in one batch of each mode."""
    wanted, written = carry_out(reference(), cases)
    for mode in modes:
        with place(mode, cases, **options) as backend:
            got, results = carry_out(backend, cases, mode == IN_PLACE)
        for number, case in enumerate(cases):
            what = number, type(case.request).__name__, mode
            if not case.outputs:
                same(got[number].value, wanted[number].value, what)
                assert got[number].nonfinite == wanted[number].nonfinite, what
            elif case.nonfinite == "error" or mode != IN_PLACE:
                assert got[number].nonfinite == wanted[number].nonfinite, what
            assert_same_tensors(results[number], written[number], what)


# --- apply ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_instruction(dtype):
    cases = []
    for relative, count in [(True, 1283), (False, CHUNK + 77)]:
        base, tensors = adversarial(dtype, 2, count)
        keys = [threshold(tensors, is_wide(dtype)), 0x7FC00000, 0x7FF8 << 48]
        values = everything(2, columns=count, rows=1, keys=keys)
        out = torch.float64 if is_wide(dtype) else torch.float32
        request = Apply(formula(values, count), relative)
        cases.append(Case(request, tensors, base if relative else None, outputs=len(values), out_dtype=out))
    compare(cases, ["resident"])


@pytest.mark.parametrize("mode", [*MODES, IN_PLACE])
def test_random_programs(mode):
    cases = []
    for seed, dtype in enumerate(ALL_DTYPES * 2):
        models, count = (1, 3, 5)[seed % 3], (999, CHUNK + 41)[seed % 2]
        base, tensors = (adversarial if seed % 2 else family)(dtype, models, count, seed=seed)
        values = random_values(seed, models, outputs=2)
        policy = ("propagate", "base", "error")[seed % 3]
        if seed % 4 == 1:
            base, *tensors = map(unaligned, (base, *tensors))
        for relative in (True, False):
            cases.append(
                Case(Apply(formula(values), relative), tensors, base if relative else None, outputs=2, nonfinite=policy)
            )
    compare(cases, [mode])


@pytest.mark.parametrize("agree", [0, 1, 3])
def test_inputs_that_agree_stay(agree):
    cases = []
    for dtype in ("fp16", "fp64"):
        _, tensors = adversarial(dtype, 3, 1283)
        tensors[1][::2] = tensors[0][::2]
        tensors[2][::3] = tensors[0][::3]
        tensors[0][:2] = torch.tensor([0.0, -0.0])
        tensors[1][:2] = torch.tensor([-0.0, -0.0])
        values = [(f.delta(0) + f.delta(1) + f.delta(2)) / 3, f.wrap(1.5)]
        cases.append(Case(Apply(formula(values), False, agree), tensors, outputs=2))
    compare(cases)


@pytest.mark.parametrize("mode", PLACES)
def test_ties_end_anywhere(mode):
    """Within groups, and at the ends of blocks, chunks and parts."""
    base, tensors = family("bf16", 2, TILED)
    limit = threshold([tensors[0].float() - base.float()], False)
    cases = []
    for tie_end in [0, 1, 4095, BLOCK, CHUNK - 1, CHUNK, CHUNK + 3, 2 * CHUNK, 3 * CHUNK + 4096, TILED]:
        values = [f.kept(f.delta(0), KeepAbove(limit, tie_end)), f.kept(f.delta(0) * 1.0, KeepAbove(limit, tie_end))]
        cases.append(Case(Apply(formula(values), True), tensors, base, outputs=2))
    compare(cases, [mode])


@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 0), (2, 3, 5)])
def test_shapes(shape):
    base, tensors = family("bf16", 2, shape)
    columns = shape[-1] if shape else 1
    rows = base.numel() // columns if columns else 0
    values = [f.delta(0) + f.row(np.ones(rows)) * f.column(np.ones(columns)) * f.draw(KEY)]
    compare([Case(Apply(formula(values, columns), True), tensors, base)], [*PLACES, IN_PLACE])


@pytest.mark.parametrize("columns", [1, 7, 257, 5000, 40_000])
def test_vectors_of_rows_and_columns(columns):
    rows = max(1, 50_000 // columns)
    generator = np.random.default_rng(columns)
    cases = []
    for dtype in ("bf16", "fp64"):
        base, tensors = family(dtype, 2, rows * columns)
        by_row, by_column = generator.standard_normal(rows), generator.standard_normal(columns)
        values = [f.delta(0) * f.row(by_row) + f.column(by_column), f.row(by_column[:1].repeat(rows))]
        cases.append(Case(Apply(formula(values, columns), True), tensors, base, outputs=2))
    compare(cases)


@pytest.mark.parametrize("size", [("fp32", 130), ("fp32", 900), ("fp64", 60), ("fp64", 500)])
def test_programs_with_many_operands(size):
    """For one element a thread, and with the operands in global memory."""
    dtype, many = size
    base, tensors = family(dtype, 2, 2061)
    terms = [f.delta(k % 2) * (0.1 + k) for k in range(many)]
    value = f.wrap(0.0)
    for k in range(many):  # every term lives until the last one is there
        value = value + terms[-1 - k] * terms[k]
    compiled = formula([value]).program(2, is_wide(dtype))
    assert compiled.registers >= many // 2
    assert (file_bytes(compiled, is_wide(dtype)) > 0) == (many >= 500)
    compare([Case(Apply(formula([value]), True), tensors, base)], ["resident", "tiled, late"])


def test_many_inputs():
    base, tensors = family("bf16", 70, 5000)
    ordered = [f.delta(k) for k in range(70)]
    for k in range(69):
        ordered[k], ordered[k + 1] = f.minimum(ordered[k], ordered[k + 1]), f.maximum(ordered[k], ordered[k + 1])
    compare([Case(Apply(formula([ordered[-1], ordered[0]]), True), tensors, base, outputs=2)], ["resident"])


def test_the_longest_program():
    base, tensors = family("bf16", 1, 99)
    value = f.delta(0)
    for k in range(4096 // 2):
        value = (value + (k + 1) / 7) * 0.5
    compare([Case(Apply(formula([value]), True), tensors, base)], ["resident"])


def test_packed_programs_leave_out_what_only_the_next_instruction_reads():
    program = formula([f.sqrt(abs(f.delta(0) - 1.0)) + f.delta(1)]).program(2, False)
    rows = packed(program).view(np.uint16)
    targets, first = rows[:-1, 1].tolist(), rows[:-1, 2].tolist()
    assert targets[:-1] == [NONE] * 3 and targets[-1] == program.outputs[0] == rows[-1, 0]
    assert first == [0, LAST, LAST, LAST]


def test_tensors_of_one_structure_share_launches():
    """Constants, rules, keys and vectors differ from tensor to tensor."""
    base, tensors = family("bf16", 2, 700)
    cases = []
    for i in range(50):
        kept = f.kept(f.delta(0) * (i + 0.5), KeepAbove(120 << 23, i))
        values = [
            kept + f.column(np.full(7, i)) * f.draw(KEY + i) + f.kept(f.delta(1), KeepDrawn(KEY - i, 900 * i + 1))
        ]
        cases.append(Case(Apply(formula(values, 7), True), tensors, base))
    with place("resident", cases) as backend:
        before = backend.runtime.device.launches
        _, results = carry_out(backend, cases)
        assert backend.runtime.device.launches == before + 1
    for one, other in zip(results, carry_out(reference(), cases)[1], strict=True):
        assert_same_tensors(one, other, "")


def test_vectors_that_do_not_fit_are_refused():
    base, tensors = family("bf16", 2, 12)
    for message, refused in {
        "needs their length": formula([f.row(np.ones(3))]),
        "each column, 4": formula([f.column(np.ones(3))], 4),
    }.items():
        case = Case(Apply(refused, True), tensors, base)
        with place("resident", [case]) as backend, pytest.raises(MergeError, match=message):
            carry_out(backend, [case])


# --- measured -------------------------------------------------------------------------------------------------------


def keeps(values, wide):
    rules = [KEEP_ALL, KeepDrawn(KEY, 20000), KeepAbove(0x3FF << 52 if wide else 127 << 23, 3000)]
    return tuple(rules[m % 3] for m in range(values))


@pytest.mark.parametrize("mode", [*PLACES, "small batches", IN_PLACE])
def test_measured_values(mode):
    """Moments, selections and histograms; what is not finite is counted in the inputs, once."""
    cases = []
    for seed, dtype in enumerate(ALL_DTYPES):
        models, count = (1, 3)[seed % 2], (TILED, 9001)[seed // 2 % 2]
        base, tensors = (adversarial if seed % 2 else family)(dtype, models, count, seed=seed)
        values = formula([*random_values(seed, models, outputs=2), f.delta(0) * 0.5])
        policy = ("error", "base")[seed % 2]
        wide = is_wide(dtype)
        counts = (count // 2, max(1, count // 50), 0)
        for request in [
            Moments(keeps(3, wide), of=values),
            Moments(keeps(3, wide), only_l1=True, of=values),
            Select(counts, of=values),
            Select(counts, keep_all_ties=True, of=values),
        ]:
            cases.append(Case(request, tensors, base, nonfinite=policy))
    compare(cases, [mode])


@pytest.mark.parametrize(("budget", "pieces"), [(1 << 14, 7), (1 << 17, 2), (1 << 20, 1)])
def test_temporaries_are_bounded(monkeypatch, budget, pieces):
    """Measured piece by piece, with the same result; a single one is evaluated once for all sweeps."""
    monkeypatch.setattr(flight, "TEMPORARIES", budget)
    values = formula([f.delta(0) * f.delta(1), f.draw(KEY) + f.delta(0)])
    sizes = [5 * BLOCK + 99, *range(100, 120)]
    selected, reduced = ([], [])
    for count in sizes:
        base, tensors = family("bf16", 2, count)
        selected.append(Case(Select((90, 7), of=values), tensors, base))
        reduced.append(Case(Moments((KEEP_ALL, KeepDrawn(KEY, 999)), of=values), tensors, base))
    compare(selected + reduced, ["resident", IN_PLACE])
    with place("resident", selected) as backend:
        evaluated, swept = [], []
        formulas, sweeps = backend.kernels.formula, backend.kernels.select_sweep
        backend.kernels.formula = lambda *arguments: (evaluated.append(1), formulas(*arguments))
        backend.kernels.select_sweep = lambda *arguments: (swept.append(1), sweeps(*arguments))
        carry_out(backend, selected)
        [workspace] = backend._workspaces
        least = 2 * 4 * BLOCK  # two values of the elements of a block
        assert 0 < workspace.temporary(0, 0).nbytes <= max(budget, least)
    assert len(swept) % pieces == 0 and len(swept) > pieces
    # Evaluated again for each sweep over the keys, and for the two that look for ties.
    assert len(evaluated) == (1 if pieces == 1 else len(swept) + 2 * pieces)


@pytest.mark.parametrize("cut", [CHUNKS, Cut(7), Cut(5000, within=True), Cut(BLOCK * 3), Cut(3, within=True)])
def test_cuts(cut):
    """At multiples of the unit, or within at whole blocks; as much as fits, and never nothing where something may."""
    end = 40_000
    for fits in (1, 6, 4096, 9000, 20_000, 50_000):
        first = 0
        while first < end:
            count = cut.most(first, end, fits)
            assert 0 <= count <= max(fits, 0)
            least = cut.least(first, end)
            assert least >= 1 and (count == 0) == (fits < least)
            first += count or least
            start = first // cut.unit * cut.unit
            assert first in (end, start) or (cut.within and (first - start) % BLOCK == 0)


def intervals(wide):
    one = 0x3FF << 52 if wide else 127 << 23
    return ((0, 2**63 - 1 if wide else 2**31 - 1), (one >> 1, one), (one - 100, one + 100), (5, 5))


@pytest.mark.parametrize("mode", [*PLACES, IN_PLACE])
def test_histograms(mode):
    """As many bins as the backend likes: each the keys that the reference has there."""
    for dtype in ("bf16", "fp64"):
        base, tensors = adversarial(dtype, 2, TILED)
        wide = is_wide(dtype)
        values = [f.delta(0), f.delta(1) * 0.5, f.delta(0) + f.delta(1), f.base()]
        cases = [
            Case(Histogram(intervals(wide)[:2]), tensors, base),
            Case(Histogram(intervals(wide), of=formula(values)), tensors, base),
        ]
        with place(mode, cases) as backend:
            got, _ = carry_out(backend, cases, mode == IN_PLACE)
        for case, outcome, wanted in zip(cases, got, carry_out(reference(), cases)[0], strict=True):
            assert outcome.nonfinite == wanted.nonfinite
            for (low, high), one, other in zip(case.request.intervals, outcome.value, wanted.value, strict=True):
                assert (one.above, one.bins.sum()) == (other.above, other.bins.sum())
                assert len(one.bins) == 2048 and (high - low) >> one.shift < 2048
                assert one.shift == 0 or (high - low) >> (one.shift - 1) >= 2048
                coarse = other.bins.reshape(-1, 1 << (one.shift - other.shift)).sum(1)
                both = min(len(coarse), len(one.bins))
                assert np.array_equal(coarse[:both], one.bins[:both])
                assert not coarse[both:].any() and not one.bins[both:].any()


# --- rows and ranks -------------------------------------------------------------------------------------------------

LENGTHS = [1, 7, 64, 257, 4097, 5000, 40_000]


@pytest.mark.parametrize("mode", [*PLACES, "tiled", IN_PLACE])
def test_rows(mode):
    """In tiles, rows are longer than a load."""
    cases = []
    for number, columns in enumerate(LENGTHS):
        rows = min(500, max(2, 9000 // columns))
        base, tensors = (adversarial if number % 2 else family)(ALL_DTYPES[number % 6], 2, columns * rows)
        values = formula([f.delta(0) * f.delta(1), f.delta(1), -abs(f.delta(0)) * f.draw(KEY)], columns)
        for largest in (False, True):
            cases.append(Case(Rows(values, largest), tensors, base))
        cases.append(Case(Rows(values, relative=False), tensors))
    compare(cases, [mode])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_rows_of_nothing(shape):
    request = Rows(formula([f.delta(0), f.base()], shape[-1]))
    for mode in (*PLACES, IN_PLACE):
        cases = [Case(request, [torch.empty(shape)], torch.empty(shape))]
        with place(mode, cases) as backend:
            assert carry_out(backend, cases, mode == IN_PLACE)[0][0].value.shape == (2, 0)


def ranked(columns, rows, dtype, kind):
    base, tensors = family(dtype, 2, rows * columns, seed=columns)
    if kind == "ties":  # few values, whole rows of one
        tensors = [torch.sign(t) * 0.5 * (torch.arange(t.numel()) // columns % 3 > 0) for t in tensors]
        tensors, base = [t.to(base.dtype) for t in tensors], torch.zeros_like(base)
    if kind == "adversarial":
        base, tensors = adversarial(dtype, 2, rows * columns, seed=columns)
    return base, tensors


@pytest.mark.parametrize("columns", [1, 7, 128, 129, 257, 5000, 40_000])
@pytest.mark.parametrize("kind", ["family", "ties", "adversarial"])
def test_ranks(kind, columns):
    cases = []
    rows = max(2, 6000 // columns) if columns < 40_000 else 1
    for dtype in ("fp64", "fp32") if kind == "family" else ("bf16",):
        base, tensors = ranked(columns, rows, dtype, kind)
        values = [f.rank(0), f.rank(1) * f.delta(0) + f.draw(KEY)]
        out = torch.float64 if is_wide(dtype) else torch.float32
        cases.append(Case(Apply(formula(values, columns), False), tensors, outputs=2, out_dtype=out))
        cases.append(Case(Apply(formula(values, columns), True), tensors, base, outputs=2, nonfinite="base"))
    compare(cases, ["resident", IN_PLACE])


def test_ranks_of_several_lengths_share_launches():
    cases = []
    for columns in (7, 100, 300, 8192, 8193):
        base, tensors = ranked(columns, 3, "bf16", "family")
        cases.append(Case(Apply(formula([f.rank(1) * 0.5 + f.rank(0)], columns), True), tensors, base))
    compare(cases, ["resident"])
    with place("resident", cases) as backend:
        before = backend.runtime.device.launches
        carry_out(backend, cases)
        # For each input the rows that fit into shared memory and those that do not, and the formula.
        assert backend.runtime.device.launches == before + 2 * 2 + 1


@pytest.mark.parametrize("columns", [5, 700, 5000])
def test_ranks_are_measured(columns):
    rows = max(3, 20_000 // columns)
    base, tensors = family("bf16", 2, columns * rows)
    values = formula([f.rank(0) * f.row(np.arange(rows) * 0.25) + f.rank(1), f.rank(1)], columns)
    cases = [
        Case(request, tensors, base)
        for request in [
            Rows(values),
            Select((columns * rows // 3, 10), of=values),
            Moments((KEEP_ALL, KeepDrawn(KEY, 999)), of=values),
        ]
    ]
    compare(cases, ["resident", IN_PLACE])


@pytest.mark.parametrize("columns", [3, 260, 4096])
def test_ranks_in_tiles(columns, monkeypatch):
    """Loads and pieces of whole rows."""
    monkeypatch.setattr(flight, "TEMPORARIES", 1 << 16)
    base, tensors = family("bf16", 2, columns * (80_000 // columns))
    values = formula([f.rank(0) * f.delta(1) + f.kept(f.delta(0), KeepDrawn(KEY, 30_000))], columns)
    cases = [
        Case(Apply(values, True), tensors, base),
        Case(Rows(values), tensors, base),
        Case(Moments((KEEP_ALL,), of=values), tensors, base),
    ]
    # Moments need whole blocks of the reduction order too: for the others a tile would have to be larger.
    compare(cases[: {3: 1, 260: 2, 4096: 3}[columns]], ["tiled, late"])


@pytest.mark.parametrize("columns", [5, 300])
def test_results_in_files(columns, tmp_path):
    """Parts that begin at rows: the file's bytes and the digest of them."""
    base, tensors = family("bf16", 2, columns * (60_000 // columns))
    case = Case(Apply(formula([f.rank(0) * f.delta(1) + f.draw(KEY)], columns), True), tensors, base)
    found = []
    for number, mode in enumerate([None, "tiled", "tiled, late"]):
        with open(tmp_path / str(number), "w+b") as file, contextlib.ExitStack() as stack:
            backend = stack.enter_context(place(mode, [case])) if mode else reference()
            made, _ = case.prepared()
            made.sinks = [FileSink(file.fileno(), 24)]
            [outcome] = backend.launch([(made, case.request)]).wait()
            found.append((outcome.value, (tmp_path / str(number)).read_bytes()))
    assert found[0] == found[1] == found[2] and len(found[0][1]) == 24 + 2 * base.numel()


def test_rows_that_do_not_fit_into_device_memory():
    base, tensors = family("bf16", 2, 40_000 * 4)
    case = Case(Apply(formula([f.rank(0)], 40_000), True), tensors, base)
    with place("tiled", [case]) as backend, pytest.raises(DeviceError, match="--device-memory"):
        carry_out(backend, [case])


# --- whole tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*PLACES, IN_PLACE])
def test_whole_tensors(mode):
    """Among requests of other kinds, as a measurement and as what combines."""
    base, tensors = family("bf16", 2, (64, 300))
    mean = Whole(lambda x, b: (x[0] + x[1]) / 2 + 0 * b, combines=True)
    applied = Apply(formula([(f.delta(0) + f.delta(1)) / 2]), True)
    cases = [
        Case(applied, tensors, base),
        Case(Whole(lambda x, b: [float(t.sum()) for t in (*x, b)]), tensors, base),
        Case(Gram(relative=True), tensors, base),
    ]
    compare(cases, [mode])
    case = Case(applied, tensors, base)
    with place(mode, [case]) as backend:
        made, [result] = case.prepared(mode == IN_PLACE)
        for request in (Gram(relative=True), Whole(lambda x, b: None), mean):
            [outcome] = backend.launch([(made, request)]).wait()
        [wanted], [[expected]] = carry_out(reference(), [case])
    assert_same_tensors([result], [expected], mode)
    assert mode == IN_PLACE or outcome.value == wanted.value


# --- the native module ----------------------------------------------------------------------------------------------


def test_programs_of_other_tensors_are_refused():
    gpu = emulated.Device(0)
    shape = {"segments": 0, "chunks": 0, "models": 2, "outputs": 1, "inputs": [0, 0], "base": -1, "out": 0}
    launch = emulated.Launch(wide=False, policy=1, aligned=True, places=0, chunk_map=0, **shape)
    sizes = {"code": 0, "instructions": 0, "constants": 0, "rules": 0, "keys": 0, "vectors": 0, "ranks": 0}
    for operands, values in [(2, 1), (3, 2)]:
        code = emulated.Formula(operands=operands, values=values, **sizes)
        with pytest.raises(RuntimeError, match="not one for the tensors"):
            gpu.formula(gpu.stream(), launch, code, True, 0, 0)
    many = emulated.Formula(operands=1000, values=1, **sizes)
    with pytest.raises(RuntimeError, match="too little memory for its operands"):
        gpu.formula(gpu.stream(), launch, many, True, 0, 0)
    with pytest.raises(RuntimeError, match="no such input"):
        gpu.ranks(gpu.stream(), launch, many, 0, 0, 5)
    with pytest.raises(ValueError, match="no negative sizes"):
        emulated.Formula(operands=-1, values=1, **sizes)
    with pytest.raises(ValueError, match="at most 65534 operands"):
        emulated.Formula(operands=2**16, values=1, **sizes)
