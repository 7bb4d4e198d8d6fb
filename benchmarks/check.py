"""Validates a merged model directory before it is timed: a fast wrong answer is no result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cases import DENSITY, FURTHER, SLERP_T, Case, shards
from .checkpoints import from_bf16

_NUMPY = {"BF16": np.uint16, "F32": np.float32}


@dataclass(frozen=True)
class Entry:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # absolute, in bytes
    end: int


class Checkpoint:
    """The tensors of a model directory, read with nothing but the format's definition."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file in shards(folder):
            with open(file, "rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            ends = [8 + length]
            for name, item in header.items():
                start, end = (8 + length + offset for offset in item["data_offsets"])
                assert name not in self.entries, f"{name} is in two files of {folder}"
                self.entries[name] = Entry(file, item["dtype"], tuple(item["shape"]), start, end)
                ends.append(end)
            assert max(ends) == file.stat().st_size, f"{file} is longer or shorter than its header says"

    def stored(self, name: str) -> np.ndarray:
        """As stored: bf16 as uint16."""
        entry = self.entries[name]
        with open(entry.file, "rb") as stream:
            stream.seek(entry.start)
            data = stream.read(entry.end - entry.start)
        return np.frombuffer(data, _NUMPY[entry.dtype]).reshape(entry.shape)

    def values(self, name: str) -> np.ndarray:
        """Widened to float64."""
        stored = self.stored(name)
        return (from_bf16(stored) if self.entries[name].dtype == "BF16" else stored).astype(np.float64)


def check_output(folder: Path, case: Case, *, rounded_once: bool = True) -> Checkpoint:
    """Every tensor is there with its shape and dtype, the index agrees, and a sample has the right values.

    `rounded_once` is false for a tool that computes in the inputs' bf16: its values are only checked roughly.
    """
    output, template = Checkpoint(folder), Checkpoint(case.template)
    expected = {name: (entry.shape, entry.dtype) for name, entry in template.entries.items()}
    found = {name: (entry.shape, entry.dtype) for name, entry in output.entries.items()}
    assert found == expected, f"{folder}: {sorted(found.items() ^ expected.items())[:4]}"
    index = folder / "model.safetensors.index.json"
    if len(shards(folder)) > 1 or index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        assert weight_map == {name: entry.file.name for name, entry in output.entries.items()}, index
    for name in _sample(output):
        _check_values(output, case, name, rounded_once)
    return output


def _sample(output: Checkpoint) -> list[str]:
    """Small tensors of each kind from the first and the last file."""
    files = {entry.file for entry in output.entries.values()}
    names: list[str] = []
    for file in (min(files), max(files)):
        inside = sorted((e.end - e.start, name) for name, e in output.entries.items() if e.file == file)
        for suffix in ("layernorm.weight", "k_proj.weight", "o_proj.weight"):
            names += [name for _, name in inside if name.endswith(suffix)][:1]
    return names


def _check_values(output: Checkpoint, case: Case, name: str, rounded_once: bool) -> None:
    values = output.values(name)
    assert np.isfinite(values).all(), f"{case.method.name}: {name} has non-finite values"
    if case.method.name in FURTHER:  # their values are the tests' business
        return
    inputs = [Checkpoint(path).values(name) for path in case.inputs]
    operands = np.max(np.abs(inputs), axis=0)
    expected = oracle(case, name) if rounded_once else None
    if expected is None:  # random or rounded often: near the first input as far as the others are
        reach = sum(np.abs(x - inputs[0]) for x in inputs) / min(0.5, *case.weights) * 1.5
        excess = np.abs(values - inputs[0]) - reach - 2.0**-7 * operands
    else:
        # Half a unit in the last place, and float32 arithmetic on the way (2^-21 of the largest operand).
        bits = 8 if output.entries[name].dtype == "BF16" else 24
        half_ulp = np.ldexp(0.5, np.frexp(expected)[1] - bits)
        excess = np.abs(values - expected) - half_ulp - 2.0**-21 * operands
    assert np.nanmax(excess) <= 0, f"{case.method.name}: {name} is off by {np.nanmax(excess):.3g} too much"


def oracle(case: Case, name: str) -> np.ndarray | None:
    """The merged tensor in float64, none where it is random. NaN where either of two values is right."""
    models = [Checkpoint(path).values(name) for path in case.models]
    base = Checkpoint(case.base).values(name) if case.base else np.zeros_like(models[0])
    weights = np.array(case.weights)
    if case.method.name == "passthrough":
        return models[0]
    if case.method.name == "linear":
        return np.tensordot(weights / weights.sum(), models, 1)
    if case.method.name == "task_arithmetic":
        return base + np.tensordot(weights, [x - base for x in models], 1)
    if case.method.name == "slerp":
        return _slerp(base, models[0], SLERP_T)
    if case.method.name == "ties":
        # Magnitudes are compared in float32, as everything that decides is.
        deltas = [(x.astype(np.float32) - base.astype(np.float32)).astype(np.float64) for x in models]
        return base + _ties(deltas, weights)
    return None


def _slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    cosine = float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def _ties(deltas: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    kept = []
    for delta in deltas:
        order = np.argsort(-np.abs(delta), axis=None, kind="stable")  # equals by lowest index
        mask = np.zeros(delta.size, bool)
        mask[order[: int(DENSITY * delta.size)]] = True
        kept.append(np.where(mask.reshape(delta.shape), delta, 0))
    votes = weights.reshape(-1, *[1] * deltas[0].ndim) * np.array(kept)
    total = votes.sum(0)
    agree = np.sign(votes) == np.where(total >= 0, 1, -1)
    divisor = np.tensordot(weights, agree, 1)
    mean = np.where(agree, votes, 0).sum(0) / np.where(divisor == 0, 1, divisor)
    # A vote that is decided by less than float32 rounding may fall either way.
    open_vote = (np.abs(total) <= 2.0**-21 * np.abs(votes).sum(0)) & (np.abs(votes).sum(0) > 0)
    return np.where(open_vote, np.nan, mean)
