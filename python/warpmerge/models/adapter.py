"""LoRA adapters as PEFT stores them: `adapter_config.json`, and factors in `adapter_model.safetensors`.

An adapter is read apart from the model that it was trained on; `adapted.py` brings them together. Only names, shapes
and the config are read here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import system
from ..errors import CheckpointError, UsageError, shown, unreadable
from .checkpoint import InputFile, Shard, directory_of, read_object
from .documents import CONFIG_LIMIT
from .inputs import check_identity
from .names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .reference import ModelRef
from .views import FileRegion, View

# Keys that ask for another arithmetic than W + s B A, or for other tensors than the names say.
OTHER_ARITHMETIC = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config"),
    *("target_parameters", "use_bdlora", "use_qalora", "velora_config"),
)
# Initial values whose training starts from a changed model: only with that model are the factors right.
CHANGE_THE_MODEL = {"corda", "loftq", "lora_ga", "olora", "pissa"}
FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}
WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod"}  # parts of names that programs of training put in
# Limits of a pattern and of what it is matched with: the time to match grows with a power of the former.
QUANTIFIERS, ALTERNATIVES, LONGEST = 3, 16, 1000


@dataclass
class Module:
    """What an adapter has for one module: tensors by the last part of their names, such as `lora_A.weight`."""

    tensors: dict[str, View] = field(default_factory=dict)


@dataclass(frozen=True)
class SmallFile:
    """A file that is read when the plan is made."""

    path: Path
    identity: system.Identity
    digests: dict[str, str]

    def check(self) -> None:
        """Raises CheckpointError if it changed."""
        check_identity(self.path, self.identity)


class Adapter:
    """An adapter.

    Attributes:
        parts: by the path of its module what is combined with a tensor of the model.
        whole: by its name each tensor that replaces one of the model.
        notices: what a user should know, a sentence each.

    Raises UsageError if there is none, CheckpointError if it cannot be used.
    """

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.path = directory_of(ref, lambda path: system.is_file(path / ADAPTER_WEIGHTS), "adapter")
        self._check_files()
        path = self.path / ADAPTER_CONFIG
        try:
            identity = system.identity(system.settled(path))
            digest = hashlib.sha256(system.read_file(path, CONFIG_LIMIT)).hexdigest()
        except (OSError, ValueError) as error:
            raise unreadable(getattr(error, "errno", None), getattr(error, "strerror", error), path) from None
        self.settings = SmallFile(path, identity, {"sha256": digest})
        self.config = read_object(path, CONFIG_LIMIT, constants=True)
        self.notices: list[str] = []
        self._check_config()
        self.shard = Shard(self.path / ADAPTER_WEIGHTS)
        self.parts: dict[str, Module] = {}
        self.whole: dict[str, FileRegion] = {}
        self._adapter_names: set[str] = set()
        for name, entry in self.shard.entries.items():
            self._take(name, FileRegion(entry.dtype, entry.shape, self.shard.file, entry.offset))
        if not self.parts and not self.whole:
            raise CheckpointError(f"{self.shard.path} holds no tensors; is it the right directory?")

    @property
    def title(self) -> str:
        return f"adapter '{self.ref}'"

    @property
    def trained_on(self) -> str:
        """For messages: the model that the adapter was trained on."""
        name = self.config.get("base_model_name_or_path")
        return f"; it was trained on {shown(name)}" if isinstance(name, str) and name else ""

    def scale(self, module: str, rank: int) -> float:
        """s of W + s B A for a module whose factors have this rank."""
        given = self._number("r", self._matching("rank_pattern", module, self.config.get("r", 8)))
        alpha = self._number("lora_alpha", self._matching("alpha_pattern", module, self.config.get("lora_alpha", 8)))
        if given != rank:
            self.notices.append(
                f"{self.title}: its config gives rank {given:g} to '{module}', but the factors have rank {rank}, which "
                "is used."
            )
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def targets(self) -> list[str]:
        """The modules that the config lists, if it is a list that says it all. A pattern does not: an empty list."""
        found = self.config.get("target_modules")
        partly = any(self.config.get(key) is not None for key in ("layers_to_transform", "exclude_modules"))
        if partly or not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            return []
        return sorted(found)

    def token_rows(self, module: str, count: int) -> list[int]:
        """The rows of an embedding that the adapter replaces, in the order of its own."""
        given = self.config.get("trainable_token_indices")
        rows = given
        if isinstance(given, dict):
            rows = next((value for key, value in given.items() if f".{module}".endswith(f".{key}")), None)
        if not isinstance(rows, list) or len(rows) != count or not all(type(row) is int and row >= 0 for row in rows):
            raise CheckpointError(
                f"{self.settings.path}: 'trainable_token_indices' must list the {count} rows of '{module}' that "
                f"{ADAPTER_WEIGHTS} has, got {shown(given)}."
            )
        return rows

    def __str__(self) -> str:
        return str(self.ref)

    @property
    def files(self) -> Sequence[InputFile]:
        return [self.settings, self.shard]

    def check(self) -> None:
        """Raises CheckpointError if a file changed since the adapter was read."""
        for file in (self.settings, self.shard):
            file.check()

    def close(self) -> None:
        self.shard.close()

    def _check_files(self) -> None:
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if system.is_file(self.path / name):
                continue
            if name == ADAPTER_CONFIG:
                raise UsageError(
                    f"{self.path} holds no {name}: it is no adapter of PEFT. What follows a '+' must be one."
                )
            if system.is_file(self.path / "adapter_model.bin"):
                raise CheckpointError(
                    f"{self.path} holds adapter_model.bin, not {name}; load it with peft and save it again."
                )
            raise CheckpointError(f"{self.path}: the file {name} is missing. Download the adapter again.")

    def _check_config(self) -> None:
        path, kind = self.settings.path, self.config.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(
                f"{path}: 'peft_type' is {shown(kind)}; only adapters of the type 'LORA' are applied."
            )
        for key in OTHER_ARITHMETIC:
            if self.config.get(key):
                raise CheckpointError(
                    f"{path}: adapters with '{key}' are not supported; merge it into its model with peft first."
                )
        started = self.config.get("init_lora_weights")
        if isinstance(started, str) and (started in CHANGE_THE_MODEL or started.startswith("pissa")):
            self.notices.append(
                f"{self.title} was initialised by '{started}', which changes the model: apply it to the changed one, "
                "or convert it with peft first."
            )

    def _take(self, name: str, view: FileRegion) -> None:
        parts = [part for part in name.removeprefix("base_model.model.").split(".") if part not in WRAPPERS]
        at = next((n for n, part in enumerate(parts) if part in FACTORS), None)
        if at is None:
            if parts[-2:] == ["token_adapter", "trainable_tokens_delta"]:
                self.parts.setdefault(".".join(parts[:-2]), Module()).tensors["tokens"] = view
            else:
                self.whole[".".join(part for part in parts if part != "base_layer")] = view
            return
        module, kind, rest = ".".join(parts[:at]), parts[at], parts[at + 1 :]
        last = rest.pop() if rest and rest[-1] in ("weight", "bias") else "weight"
        self._adapter_names.add(".".join(rest))
        if len(self._adapter_names) > 1:
            raise CheckpointError(f"{self.shard.path} holds several adapters; save one of them by itself.")
        if (
            not view.dtype.is_float
            or (last == "weight" and "vector" not in kind and len(view.shape) < 2)
            or not view.count
        ):
            raise CheckpointError(
                f"{self.shard.path}: tensor '{name}' is {view.dtype} of the shape {list(view.shape)}, which is no "
                "factor; save the adapter again from a gathered model."
            )
        self.parts.setdefault(module, Module()).tensors[f"{kind}.{last}"] = view

    def _matching(self, key: str, module: str, default: Any) -> Any:
        """The value of the first pattern that matches the end of a module's path, as in PEFT."""
        patterns = self.config.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self.settings.path}: '{key}' must be a mapping, got {shown(patterns)}.")
        for pattern, value in patterns.items():
            if self._compiled(key, pattern).match(module):
                return value
        return default

    def _compiled(self, key: str, pattern: str) -> re.Pattern[str]:
        where = f"{self.settings.path}: {key}: the pattern {shown(pattern)}"
        many = len(re.findall(r"[*+{]|(?<!\()\?", pattern)) > QUANTIFIERS or pattern.count("|") > ALTERNATIVES
        if many or len(pattern) > LONGEST or re.search(r"\)[*+?{]", pattern):
            raise CheckpointError(f"{where} is too complex; name the modules instead.")
        try:
            return re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise CheckpointError(f"{where} is not a regular expression ({error}).") from None

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number) and (number > 0 or key != "r"):
                return number
        raise CheckpointError(f"{self.settings.path}: '{key}' must be a number, got {shown(value)}.")
