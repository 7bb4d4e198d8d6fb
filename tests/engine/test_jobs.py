"""Jobs in columns: into which groups tensors fall, and how often a method is asked."""

from array import array

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import cpu, family
from warpmerge import _core
from warpmerge.engine import loop
from warpmerge.engine.arrays import ArrayModel, Place
from warpmerge.methods import find
from warpmerge.methods.base import as_steps
from warpmerge.plan.jobs import make_jobs
from warpmerge.requests import Copy, KthLargest, TensorFunction, WeightedSum
from warpmerge.tasks import MemorySink, TensorTask

SHAPES = [(4, 8), (8, 4), (4, 8), (32,)]


def models(count=2, shapes=SHAPES, dtypes=None):
    place = Place.of("cpu", torch.zeros(1))
    kinds = list(zip(shapes, dtypes or [torch.float32] * len(shapes), strict=True))
    tensors = [{f"t{i}": torch.ones(s, dtype=d) * k for i, (s, d) in enumerate(kinds)} for k in range(count)]
    return [ArrayModel.of(model, f"model {k}", place) for k, model in enumerate(tensors)]


class Asked:
    """Stands in for a method; counts how often it is asked."""

    name, copies, auxiliary = "asked", False, ()

    def __init__(self, function):
        self.times, self._function = 0, function

    def steps(self, tensor, p):
        self.times += 1
        return (yield from as_steps(self._function)(tensor, p))


def jobs_of(method, given, **options):
    values = {"nonfinite": "propagate"}
    labels = [m.title for m in given]
    return make_jobs(
        method,
        given[0],
        given,
        None,
        values=lambda name: values,
        out_kinds=lambda kinds: kinds,
        labels=lambda name: labels,
        **options,
    )


MEAN = WeightedSum((0.5, 0.5), on_deltas=False)


def reads(attribute):
    def steps(tensor, p):
        assert getattr(tensor, attribute) is not None
        return MEAN

    return steps


def measures(tensor, p):
    yield KthLargest((1, 1), on_deltas=False)
    return MEAN


# How often each is asked about four tensors of three shapes. One that is found to take steps of its own, for one
# tensor, is asked once more.
TIMES = {
    "nothing": (lambda tensor, p: MEAN, 1),
    "models": (reads("models"), 1),
    "count": (reads("count"), 3),
    "shape": (reads("shape"), 3),
    "rows": (reads("rows"), 3),
    "name": (reads("name"), 5),
    "text": (lambda tensor, p: MEAN if str(tensor) else None, 5),
    "fields": (lambda tensor, p: MEAN if vars(tensor) else None, 5),
    "function": (lambda tensor, p: TensorFunction(lambda x, base: x[0], on_deltas=False), 5),
    "copy": (lambda tensor, p: Copy(1), 1),
    "measures": (measures, 5),
}


@pytest.mark.parametrize("what", TIMES)
def test_a_method_is_asked_once_for_tensors_that_it_cannot_tell_apart(what):
    function, times = TIMES[what]
    method = Asked(function)
    jobs = jobs_of(method, models())
    results = [torch.zeros(shape) for shape in SHAPES]
    tasks = [TensorTask(jobs.group(r), r, [MemorySink(t.data_ptr(), t)]) for r, t in enumerate(results)]
    loop.run(tasks, cpu())
    assert method.times == times
    wanted = {"copy": 1.0, "function": 0.0}.get(what, 0.5)
    assert all(bool((t == wanted).all()) for t in results)


def test_a_method_that_tells_names_apart_is_heard():
    """The first tensor's answer must not become the second's."""
    method = Asked(lambda tensor, p: WeightedSum((1.0, 0.0) if tensor.name == "t0" else (0.0, 1.0), on_deltas=False))
    jobs = jobs_of(method, models())
    results = [torch.zeros(shape) for shape in SHAPES]
    loop.run([TensorTask(jobs.group(r), r, [MemorySink(t.data_ptr(), t)]) for r, t in enumerate(results)], cpu())
    assert [float(t.mean()) for t in results] == [0.0, 1.0, 1.0, 1.0]


