"""Auxiliary tensors: tensors that a method needs of each model beside its weights, such as a Fisher information.

    FISHER = AuxiliaryTensor("fisher", help="directory of the model's diagonal Fisher information")

    @method("fisher", base=Base.METADATA, auxiliary=[FISHER], ...)

Each model has a checkpoint of auxiliary tensors. A tensor in it has the name of the weight that it belongs to. A recipe
names the checkpoints in a per-model parameter. A call on tensors gives a list with one entry per model. A method sees
auxiliary tensors as inputs K, K + 1, ...: K of its first kind, then K of the next. `TensorInfo.auxiliary` has their
shapes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..dtypes import DType
from ..errors import CheckpointError, shown
from .parameters import Parameter

Shape = tuple[int, ...]
Found = tuple[Shape, DType]


def same_shape(weight: Shape) -> Shape | None:
    return weight


@dataclass(frozen=True)
class AuxiliaryTensor:
    """A kind of auxiliary tensor of a method.

    Attributes:
        name: name of the parameter that gives it.
        help: its meaning, for `warpmerge methods`.
        shape: function from a weight's shape to the shape of its auxiliary tensor, or to None if that weight has none.
            Default: the same shape.
        required: True: every weight has one. False: a weight has one in all models or in none.
    """

    name: str
    help: str
    shape: Callable[[Shape], Shape | None] = same_shape
    required: bool = True

    def parameter(self) -> Parameter:
        return Parameter(self.name, _source, "model reference", required=True, per_model=True, help=self.help)

    def label(self, model: str) -> str:
        return f"{self.name} of {model}"

    def check_names(self, label: str, names: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        """Raises CheckpointError if there is a tensor that belongs to none of the weights."""
        extra = next((name for name in names if name not in weights), None)
        if extra is not None:
            raise CheckpointError(
                f"{label} has the tensor '{extra}', but the model has no weight of that name; remove the tensor or "
                "rename it."
            )

    def check(self, name: str, weight: Found, found: Sequence[Found | None], labels: Sequence[str]) -> bool:
        """Whether the weight has auxiliary tensors. Raises CheckpointError if some are missing or do not fit.

        found: shape and dtype in each model's checkpoint, None where there is none.
        """
        own, dtype = weight
        what = f"tensor '{name}'" if name else "the tensor"
        wanted = self.shape(own) if dtype.is_float else None
        present = [label for label, one in zip(labels, found, strict=True) if one is not None]
        if not present and not (self.required and wanted is not None):
            return False
        for label, one in zip(labels, found, strict=True):
            if one is None:
                other = f", but {present[0]} has it" if present else ""
                raise CheckpointError(f"{label} lacks {what}{other}; add it, filled with zeros if nothing is known.")
            if wanted is None:
                raise CheckpointError(
                    f"{label} has {what}, but a {dtype} weight of shape {list(own)} takes none; remove it there."
                )
            shape, kind = one
            if shape != wanted:
                raise CheckpointError(
                    f"{what} has the shape {list(shape)} in {label}; for a weight of shape {list(own)} it must have "
                    f"the shape {list(wanted)}."
                )
            if not kind.is_float:
                raise CheckpointError(f"{what} is {kind} in {label}; it must have a floating-point dtype.")
        return True


def _source(value: Any) -> Any:
    if isinstance(value, Mapping) or (isinstance(value, (str, os.PathLike)) and str(value)):
        return value
    raise ValueError(f"expected a path, a Hugging Face id or a state dict, got {shown(value)}")


def check_auxiliary(
    kinds: Sequence[AuxiliaryTensor], name: str, weight: Found, found: Sequence[Found | None], labels: Sequence[str]
) -> tuple[Shape, ...]:
    """The shapes of a weight's auxiliary tensors in the order of the inputs, () if it has none.

    found, labels: one for each kind and model, all models of the first kind before those of the next.
    """
    models = len(found) // len(kinds) if kinds else 0
    there = []
    for i, kind in enumerate(kinds):
        mine = slice(i * models, (i + 1) * models)
        there.append(kind.check(name, weight, found[mine], labels[mine]))
    if any(there) and not all(there):
        missing = kinds[there.index(False)].name
        raise CheckpointError(
            f"tensor '{name}' has some auxiliary tensors, but no {missing} in any model; give it all kinds."
        )
    return tuple(one[0] for one in found if one is not None)
