"""Models x method -> jobs: whether the models fit each other, and what becomes of each tensor.

Files and tensors in memory take this one way. Everything is decided on columns; only what is found wrong is looked at
tensor by tensor, for the message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..dtypes import DTYPES, FLOAT64, DType
from ..errors import CheckpointError, UsageError, close_matches
from ..methods import Method
from ..methods.auxiliary import check_auxiliary
from ..models.view_columns import NO_KIND, Model, ViewColumn
from ..tasks import Group, Jobs, Shape, Tensors
from ..twins import Twins

COPIED: Mapping[str, Any] = {"nonfinite": "propagate"}  # the values of tensors that no method merges
VOCABULARIES = " Their vocabularies differ; `tokenizer_source: union` in the recipe matches rows by their tokens."
_FLOATS = frozenset(number for number, dtype in enumerate(DTYPES) if dtype.is_float)


def make_jobs(
    method: Method,
    source: Model,
    inputs: Sequence[Model],
    base: Model | None,
    *,
    values: Callable[[str], Mapping[str, Any]],
    out_kinds: Callable[[bytes], bytes],
    labels: Callable[[str], Sequence[str]],
    auxiliary: Mapping[str, Model] | None = None,
    take_from_source: bool = False,
    partial: bool = False,
    fp64: bool = False,
    seed: int = 0,
    digests: dict[int, bytes] | None = None,
) -> Jobs:
    """One job for each tensor of `source`.

    Args:
        method: what merges floating-point tensors; other tensors are copied.
        source: gives the names, the shapes and the dtypes.
        inputs: the K merged models. With `partial`, those that lack a tensor are no inputs for it.
        base: the reference, if deltas are taken from one.
        values: the parameters for the tensor of a name. Tensors with the same mapping can form a group.
        out_kinds: from the source's dtypes of all tensors (indices into DTYPES) to the results'. Tensors that are
            copied keep theirs.
        labels: for a tensor's name those of its inputs and auxiliary tensors, the base's last.
        auxiliary: by label the checkpoints of auxiliary tensors, in the order of the method's kinds and the models.
        take_from_source: copied tensors are the source's. Otherwise all inputs must agree on them.
        partial: whether inputs and base may lack tensors.
        fp64: compute in float64 even if no tensor is of float64.
        seed: of the draws.
        digests: what `Twins` keeps from merge to merge of the same models.

    Returns:
        The jobs, in the order of the source's names.

    Raises:
        CheckpointError: the models do not fit each other.
        UsageError: with `scope: model` the tensors' values differ.
    """
    auxiliary = auxiliary or {}
    names = source.names
    for other in () if partial else (*inputs, *([base] if base else [])):
        check_names(source, other)
    own = source.column(names)
    columns = [own if model is source else model.column(names) for model in inputs]
    reference = None if base is None else own if base is source else base.column(names)
    for model, column in zip(inputs, columns, strict=True):
        check_views(names, source, own, model, column)
    if base is not None and reference is not None:
        check_views(names, source, own, base, reference)
    beside = [model.column(names) for model in auxiliary.values()]
    shapes = _auxiliary_shapes(method, names, columns, auxiliary, beside)
    copied = [own] if take_from_source and not method.copies else columns
    _refuse_codes(method, names, [source, *inputs], own)

    tensors = Tensors(names, own.shapes, seed)
    jobs = Jobs(tensors)
    places: dict[tuple[Any, ...], int] = {}
    given = [own, *columns, *beside, *([reference] if reference else [])]
    results = out_kinds(own.kinds)
    for row, kinds in enumerate(zip(results, *(column.kinds for column in given), strict=True)):
        merged = kinds[1] in _FLOATS
        found = values(names[row]) if merged else COPIED
        beside_it = shapes[row] if shapes else ()
        key = (kinds, id(found), beside_it)
        place = places.get(key)
        if place is None:
            place = places[key] = len(jobs.groups)
            label = labels(names[row])
            if merged:
                read = [*_present(columns, row), *(beside if beside_it else [])]
                deltas_from = next(iter(_present([reference], row)), None) if reference else None
                wide = fp64 or any(c.dtype(row) == FLOAT64 for c in [*read, *([deltas_from] if deltas_from else [])])
                dtype = DTYPES[kinds[0]]
                made = Group(tensors, method, found, read, deltas_from, dtype, label, fp64=wide, auxiliary=beside_it)
            else:
                first, *others = _present(copied, row)
                made = Group(tensors, None, found, [first], None, DTYPES[kinds[1]], label, agreeing=others)
            jobs.groups.append(made)
        jobs.group_of.append(place)
    tensors.twins = Twins(tensors.shapes, jobs.group_of, digests)
    _check_scope(jobs)
    return jobs


def _present(columns: Sequence[ViewColumn], row: int) -> list[ViewColumn]:
    """Those that have a view in this row."""
    return [column for column in columns if column.kinds[row] != NO_KIND]


def is_whole(values: Mapping[str, Any]) -> bool:
    """Whether a method with these values decides once for the whole model."""
    return values.get("scope") == "model"


def _check_scope(jobs: Jobs) -> None:
    """Raises UsageError if a method decides once for all tensors, but their values differ."""
    merged = [(place, group) for place, group in enumerate(jobs.groups) if group.method is not None]
    if not any(is_whole(group.values) for _, group in merged):
        return
    names = [f"'{jobs.names[jobs.group_of.index(place)]}'" for place, _ in merged]
    first = merged[0][1].values
    for name, (_, group) in zip(names, merged, strict=True):
        for parameter, value in group.values.items():
            if value != first[parameter]:
                raise UsageError(
                    f"scope: model decides once for all tensors, but '{parameter}' is {first[parameter]} for "
                    f"{names[0]} and {value} for {name}; give it one value, without gradients and filters."
                )


def check_names(source: Model, other: Model) -> None:
    """Raises CheckpointError if the models do not have the same tensors."""
    if source.names == other.names:
        return
    known, found = set(source.names), set(other.names)
    missing = [name for name in source.names if name not in found]
    if missing:
        near = close_matches(missing[0], found - known)
        raise CheckpointError(
            f"{other.title} lacks the tensor '{missing[0]}' of {source.title}{_more(missing)}{near or '.'} "
            "Are both the same architecture?"
        )
    extra = [name for name in other.names if name not in known]
    if extra:
        raise CheckpointError(
            f"{other.title} has the tensor '{extra[0]}', which {source.title} lacks{_more(extra)}. If one of "
            "them stores tied weights twice, save it again with them tied."
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def check_views(names: Sequence[str], source: Model, own: ViewColumn, other: Model, column: ViewColumn) -> None:
    """Raises CheckpointError if shapes differ, or dtypes of which one is not of floating point."""
    if own.shapes != column.shapes:
        for name, wanted, found, kind in zip(names, own.shapes, column.shapes, column.kinds, strict=True):
            if wanted != found and kind != NO_KIND:
                hint = VOCABULARIES if any(word in name for word in ("embed", "lm_head", "wte")) else ""
                raise CheckpointError(
                    f"{_tensor(name)} is {list(wanted)} in {source.title} but {list(found)} in {other.title}.{hint}"
                )
    if own.kinds != column.kinds:
        for name, kind, other_kind in zip(names, own.kinds, column.kinds, strict=True):
            if kind != other_kind and not {kind, other_kind} <= _FLOATS and other_kind != NO_KIND:
                codes = any(DTYPES[number].is_quantized for number in (kind, other_kind))
                raise CheckpointError(
                    f"{_tensor(name)} is {DTYPES[kind]} in {source.title} but {DTYPES[other_kind]} in {other.title}"
                    f"{'; dequantize the quantized one first' if codes else ''}."
                )


def _tensor(name: str) -> str:
    return f"tensor '{name}'" if name else "the tensor"


def _refuse_codes(method: Method, names: Sequence[str], models: Sequence[Model], own: ViewColumn) -> None:
    """Raises CheckpointError for a quantised model: an average of codes means nothing."""
    if method.copies or _FLOATS.issuperset(own.kinds):
        return
    packed = next((model for model in models if model.is_quantized()), None)
    for name, kind in zip(names, own.kinds, strict=True):
        dtype: DType = DTYPES[kind]
        if dtype.is_quantized:
            raise CheckpointError(f"{_tensor(name)} is quantized ({dtype}); dequantize the models before merging them.")
        if packed is not None and not dtype.is_float:
            raise CheckpointError(
                f"{packed.title} is quantized (its config.json or its names say so, and {_tensor(name)} is {dtype}); "
                "dequantize it before merging."
            )


def _auxiliary_shapes(
    method: Method,
    names: Sequence[str],
    columns: Sequence[ViewColumn],
    auxiliary: Mapping[str, Model],
    beside: Sequence[ViewColumn],
) -> list[tuple[Shape, ...]]:
    """Of each tensor the shapes of its auxiliary tensors; an empty list if the method needs none."""
    if not method.auxiliary:
        return []
    models, weights = len(columns), dict.fromkeys(names)
    present = []
    for number, (label, model) in enumerate(auxiliary.items()):
        there = dict.fromkeys(model.names)
        method.auxiliary[number // models].check_names(label, there, weights)
        present.append(there)
    shapes = []
    for row, name in enumerate(names):
        found = [
            (column.shapes[row], column.dtype(row)) if name in there else None
            for there, column in zip(present, beside, strict=True)
        ]
        weight = columns[0].shapes[row], columns[0].dtype(row)
        shapes.append(check_auxiliary(method.auxiliary, name, weight, found, list(auxiliary)))
    return shapes
