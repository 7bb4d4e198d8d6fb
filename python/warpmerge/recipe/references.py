"""References to models as recipes write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import UsageError, shown
from ..models.reference import ModelRef


def model_ref(value: Any, where: str) -> ModelRef:
    """A reference of the form `model[@revision][+adapter[@revision]]`, or mergekit's long form. Raises UsageError.

    A model or adapter is a path or a Hugging Face id. What exists as a path is never taken apart.
    """
    if isinstance(value, Mapping):
        return _mapped(value, where)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: a model must be a path or a Hugging Face id, got {shown(value)}.")
    if _exists(value) or "+" not in value:
        return _single(value)
    cuts = [at for at, character in enumerate(value) if character == "+"]
    cut = next((at for at in cuts if _exists(value[:at])), cuts[0])
    model, adapter = value[:cut], value[cut + 1 :]
    if not model or not adapter or ("+" in adapter and not _exists(adapter)):
        raise UsageError(f"{where}: {shown(value)} is not a model with one adapter, such as 'model+adapter'.")
    return replace(_single(model), adapter=_single(adapter))


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _single(value: str) -> ModelRef:
    """A path or a hub id, which may have a revision."""
    path, found, revision = value.partition("@")
    return ModelRef(path, revision) if found and not _exists(value) else ModelRef(value)


def _mapped(value: Mapping[str, Any], where: str) -> ModelRef:
    """mergekit's long form: {model: {path, revision}, lora: {path, revision}, override_architecture}."""
    if value.get("override_architecture") is not None:
        raise UsageError(
            f"{where}: 'override_architecture' is not supported: remove it. Models fit if their tensors have the same "
            "names."
        )
    inner = value.get("model", value)
    unknown = [k for k in value if k not in ("model", "lora", "override_architecture")] if inner is not value else []
    if unknown:
        raise UsageError(f"{where}: unknown key {shown(unknown[0])}; a model has 'path' and 'revision'.")
    model = _path_and_revision(inner, where)
    lora = value.get("lora") if inner is not value else None
    if lora is None:
        return model
    adapter = _path_and_revision(lora, f"{where}: lora")
    if model.adapter is not None or adapter.adapter is not None:
        raise UsageError(f"{where}: a model takes one adapter; merge the others into it first.")
    return replace(model, adapter=adapter)


def _path_and_revision(value: Any, where: str) -> ModelRef:
    if not isinstance(value, Mapping):
        return model_ref(value, where)
    unknown = [k for k in value if k not in ("path", "revision")]
    if unknown:
        raise UsageError(f"{where}: unknown key {shown(unknown[0])}; a model has 'path' and 'revision'.")
    path, revision = value.get("path"), value.get("revision")
    if revision is None:
        return model_ref(path if not isinstance(path, Mapping) else None, where)
    if not isinstance(path, str) or not isinstance(revision, str):
        raise UsageError(f"{where}: 'path' and 'revision' of a model must be strings; put them in quotes.")
    return ModelRef(path, revision)
