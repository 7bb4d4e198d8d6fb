"""Which tensors of which checkpoints are merged with each other, under which names.

A recipe of whole models merges tensors of one name. Slices stack ranges of layers: a layer of the output is a number in
its own stack, and has another number in each of the models that it comes from. Both become the same thing: models
(models.view_columns.Model) that have the output's names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import CheckpointError, UsageError
from ..models import Checkpoint
from ..models.picked import Picked
from ..models.view_columns import Model
from ..recipe import Layers, ModelRef, Recipe, RecipeModel, Resolver, Slice
from ..recipe.resolve import layer_of
from .layer_config import Origin, with_layers

Opened = Callable[[ModelRef], Checkpoint]
# Parts of the names of tensors that follow the layers; other tensors outside of layers precede them.
AFTER = {"norm", "norm_f", "final_norm", "ln_f", "final_layernorm", "final_layer_norm", "output_norm"}
AFTER |= {"lm_head", "embed_out", "output", "head", "score", "classifier", "pooler", "cls", "qa_outputs"}


@dataclass
class Arrangement:
    """What `plan.jobs.make_jobs` is asked for, and the config of the output.

    Attributes:
        source: has the output's names, shapes and dtypes.
        inputs: the merged models; with `partial`, one that lacks a tensor is no input for it.
        base: the reference, if deltas are taken from one.
        slice_of: the slice of the tensor of a name.
        auxiliary: by label the auxiliary tensors.
        values: the parameters for a tensor's name.
        labels: for a tensor's name those of its inputs and auxiliary tensors, the base's last.
        merged: the checkpoints of all inputs.
        bases: those of all references.
        beside: by label those of the auxiliary tensors.
        config: the metadata source's, made to fit.
        kinds: the dtypes of the output (indices into DTYPES), if they are not those of the views of `source`.
    """

    source: Model
    inputs: Sequence[Model]
    base: Model | None
    slice_of: Callable[[str], Slice]
    auxiliary: Mapping[str, Model]
    values: Callable[[str], Mapping[str, Any]]
    labels: Callable[[str], Sequence[str]]
    partial: bool
    merged: list[Checkpoint]
    bases: list[Checkpoint]
    beside: Mapping[str, Checkpoint]
    config: dict[str, Any]
    kinds: bytes | None = None


def arrange(recipe: Recipe, opened: Opened) -> Arrangement:
    """Raises CheckpointError or UsageError if slices ask for layers that a model does not have."""
    if recipe.slices[0].is_whole:
        return _whole(recipe.slices[0], opened(recipe.metadata_source), opened)
    return _layered(recipe, opened)


def _auxiliary(part: Slice, opened: Opened) -> dict[str, Checkpoint]:
    return {
        kind.label(str(model.ref)): opened(ref)
        for kind in part.method.auxiliary
        for model, ref in zip(part.inputs, part.auxiliary(kind.name), strict=True)
    }


def _labels(part: Slice, beside: Mapping[str, Checkpoint]) -> list[str]:
    return [*(str(m.ref) for m in part.inputs), *beside, *([str(part.reference.ref)] if part.reference else [])]


def _whole(part: Slice, source: Checkpoint, opened: Opened) -> Arrangement:
    inputs = [opened(m.ref) for m in part.inputs]
    base = opened(part.reference.ref) if part.reference else None
    beside = _auxiliary(part, opened)
    labels = _labels(part, beside)

    @functools.cache  # made after the models were found to fit: their differences are the error to show
    def resolver() -> tuple[Resolver, Layers]:
        return Resolver(part), Layers(source.names)

    def values(name: str) -> Mapping[str, Any]:
        found, layers = resolver()
        return found.values(name, layers.t(name))

    bases = [base] if base else []
    return Arrangement(
        source,
        inputs,
        base,
        lambda name: part,
        beside,
        values,
        lambda name: labels,
        False,
        inputs,
        bases,
        beside,
        source.config(),
    )


class _Row(NamedTuple):
    """A tensor of the output."""

    name: str
    slice: int
    t: float
    layers: tuple[int, ...] | None  # of each model of the slice, the layer that it is taken from

    def name_in(self, model: int) -> str:
        """Its name in this model of the slice."""
        layer = layer_of(self.name)
        return self.name if self.layers is None or layer is None else f"{layer.stack}{self.layers[model]}{layer.rest}"


def _layered(recipe: Recipe, opened: Opened) -> Arrangement:
    slices = recipe.slices
    found = list(_rows(slices, opened))
    rows = {row.name: row for row in found}
    resolvers = [Resolver(part) for part in slices]
    beside = [_auxiliary(part, opened) for part in slices]
    labels = [_labels(part, found) for part, found in zip(slices, beside, strict=True)]

    def picked(title: str, choose: Callable[[Slice], RecipeModel | None]) -> Picked:
        """The tensors of one model of each slice, which may have none."""
        places = {}
        for row in found:
            part = slices[row.slice]
            model = choose(part)
            if model is not None:
                number = next((n for n, m in enumerate(part.models) if m.ref == model.ref), 0)
                places[row.name] = opened(model.ref), row.name_in(number)
        return Picked(title, places)

    def values(name: str) -> Mapping[str, Any]:
        row, part = rows[name], slices[rows[name].slice]
        numbers = [next(n for n, m in enumerate(part.models) if m.ref == i.ref) for i in part.inputs]
        return resolvers[row.slice].values(name, row.t, [row.name_in(n) for n in numbers])

    most = max(len(part.inputs) for part in slices)
    inputs = [picked(f"source {k + 1}", functools.partial(_input, k)) for k in range(most)]
    if any(beside):
        raise UsageError(
            f"method '{recipe.method.name}' needs auxiliary tensors, which slices do not have; use models."
        )
    base = picked("the base", lambda part: part.reference) if any(part.reference for part in slices) else None
    origins: dict[int, Origin] = {}  # of each layer of the output
    for row in found:
        layer = layer_of(row.name)
        if row.layers is not None and layer is not None:
            config = opened(slices[row.slice].models[0].ref).config()
            origins.setdefault(layer.number, Origin(config, row.layers[0]))
    donor = opened(recipe.metadata_source)
    return Arrangement(
        picked("the first source", lambda part: part.metadata_source),
        inputs,
        base,
        lambda name: slices[rows[name].slice],
        {},
        values,
        lambda name: labels[rows[name].slice],
        True,
        _once(opened(m.ref) for part in slices for m in part.inputs),
        _once(opened(part.reference.ref) for part in slices if part.reference),
        {},
        with_layers(donor.config(), _count(donor), list(origins.values())),
    )


def _input(number: int, part: Slice) -> RecipeModel | None:
    return part.inputs[number] if number < len(part.inputs) else None


def _once(checkpoints: Iterator[Checkpoint]) -> list[Checkpoint]:
    return list({id(c): c for c in checkpoints}.values())


def _count(checkpoint: Checkpoint) -> int:
    return len({layer.number for layer in map(layer_of, checkpoint.names) if layer})


def _rows(slices: Sequence[Slice], opened: Opened) -> Iterator[_Row]:
    """The tensors of the output: those before the layers, the layers, those after them. As in mergekit, what is outside
    of layers is at t = 0 and has the models of the first or of the last slice."""
    yield from _outside(slices[0], 0, opened, after=False)
    number = 0
    for place, part in enumerate(slices):
        models = [_Stack(opened(model.ref), part, place) for model in part.models]
        ranges = [model.layers for model in part.models]
        length = _length(part)
        for at in range(length):
            layers = tuple(found[0] + at for found in ranges if found is not None)
            names = [stack.rests(layer) for stack, layer in zip(models, layers, strict=True)]
            for other, rests in zip(models[1:], names[1:], strict=True):
                models[0].check_same(other, layers[0], names[0], rests)
            t = at / (length - 1) if length > 1 else 1.0
            for rest in names[0]:
                yield _Row(f"{models[0].name}{number}{rest}", place, t, layers)
            number += 1
    yield from _outside(slices[-1], len(slices) - 1, opened, after=True)


def _length(part: Slice) -> int:
    first = part.models[0].layers
    assert first is not None
    return first[1] - first[0]


def _outside(part: Slice, place: int, opened: Opened, *, after: bool) -> Iterator[_Row]:
    source = opened(part.metadata_source.ref)
    for name in source.names:
        if layer_of(name) is None and (not AFTER.isdisjoint(name.split("."))) == after:
            for model in part.models:
                other = opened(model.ref)
                if name not in other.rows:
                    raise CheckpointError(f"{other.title} lacks the tensor '{name}' of {source.title}.")
            yield _Row(name, place, 0.0, None)


class _Stack:
    """The layers of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, part: Slice, place: int) -> None:
        self.title = checkpoint.title
        self._layers: dict[int, dict[str, None]] = {}
        stacks: dict[str, None] = {}
        for layer in filter(None, map(layer_of, checkpoint.names)):
            stacks[layer.stack] = None
            self._layers.setdefault(layer.number, {})[layer.rest] = None
        if len(stacks) != 1:
            listed = " and ".join(f"'{stack}*'" for stack in stacks) or "none"
            raise UsageError(
                f"slices[{place}]: slices need a model with one stack of layers, but {checkpoint.title} has {listed}; "
                "list whole models under 'models'."
            )
        self.name = next(iter(stacks))
        for model in part.models:
            if model.layers is not None and str(model.ref) == str(checkpoint) and model.layers[1] > len(self._layers):
                raise UsageError(
                    f"slices[{place}]: the layer_range {list(model.layers)} goes beyond the {len(self._layers)} layers "
                    f"of {checkpoint.title}."
                )

    def rests(self, layer: int) -> dict[str, None]:
        """The ends of the names of a layer's tensors, in their order."""
        return self._layers.get(layer, {})

    def check_same(self, other: _Stack, layer: int, own: Mapping[str, None], found: Mapping[str, None]) -> None:
        """Raises CheckpointError if a layer of another model does not have the same tensors."""
        for one, two, rests in ((self, other, own.keys() - found.keys()), (other, self, found.keys() - own.keys())):
            if rests:
                raise CheckpointError(
                    f"{two.title} lacks a tensor '{self.name}*{min(rests)}' that {one.title} has in layer {layer} of "
                    "the slice; layers that are merged must have the same tensors."
                )
        if self.name != other.name:
            raise CheckpointError(
                f"the layers of {self.title} are called '{self.name}*', those of {other.title} '{other.name}*'; are "
                "both the same architecture?"
            )
