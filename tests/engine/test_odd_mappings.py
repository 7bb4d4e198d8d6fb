"""State dicts that are none, that change while they are read, or that make their tensors when asked."""

from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
import warpmerge as wm
from odd_arrays import V, tensor


class Changing(UserDict):
    """Loses or gains names while somebody reads it."""

    def __init__(self, change):
        super().__init__({"a": tensor(), "b": tensor()})
        self.change = change

    def __getitem__(self, name):
        found = super().__getitem__(name)
        self.change(self.data)
        return found


class Growing(dict):
    def __iter__(self):
        for name in super().__iter__():
            self[name + "x"] = tensor()
            yield name


class Fresh(UserDict):
    """Another tensor at each access."""

    def __init__(self):
        super().__init__({"a": None, "b": None})
        self.asked = []

    def __getitem__(self, name):
        self.asked.append(name)
        return torch.full((4,), float(len(self.asked)))


ODD_MAPPINGS = {
    "names that are numbers": (lambda: {0: tensor()}, "has the name 0, which is a int; names are strings"),
    "names that are tuples": (lambda: {("a",): tensor()}, r"has the name \('a',\), which is a tuple"),
    "names that are no text": (lambda: {"\ud800": tensor()}, "has a name that is no text: surrogates not allowed"),
    "losing": (lambda: Changing(lambda data: data.pop("b", None)), "changed while it was read"),
    "growing": (lambda: Growing(a=tensor()), "changed while it was read"),
}
GOOD = {"a": tensor(), "b": tensor()}
ENTRIES = {
    "model 1": lambda given: wm.merge_state_dicts([GOOD, given], "linear", weight=1),
    "the base": lambda given: wm.merge_state_dicts([GOOD], "task_arithmetic", base=given, weight=1),
    "the target": lambda given: wm.Pool(None, [GOOD], device="cpu").merge("linear", weight=1, into=given),
    "model 0": lambda given: wm.Pool(None, [given, GOOD], device="cpu"),
    "checkpoint 1": lambda given: wm.RunningMean().update(given),
}


@pytest.mark.parametrize("title", ENTRIES)
@pytest.mark.parametrize("kind", ODD_MAPPINGS)
def test_odd_mappings(kind, title):
    make, message = ODD_MAPPINGS[kind]
    with pytest.raises(wm.UsageError, match=f"^{title} {message}"):
        ENTRIES[title](make())


@pytest.mark.parametrize("given", [[tensor()], tensor(), 1.5, 7, b"model", torch.nn.Linear(2, 2)])
def test_what_is_no_mapping(given):
    kind, module = type(given).__name__, isinstance(given, torch.nn.Module)
    hint = r"its state_dict\(\)" if module else "a mapping from names to tensors"
    for title in ["model 1", "the base"] + ["the target"] * (not module):
        with pytest.raises(wm.UsageError, match=f"^{title} is a {kind}; give {hint}"):
            ENTRIES[title](given)
    with pytest.raises(wm.UsageError, match=f"^model 0 is a {kind}; give a directory, a hub id or a state dict"):
        ENTRIES["model 0"](given)
    with pytest.raises(wm.UsageError, match=f"a checkpoint is a path or a mapping .* not a {kind}"):
        ENTRIES["checkpoint 1"](given)


def test_an_error_of_a_mapping_is_its_own():
    def fail(data):
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        wm.merge_state_dicts([Changing(fail)], "linear", weight=1)


def test_each_tensor_is_asked_for_once():
    mapping = Fresh()
    merged = wm.merge_state_dicts([mapping, mapping], "linear", weight=1)
    assert mapping.asked == ["a", "b"] and {n: t[0].item() for n, t in merged.items()} == {"a": 1, "b": 2}
    mapping = Fresh()
    pool = wm.Pool(mapping, [mapping, mapping], device="cpu")
    merged = pool.merge("linear", weight=1)
    assert mapping.asked == ["a", "b"] and {n: t[0].item() for n, t in merged.items()} == {"a": 1, "b": 2}
    mapping = Fresh()
    mean = wm.RunningMean()
    mean.update(mapping)
    assert mapping.asked == ["a", "b"] and mean.mean()["b"][0].item() == 2


def test_mappings_of_other_kinds():
    for kind in (OrderedDict, UserDict):
        merged = wm.merge_state_dicts([kind(w=tensor())] * 2, "linear", weight=1)
        assert merged["w"].tolist() == V


@pytest.mark.parametrize("tensors", [1.0, None, 3, torch.tensor(1.0), np.array(1.0)])
def test_what_is_no_list_of_tensors(tensors):
    with pytest.raises(wm.UsageError, match="tensors are a list, not a"):
        wm.merge_tensors(tensors, "linear", weight=1)
    with pytest.raises(wm.UsageError, match="state_dicts are a list, not a"):
        wm.merge_state_dicts(tensors, "linear", weight=1)
