"""Cases of merges: a method's parameters, with what they are merged, and the digest of what comes out.

A table holds the cases of one method, the main one first. Each case has a line for each dtype of plain inputs, and a
line for each other kind of inputs, which are of several dtypes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import warpmerge as wm
from digests.inputs import MODELS, state_dicts

DTYPES = ("float32", "float16", "bfloat16", "float64", "mixed")
FEW = ("float32", "bfloat16", "float64")
EXTREME = (("steep", "float32"), ("steep", "bfloat16"), ("faint", "float32"), ("faint", "float64"), ("vast", "float64"))
ANY = (1, 2, 3, 4, 5)
# Per model: of a tuple as many are taken as there are models.
WEIGHTS = (0.5, 0.25, 0.75, 0.3, 0.2, 0.6, 0.1, 0.4, 0.35)

Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """`models`: the numbers of models, None: those of the table. `base`: whether one is given, None: as the table says.
    `slow`: it takes long for each tensor, so there are few."""

    parameters: dict[str, Any]
    models: tuple[int, ...] | None = None
    base: bool | None = None
    seed: int = 0
    slow: bool = False


def case(models: tuple[int, ...] | None = None, base: bool | None = None, seed: int = 0, **parameters: Any) -> Case:
    return Case(parameters, models, base, seed)


def slow(**parameters: Any) -> Case:
    """A case that selects from a whole model, which takes some 5 ms for each tensor and model however small it is."""
    return Case(parameters, models=(2,), slow=True)


class Table(NamedTuple):
    """The cases of a method. `relative`: whether deltas are taken from a base, where one is given. `base`: whether one
    is. `common`: parameters of all cases. `companions`: name and maker of what it needs of each model beside weights.
    """

    cases: dict[str, Case]
    relative: bool = True
    base: bool = True
    models: tuple[int, ...] = ANY
    common: Mapping[str, Any] = {}
    companions: tuple[str, Callable[[str, str, int], list[Tensors]]] | None = None

    @property
    def main(self) -> str:
        return next(iter(self.cases))

    def counts(self, case: Case) -> tuple[int, ...]:
        return case.models or self.models

    def has_base(self, case: Case) -> bool:
        return self.base if case.base is None else case.base


def arguments(table: Table, case: Case, kind: str, dtype: str, models: int) -> dict[str, Any]:
    """The parameters for so many models."""
    given = {**table.common, **case.parameters}
    parameters = {name: list(v[:models]) if isinstance(v, tuple) else v for name, v in given.items()}
    if table.companions:
        name, make = table.companions
        parameters.setdefault(name, make(kind, dtype, models))
    return parameters


def merged(
    method: str, table: Table, case: Case, kind: str, dtype: str, models: int, out_dtype: str | None = None, **more: Any
) -> Tensors:
    """The state dict that the method makes of so many models."""
    base, all_models = state_dicts(kind, dtype, table.has_base(case))
    parameters = {**arguments(table, case, kind, dtype, models), **more}
    return wm.merge_state_dicts(
        all_models[:models], method, base=base, seed=case.seed, backend="cpu", out_dtype=out_dtype, **parameters
    )


def merged_tensor(method: str, table: Table, case: Case, models: int, name: str) -> Tensors:
    """One tensor that the method makes of numpy arrays, the base's a transposed copy."""
    base, all_models = state_dicts("plain", "float32", table.has_base(case))
    parameters = arguments(table, case, "plain", "float32", models)
    if table.companions:
        own = table.companions[0]
        parameters[own] = [tensors[name].numpy() for tensors in parameters[own]]
    result = wm.merge_tensors(
        [tensors[name].numpy() for tensors in all_models[:models]],
        method,
        base=None if base is None else np.asfortranarray(base[name].numpy()),
        name=name,
        seed=case.seed,
        backend="cpu",
        **parameters,
    )
    return {name: torch.from_numpy(result)}


# --- digests --------------------------------------------------------------------------------------------------------


def data_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def add_tensors(digest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Takes names, dtypes, shapes and bytes into a digest, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(data_of(tensor))


def digest_of(*results: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensors in results:
        add_tensors(digest, tensors)
    return digest.hexdigest()


# --- lines of a method ----------------------------------------------------------------------------------------------


def numbers_for(dtype: str, counts: tuple[int, ...]) -> list[int]:
    """All numbers of models in float32, two in a mixture, and one in other dtypes."""
    if dtype == "float32":
        return list(counts)
    return sorted({some(counts), counts[-1]}) if dtype == "mixed" else [some(counts)]


def plain_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """One for each case and dtype, of several numbers of models."""
    for title, case in table.cases.items():
        kind = "few" if case.slow else "plain"
        for dtype in DTYPES:
            numbers = numbers_for(dtype, table.counts(case))
            yield f"{title}/{dtype}", digest_of(*(merged(method, table, case, kind, dtype, n) for n in numbers))


def special_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """Up to three for each case: of numbers that tie or are zeros, of large and small ones, and of those that are not
    finite but the same in all inputs."""
    for title, case in table.cases.items():
        if case.slow:
            yield f"{title}/tied", digest_of(merged(method, table, case, "few tied", "float32", 2))
            continue
        counts, n = table.counts(case), some(table.counts(case))
        tied = (merged(method, table, case, "tied", dtype, n) for dtype in FEW for n in numbers_for(dtype, counts))
        yield f"{title}/tied", digest_of(*tied)
        extreme = (merged(method, table, case, kind, dtype, n) for kind, dtype in EXTREME)
        yield f"{title}/extreme", digest_of(*extreme)
        inputs = n + (table.relative and table.has_base(case))
        if inputs > 1 and not table.companions:
            yield f"{title}/same", digest_of(*(merged(method, table, case, "same", dtype, n) for dtype in FEW[:2]))


def nonfinite_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """One for each case and policy, of inputs with NaN and infinities."""
    for title, case in table.cases.items():
        policies = ("propagate", "base") if table.relative and table.has_base(case) else ("propagate",)
        dtypes, n = ("float32",) if case.slow else DTYPES, some(table.counts(case))
        for policy in policies:
            results = (merged(method, table, case, "nonfinite", dtype, n, nonfinite=policy) for dtype in dtypes)
            yield f"{title}/{policy}", digest_of(*results)


def some(counts: tuple[int, ...]) -> int:
    """The largest number of models that is not above 3, or the least."""
    return max((n for n in counts if n <= 3), default=counts[0])


def main_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """Of the main case: inputs of several tiles, a mixture computed in float64, other output dtypes, many models."""
    case = table.cases[table.main]
    few = some(table.counts(case))
    for dtype in DTYPES:
        yield f"large/{dtype}", digest_of(merged(method, table, case, "large", dtype, few))
    yield "one tensor", digest_of(merged_tensor(method, table, case, few, "model.layers.0.mlp.weight"))
    yield "wide", digest_of(*(merged(method, table, case, "plain", "wide", n) for n in table.counts(case)))
    for dtype in ("float32", "float64"):
        for out in DTYPES[:-1]:
            yield f"{dtype} to {out}", digest_of(merged(method, table, case, "plain", dtype, few, out_dtype=out))
    if len(table.counts(case)) > 1:
        results = (merged(method, table, case, kind, "float32", MODELS) for kind in ("plain", "tied"))
        yield f"{MODELS} models", digest_of(*results)


GROUPS = {"plain": plain_lines, "special": special_lines, "nonfinite": nonfinite_lines, "main": main_lines}