def test_tensors_form_groups_by_dtypes_and_values():
    kinds = [torch.float32, torch.bfloat16, torch.float32, torch.int64]
    (first,) = models(1, dtypes=kinds)
    (second,) = models(1, dtypes=[torch.float32, torch.float32, torch.float64, torch.int64])
    jobs = jobs_of(find("linear"), [first, second])
    groups = [jobs.group(row) for row in range(4)]
    assert [g.method is not None for g in groups] == [True, True, True, False]
    assert [g.out_dtype.name for g in groups] == ["float32", "bfloat16", "float32", "int64"]
    assert [g.fp64 for g in groups] == [False, False, True, False]
    assert len(jobs.groups) == 4 and jobs.merged() == [0, 1, 2]
    assert [jobs.read_bytes(row) for row in range(4)] == [256, 192, 384, 512]
    same = jobs_of(find("linear"), models())
    assert len(same.groups) == 1 and list(same.group_of) == [0] * 4


def test_rows_in_another_order_are_found_by_name():
    base, tensors = family("fp32", 2, 100)
    given = [{"a": tensors[0], "b": base}, {"b": base, "a": tensors[1]}]
    merged = wm.merge_state_dicts(given, "linear", weight=[0.5, 0.5], backend="cpu")
    wanted = wm.merge_tensors(tensors, "linear", weight=[0.5, 0.5], backend="cpu")
    assert torch.equal(merged["a"], wanted) and torch.equal(merged["b"], base)


def group(counts=(4, 6)):
    data = np.ones(16, np.float32)
    column = _core.ViewColumn(b"", array("i"), array("q"), [])
    for row in range(len(counts)):
        column.set(row, _core.View(0, memory=data.ctypes.data))
    made = _core.TensorGroup(_core.Counts(array("q", counts)), [column, column], None, False, 1)
    return made.rows(array("q", range(len(counts))), False), data


def test_columns_of_the_wrong_length_are_refused():
    pool, (rows, data) = _core.Pool(1), group()
    outputs = _core.Outputs.in_memory(0, array("Q", [data.ctypes.data] * 2))
    numbers, keep = array("d", [0.5] * 4), [_core.Mask()] * 4
    calls = {
        "coefficients": lambda: pool.weighted_sum(rows, 512, array("d", [1.0] * 3), False, outputs),
        "entries of 8 bytes": lambda: pool.weighted_sum(rows, 512, array("f", [1.0] * 4), False, outputs),
        "outputs": lambda: pool.elect_and_sum(
            rows, 512, array("d", [1.0] * 14), True, keep, _core.Outputs.in_memory(0, array("Q", [0]))
        ),
        "numbers": lambda: pool.elect_and_sum(rows, 512, numbers, True, keep, outputs),
        "masks": lambda: pool.kept_sums(rows, 512, keep[:3]),
        "counts": lambda: pool.select(rows, 512, array("q", [1]), False, 0, array("q", [0, 0])),
        "capacities": lambda: pool.select(rows, 512, array("q", [1] * 4), False, 0, array("q", [0])),
        "ends of intervals": lambda: pool.histogram(rows, 512, array("Q", [0] * 4)),
    }
    for what, call in calls.items():
        with pytest.raises(ValueError, match=what):
            call()
    with pytest.raises(IndexError):
        _core.TensorGroup(_core.Counts(array("q", [1])), [], None, False, 1).rows(array("q", [1]), False)
    with pytest.raises(ValueError, match="differ in length"):
        _core.ViewColumn(b"\0", array("i"), array("q"), [])


# --- kinds of inputs that were once mixed up ------------------------------------------------------------------------


