"""References to models as recipes write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError, shown
from ..models.reference import ModelRef


def model_ref(value: Any, where: str) -> ModelRef:
    """A path, a Hugging Face id with or without `@revision`, or mergekit's long form. Raises UsageError."""
    if isinstance(value, Mapping):
        return _mapped(value, where)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: a model must be a path or a Hugging Face id, got {shown(value)}.")
    if not os.path.exists(os.path.expanduser(value)):
        if "+" in value:
            raise UsageError(
                f"{where}: '{value}' is not a directory. LoRA adapters after a '+' are not supported yet: merge the "
                "adapter into its model first."
            )
        path, found, revision = value.partition("@")
        if found:
            return ModelRef(path, revision)
    return ModelRef(value)


def _mapped(value: Mapping[str, Any], where: str) -> ModelRef:
    """mergekit's long form: {model: {path, revision}, lora, override_architecture}."""
    if value.get("lora") is not None:
        raise UsageError(f"{where}: 'lora' is not supported yet: merge the adapter into its model first.")
    if value.get("override_architecture") is not None:
        raise UsageError(
            f"{where}: 'override_architecture' is not supported: remove it. Models fit if their tensors have the same "
            "names."
        )
    inner = value.get("model", value)
    if not isinstance(inner, Mapping):
        inner = {"path": inner}
    known = {"path", "revision"} if inner is value else {"model", "lora", "override_architecture"}
    unknown = [*(k for k in value if k not in known), *(k for k in inner if k not in ("path", "revision"))]
    if unknown:
        raise UsageError(f"{where}: unknown key {shown(unknown[0])}; a model has 'path' and 'revision'.")
    path, revision = inner.get("path"), inner.get("revision")
    if revision is None:
        return model_ref(path if not isinstance(path, Mapping) else None, where)
    if not isinstance(path, str) or not isinstance(revision, str):
        raise UsageError(f"{where}: 'path' and 'revision' of a model must be strings; put them in quotes.")
    return ModelRef(path, revision)
