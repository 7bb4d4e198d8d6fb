"""A base and three models to hold in pools, as state dicts and as directories."""

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import bf16, write_model
from kernel_helpers import assert_same_bits

WEIGHTS = [0.5, 0.3, 0.2]
MERGES = [
    ("linear", {"weight": WEIGHTS}),
    ("task_arithmetic", {"weight": 0.4, "lambda_": 0.9}),
    ("ties", {"weight": WEIGHTS, "density": 0.4}),
    ("dare_linear", {"weight": WEIGHTS, "density": 0.5, "seed": 3}),
    ("dare_ties", {"weight": 0.5, "density": 0.3, "rescale": "l1", "seed": 4}),
]
ROWS = [[1, 0, 0], [0.2, 0.3, 0.4], [-0.5, 1.5, 0.25], [0, 0, 0]]


def state(seed):
    rng = np.random.default_rng(seed)

    def values(*shape):
        return torch.from_numpy(rng.standard_normal(shape) * 0.02)

    made = {f"layers.{i}": values(30, 50 * i + 1).bfloat16() for i in range(3)}
    made["embed"] = values(40, 30).float()
    made["norm"] = values(130).half()
    made["ids"] = torch.arange(5)
    made["flag"] = torch.tensor(True)
    made["empty"] = torch.empty(0, 3)
    made["scalar"] = values(1)[0].float()
    made["head"] = made["embed"]
    return made


def save(path, tensors):
    """Each name with a copy: a file has no shared tensors."""
    found = {n: bf16(t.float().numpy()) if t.dtype == torch.bfloat16 else t.numpy() for n, t in tensors.items()}
    return str(write_model(path, found, shards=2))


@pytest.fixture(scope="module")
def base():
    return state(0)


@pytest.fixture(scope="module")
def models():
    return [state(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def directories(base, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "base", base), [save(folder / f"m{i}", m) for i, m in enumerate(models)]


@pytest.fixture(params=["states", "directories", "both"])
def pool(request, base, models, directories):
    there, others = directories
    origin = base if request.param == "states" else there
    sources = {"states": models, "directories": others, "both": [models[0], *others[1:]]}[request.param]
    with wm.Pool(origin, sources, backend="cpu") as made:
        yield made


def assert_equal(got, wanted, what=""):
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if tensor.dtype.is_floating_point:
            assert_same_bits(got[name], tensor, (what, name))
        else:
            assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), (what, name)


def untied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


class Module(torch.nn.Module):
    """A module with the pool's tensors: parameters, buffers, and a tied weight."""

    def __init__(self, like, dtype=None, tied=True):
        super().__init__()
        self.names = {name: name.replace(".", "_") for name in like}
        for name, tensor in like.items():
            if tensor.is_floating_point():
                self.register_parameter(self.names[name], torch.nn.Parameter(torch.full_like(tensor, 7, dtype=dtype)))
            else:
                self.register_buffer(self.names[name], torch.zeros_like(tensor))
        if tied:
            self.head = self.embed

    def state_dict(self, **options):
        found = super().state_dict(**options)
        return {name: found[flat] for name, flat in self.names.items()}


FIXTURES = (base, models, directories, pool)  # a test file binds them to these names
