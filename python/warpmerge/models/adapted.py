"""A model under an adapter: the model's tensors, of which the adapter changes some while they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from ..dtypes import FLOAT32, DType
from ..errors import CheckpointError, close_matches
from .adapter import Adapter, Module
from .checkpoint import Checkpoint, Part
from .companions import Companion
from .low_rank import Factors, LowRank, Rounded
from .reference import ModelRef
from .view_columns import FileColumn
from .views import GatheredRows, JoinedParts, Memory, View

# What one of two programs puts before the names of a model's tensors, and the other does not.
PREFIXES = ("model.", "transformer.", "bert.", "roberta.", "base_model.", "language_model.")
HEAD = "lm_head.weight"


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are those of `base` under `adapter`. It has the names, shapes and dtypes of `base`.

    Raises CheckpointError if the adapter does not fit.
    """

    def __init__(self, ref: ModelRef, base: Checkpoint, adapter: Adapter) -> None:
        self.ref, self.path, self.base, self.adapter = ref, base.path, base, adapter
        self.shards = [*base.shards, adapter.shard]
        self.columns, self.shard_of = base.columns, base.shard_of
        self._config = base.config()
        self.changed = _Changes(base, adapter).views

    @property
    def parts(self) -> Sequence[Part]:
        return [self.base, self.adapter]

    @property
    def notices(self) -> Sequence[str]:
        return self.adapter.notices

    @property
    def low_rank(self) -> list[LowRank]:
        """The views that hold factors while they are read."""
        return [view for view in self.changed.values() if isinstance(view, LowRank)]

    def column(self, names: Sequence[str]) -> FileColumn:
        found = super().column(names)
        found.replace({row: self.changed[name] for row, name in enumerate(names) if name in self.changed})
        return found

    def companions(self) -> Mapping[str, Companion]:
        return self.base.companions()

    def check(self) -> None:
        self.base.check()
        self.adapter.check()

    def view(self, name: str) -> View:
        return self.changed[name] if name in self.changed else self.base.view(name)


