"""Tensors that a checkpoint stores twice stay equal under methods that draw at random."""

import contextlib
import json

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, family
from safetensors.torch import load_file, save_file
from warpmerge import twins as module
from warpmerge.api import describe
from warpmerge.dtypes import BFLOAT16, FLOAT32
from warpmerge.methods import REGISTRY, TensorInfo
from warpmerge.models.view_columns import ListColumn
from warpmerge.models.views import FileRegion, Memory
from warpmerge.twins import Twins

BACKENDS = ["cpu", "torch"]
DRAWING = ["dare_linear", "dare_ties", "della", "della_linear"]
EMBED, OTHER, HEAD = "model.embed.weight", "model.layer.weight", "lm_head.weight"
SHAPE = (20, 33)
GIVEN = {"weight": 0.7, "density": 0.5}


def models(count=2, dtype="bf16"):
    """A base and models: an embedding, a layer of its shape, and the embedding again as the head."""
    found = []
    for seed in (1, 2):
        base, tuned = family(dtype, count, SHAPE, seed=seed)
        found.append([base, *tuned])
    return [{EMBED: e, OTHER: o, HEAD: e.clone()} for e, o in zip(*found, strict=True)]


def alone(method, stored, name, place, **options):
    """The tensor that is stored under `place`, merged under another name."""
    base, *tuned = stored
    return wm.merge_tensors([m[place] for m in tuned], method, base=base[place], name=name, **GIVEN, **options)


def merged(method, stored, **options):
    base, *tuned = stored
    return wm.merge_state_dicts(tuned, method, base=base, **GIVEN, **options)


def test_the_methods_that_draw_are_these():
    asked = set()

    class Noting(TensorInfo):
        @property
        def stream(self):
            asked.add(method.name)
            return self.name

    for method in REGISTRY.values():
        given = {"density": 0.5, "epsilon": 0.1}
        values = method.defaults()
        values.update((n, (v,) * 3 if method.by_name[n].per_model else v) for n, v in given.items() if n in values)
        with contextlib.suppress(StopIteration):
            next(method.steps(Noting("w", 660, 3, shape=SHAPE), values))
    assert asked == set(DRAWING)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", DRAWING)
def test_twins_draw_by_the_name_of_the_first(method, backend):
    stored = models()
    got = merged(method, stored, backend=backend)
    assert_same_bits(got[HEAD], got[EMBED])
    assert_same_bits(got[EMBED], alone(method, stored, EMBED, EMBED, backend=backend))
    assert_same_bits(got[OTHER], alone(method, stored, OTHER, OTHER, backend=backend))
    assert (got[HEAD] != alone(method, stored, HEAD, HEAD, backend=backend)).any()


@pytest.mark.parametrize("model", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 7, 330, 659])
def test_one_byte_in_one_input_makes_them_two(model, place):
    """Wherever it is, in the bytes that are compared first or not, in the base or a model."""
    stored = models()
    stored[model][HEAD].view(-1).view(torch.int16)[place] ^= 1
    got = merged("dare_ties", stored)
    for name in (EMBED, HEAD):
        assert_same_bits(got[name], alone("dare_ties", stored, name, name))


def test_several_and_the_order_of_the_output():
    stored = [{"c": m[EMBED], "b": m[OTHER], "a": m[EMBED].clone(), "d": m[OTHER].clone(), "e": m[EMBED].clone()}
              for m in models()]  # fmt: skip
    got = merged("dare_linear", stored)
    for name, first in {"c": "c", "a": "c", "e": "c", "b": "b", "d": "b"}.items():
        assert_same_bits(got[name], alone("dare_linear", stored, first, name))


def test_only_tensors_of_a_dtype_and_shape():
    stored = [{"a": m[EMBED], "b": m[EMBED].reshape(33, 20).clone(), "c": m[EMBED].view(torch.float16).clone()}
              for m in models()]  # fmt: skip
    got = merged("dare_linear", stored, nonfinite="propagate")
    for name in stored[0]:
        assert_same_bits(got[name], alone("dare_linear", stored, name, name, nonfinite="propagate"))


def test_shared_memory_is_one_tensor():
    stored = [{**m, HEAD: m[EMBED]} for m in models()]
    got = merged("dare_linear", stored)
    assert got[HEAD] is got[EMBED]
    assert_same_bits(got[HEAD], alone("dare_linear", stored, EMBED, EMBED))