def test_auxiliary_dtypes_divide_groups():
    """One Fisher of float64 among others of float32: only its tensor is computed in float64."""
    _, tensors = family("fp32", 2, 300)
    fishers = [torch.rand(300, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    models = [{"a": t, "b": t.clone()} for t in tensors]
    given = [{"a": f, "b": f.double()} for f in fishers]
    both = wm.merge_state_dicts(models, "fisher", fisher=given, backend="cpu")
    for name in "ab":
        alone = wm.merge_state_dicts(
            [{name: m[name]} for m in models], "fisher", fisher=[{name: g[name]} for g in given], backend="cpu"
        )
        assert torch.equal(both[name], alone[name])


def test_one_mapping_twice_keeps_both_auxiliary_tensors():
    _, (tensor,) = family("fp32", 1, 300)
    fishers = [{"a": torch.full((300,), v)} for v in (1.0, 3.0)]
    model = {"a": tensor}
    merged = wm.merge_state_dicts([model, model], "fisher", fisher=fishers, backend="cpu")
    other = wm.merge_state_dicts([model, {"a": tensor.clone()}], "fisher", fisher=fishers, backend="cpu")
    assert torch.equal(merged["a"], other["a"])


def test_names_tied_in_the_models_but_not_in_the_base_stay_apart():
    ids = [torch.tensor([k]) for k in (1, 2)]
    models = [{"i": t, "j": t} for t in ids]
    base = {"i": torch.tensor([5]), "j": torch.tensor([7])}
    merged = wm.merge_state_dicts(models, "linear", base=base, weight=[0.5, 0.5], backend="cpu")
    assert (merged["i"].item(), merged["j"].item()) == (5, 7)


def test_big_endian_arrays_keep_their_values():
    arrays = [np.array([1.0, 2.0], ">f4"), np.array([3.0, 6.0], "<f4")]
    merged = wm.merge_tensors(arrays, "linear", weight=[0.5, 0.5], backend="cpu")
    assert merged.tolist() == [2.0, 4.0]


def test_inputs_are_freed_when_the_merge_returns():
    import gc
    import weakref

    models = [{"a": torch.ones(100)} for _ in range(2)]
    seen = [weakref.ref(m["a"]) for m in models]
    gc.disable()
    try:
        wm.merge_state_dicts(models, "linear", weight=[0.5, 0.5], backend="cpu")
        del models
        assert [s() for s in seen] == [None, None]
    finally:
        gc.enable()


def test_a_method_may_merge():
    """A function in torch that calls warpmerge itself, on the backend that is carrying it out."""
    from warpmerge.methods.registry import REGISTRY

    @wm.method("merges_inside", base=wm.methods.Base.METADATA, parameters=[])
    def merges_inside(tensor, p):
        """Half of the mean."""

        def function(x, base):
            return wm.merge_tensors(x, "linear", weight=[0.5] * len(x), backend="cpu") / 2

        return TensorFunction(function, on_deltas=False)

    try:
        merged = wm.merge_tensors([torch.ones(9), torch.ones(9) * 3], "merges_inside", backend="cpu")
    finally:
        del REGISTRY["merges_inside"]
    assert bool((merged == 1).all())


def test_a_view_in_place_of_a_region_stays_with_its_row(tmp_path):
    from helpers import write_model
    from kernel_helpers import buffer
    from warpmerge.models import Checkpoint

    other = torch.arange(6, dtype=torch.int32)
    tensors = {"a": np.ones(4, np.float32), "b": np.ones(2, np.float32)}
    checkpoint = Checkpoint(str(write_model(tmp_path / "m", tensors)))
    column = checkpoint.column(checkpoint.names)
    column.replace({1: buffer(other)})
    taken = column.take([1, 0])
    assert taken.shapes == [(6,), (4,)] and bytes(taken.view(0).read()) == other.numpy().tobytes()
    assert bytes(taken.view(1).read()) == np.ones(4, np.float32).tobytes()
    checkpoint.close()