class _Changes:
    """`views`: by the name of a tensor of the model what an adapter makes of it."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self.base, self.adapter = base, adapter
        self.views: dict[str, View] = {}
        for name, view in adapter.whole.items():
            self._replace(name, view)
        self._transposed = self._orientations()
        for module, part in adapter.parts.items():
            self._apply(module, part)
        self._check_targets()

    def _find(self, name: str) -> str | None:
        """The name in the model of what the adapter calls `name`."""
        candidates = [name, *(name[len(p) :] for p in PREFIXES if name.startswith(p)), *(p + name for p in PREFIXES)]
        return next((candidate for candidate in candidates if candidate in self.base.rows), None)

    def _found(self, name: str) -> str:
        """The same. Raises CheckpointError if there is none."""
        found = self._find(name)
        if found is None:
            near = close_matches(name, self.base.names) or "."
            raise CheckpointError(
                f"{self.adapter.title} changes '{name}', which {self.base.title} lacks{self.adapter.trained_on}{near}"
            )
        return found

    def _view(self, name: str) -> View:
        """A tensor of the model, as the adapter replaced it."""
        view = self.views[name] if name in self.views else self.base.view(name)
        if not view.dtype.is_float:
            raise CheckpointError(
                f"{self.adapter.title} changes '{name}', but it is {view.dtype} in {self.base.title}; apply the "
                "adapter to a model of floating-point weights."
            )
        return view

    def _replace(self, name: str, view: View) -> None:
        saved = self.adapter.config.get("modules_to_save") or ()
        tied = self.base.config().get("tie_word_embeddings")
        if name == HEAD and self._find(name) is None and tied and "lm_head" not in saved:
            return  # a copy of the embedding, which the model has once
        name = self._found(name)
        own = self._view(name)
        if own.shape != view.shape:
            raise self._misfit(name, f"is {list(view.shape)}", own)
        if not view.dtype.is_float:
            raise self._misfit(name, f"is {view.dtype}", own)
        self.views[name] = self._as(view, own.dtype)

    @staticmethod
    def _as(view: View, dtype: DType) -> View:
        return view if view.dtype == dtype else Rounded(view, dtype)

    def _misfit(self, name: str, what: str, own: View) -> CheckpointError:
        return CheckpointError(
            f"tensor '{name}' is {own.dtype} of the shape {list(own.shape)} in {self.base.title}, but it {what} in "
            f"{self.adapter.title}{self.adapter.trained_on}."
        )

    def _apply(self, module: str, part: Module) -> None:
        tensors = dict(part.tensors)
        tokens = tensors.pop("tokens", None)
        if tensors:
            self._add(module, tensors)
        if tokens is not None:
            self._set_rows(module, tokens)

    def _add(self, module: str, tensors: dict[str, View]) -> None:
        embedding = "lora_embedding_A.weight" in tensors
        a, b = (tensors.pop(f"lora_{'embedding_' if embedding else ''}{side}.weight", None) for side in "AB")
        if a is None or b is None:
            raise CheckpointError(
                f"{self.adapter.shard.path}: '{module}' has one factor of two; the file is incomplete. Download it "
                "again."
            )
        bias, magnitudes = tensors.pop("lora_B.bias", None), tensors.pop("lora_magnitude_vector.weight", None)
        if tensors:
            raise CheckpointError(f"{self.adapter.shard.path}: '{module}.{min(tensors)}' is not known.")
        if magnitudes is None and self.adapter.config.get("use_dora"):
            raise CheckpointError(
                f"{self.adapter.shard.path}: '{module}' has no magnitudes, but the config says 'use_dora'. Download "
                "the adapter again."
            )
        name = self._found(f"{module}.weight")
        weight, rank = self._view(name), a.shape[0]
        transposed = embedding or self._transposed.get(module, False)
        if not self._fits(weight, a, b, transposed):
            raise self._misfit(name, f"is changed by the product of {list(b.shape)} and {list(a.shape)}", weight)
        scale = self.adapter.scale(module, rank)
        if magnitudes is not None and magnitudes.count != b.shape[0]:
            raise self._misfit(name, f"has {magnitudes.count} magnitudes for {b.shape[0]}", weight)
        factors = Factors(
            *((a, b) if transposed else (b, a)),
            rank=rank,
            transposed=transposed,
            scale=scale,
            magnitudes=magnitudes,
            by_column=transposed,
        )
        self.views[name] = LowRank(weight, factors)
        if bias is not None:
            self._add_bias(f"{module}.bias", bias, scale)

    def _add_bias(self, name: str, bias: View, scale: float) -> None:
        name = self._found(name)
        own = self._view(name)
        if bias.shape != own.shape:
            raise self._misfit(name, f"is changed by {list(bias.shape)}", own)
        import numpy as np

        one = np.ones(1, np.float32)
        left = Memory(FLOAT32, (1, 1), one.ctypes.data, one)
        self.views[name] = LowRank(own, Factors(left, bias, 1, False, scale))

    def _set_rows(self, module: str, tokens: View) -> None:
        name = self._found(f"{module}.weight")
        own = self._view(name)
        if tokens.shape[1:] != own.shape[1:] or not tokens.dtype.is_float:
            raise self._misfit(name, f"has new rows of the shape {list(tokens.shape[1:])}", own)
        index = list(range(own.shape[0]))
        for place, row in enumerate(self.adapter.token_rows(module, tokens.shape[0])):
            if row >= len(index):
                raise self._misfit(name, f"has a row {row}", own)
            index[row] = own.shape[0] + place
        self.views[name] = GatheredRows(JoinedParts([own, self._as(tokens, own.dtype)], 0, name), index, name)

    @staticmethod
    def _fits(weight: View, a: View, b: View, transposed: bool) -> bool:
        if len(b.shape) < 2 or math.prod(b.shape[1:]) != a.shape[0]:
            return False
        if transposed:
            return weight.shape == (*a.shape[1:], b.shape[0])
        return weight.shape == (b.shape[0], *a.shape[1:])

    def _orientations(self) -> dict[str, bool]:
        """Of each linear module whether its weight lies transposed (in, out), as GPT-2's do.

        Shapes tell. For a square weight those of other modules with the same last name tell, else the config, which can
        be right for some modules only.
        """
        found: dict[str, bool] = {}
        unclear = []
        for module, part in self.adapter.parts.items():
            a, b = part.tensors.get("lora_A.weight"), part.tensors.get("lora_B.weight")
            name = self._find(f"{module}.weight")
            if a is None or b is None or name is None:
                continue
            fits = [self._fits(self._view(name), a, b, transposed) for transposed in (False, True)]
            if fits[0] != fits[1]:
                found[module] = fits[1]
            elif fits[0]:
                unclear.append(module)
        told = {module.rpartition(".")[2]: transposed for module, transposed in found.items()}
        default = bool(self.adapter.config.get("fan_in_fan_out"))
        return found | {module: told.get(module.rpartition(".")[2], default) for module in unclear}

    def _check_targets(self) -> None:
        """Raises CheckpointError if modules that the config lists have no factors: all of a name, or some of them."""
        for target in self.adapter.targets():
            there = [name for name in self.adapter.parts if f".{name}".endswith(f".{target}")]
            if not there:
                if any(
                    f".{name}".startswith(f".{target}.") or f".{target}." in f".{name}" for name in self.adapter.whole
                ):
                    continue
                raise CheckpointError(
                    f"{self.adapter.shard.path}: the config lists the module {target!r}, but the file has no factors "
                    "for it; it is incomplete. Download it again."
                )
            changed = {self._find(f"{name}.weight") for name in there}
            kinds = {_without_numbers(str(name)) for name in changed}
            for name in self.base.names:
                listed = f".{name}".endswith(f".{target}.weight")
                if listed and name not in changed and _without_numbers(name) in kinds:
                    raise CheckpointError(
                        f"{self.adapter.shard.path}: the file has no factors for '{name.removesuffix('.weight')}', "
                        f"which the config lists; it is incomplete, or for another model{self.adapter.trained_on}."
                    )


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<=\.)[0-9]+(?=\.)", "#", name)