def test_a_pool_reads_twins_once(monkeypatch):
    stored = models()
    base, *tuned = stored
    with wm.Pool(base, tuned) as pool:
        for seed in (0, 1):
            got = pool.merge("dare_ties", seed=seed, **GIVEN)
            assert_same_bits(got[HEAD], got[EMBED])
            assert_same_bits(got[HEAD], alone("dare_ties", stored, EMBED, EMBED, seed=seed))
            monkeypatch.delattr(module.hashlib, "blake2b", raising=False)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    for number, model in enumerate(models()):
        (tmp_path / f"m{number}").mkdir()
        save_file(model, tmp_path / f"m{number}/model.safetensors")
        (tmp_path / f"m{number}/config.json").write_text("{}")
    return tmp_path


def recipe(folder, method="dare_ties", density=0.5):
    document = {
        "merge_method": method,
        "base_model": str(folder / "m0"),
        "models": [{"model": str(folder / f"m{k}"), "parameters": {"weight": 0.7, "density": density}} for k in (1, 2)],
    }
    (folder / "recipe.yml").write_text(json.dumps(document))
    return folder / "recipe.yml"


@pytest.mark.parametrize("method", DRAWING)
def test_files(files, method):
    wm.merge(recipe(files, method), files / "out")
    got = load_file(files / "out/model.safetensors")
    assert_same_bits(got[HEAD], got[EMBED])
    # The order of the output is that of the base's file.
    first = min((EMBED, HEAD), key=list(got).index)
    assert_same_bits(got[HEAD], alone(method, models(), first, EMBED))


def test_values_that_differ_by_name_are_the_users_wish(files):
    wm.merge(recipe(files, density=[{"filter": "lm_head", "value": 0.25}, {"value": 0.5}]), files / "out")
    got = load_file(files / "out/model.safetensors")
    stored = models()
    assert_same_bits(got[EMBED], alone("dare_ties", stored, EMBED, EMBED))
    base, *tuned = stored
    wanted = wm.merge_tensors(
        [m[HEAD] for m in tuned], "dare_ties", base=base[HEAD], name=HEAD, weight=0.7, density=0.25
    )
    assert_same_bits(got[HEAD], wanted)


def test_a_plan_and_a_method_without_draws_read_nothing_for_it(files, monkeypatch):
    def read(*_):
        raise AssertionError("weights were read")

    with monkeypatch.context() as patch:
        patch.setattr(FileRegion, "read", read)
        describe(recipe(files))
        wm.merge(recipe(files, "ties"), files / "ties")
    wm.merge(recipe(files), files / "out")


# --- columns --------------------------------------------------------------------------------------------------------


def column(tensors, device=None):
    dtype = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}[tensors[0].dtype]
    return ListColumn([Memory(dtype, tuple(t.shape), t.data_ptr(), t, device) for t in tensors])


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("shape", [(), (3,), (40, 50)])
def test_rows_that_were_merged_before_count(device, shape):
    """A merge that is resumed asks for later rows only. On a device all rows are looked at together."""
    tensors = [torch.full(shape, float(value)) for value in (1, 2, 1, 3, 2, 1)]
    groups = [0, 0, 0, 0, 0, 1]
    firsts = [0, 1, 0, 3, 1, 5]
    columns = [column(tensors, device), column([t.clone() for t in tensors], device)]
    for start in range(len(tensors)):
        found = Twins([shape] * len(tensors), groups)
        assert [found.first(row, columns) for row in range(start, len(tensors))] == firsts[start:]


def test_tensors_without_elements():
    columns = [column([torch.empty(0, 3)] * 2)]
    assert Twins([(0, 3)] * 2, [0, 0]).first(1, columns) == 0


def test_all_bytes_are_read_once_at_most():
    """However many tensors have the same few bytes: no pair is compared."""
    generator = np.random.default_rng(0)
    tensors = [torch.zeros(5000) for _ in range(50)]
    for number, tensor in enumerate(tensors):
        tensor[:20] = torch.from_numpy(generator.normal(size=20))
        tensor[20] = number // 2 * 2
        tensor[:20] = tensors[number // 2 * 2][:20]
    read = []

    class Counting(ListColumn):
        def view(self, row):
            read.append(row)
            return super().view(row)

    columns = [Counting([Memory(FLOAT32, (5000,), t.data_ptr(), t) for t in tensors])]
    found = Twins([(5000,)] * 50, [0] * 50)
    assert [found.first(row, columns) for row in range(50)] == [row // 2 * 2 for row in range(50)]
    assert len(read) == 1 + 2 * 50  # to choose what is a sample, for samples, for digests
