"""A model directory as an input: its index, its shards, and the places of its tensors."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from .. import _core, system
from ..errors import CheckpointError, UsageError, close_matches, shown, unreadable
from .companions import companions
from .documents import CONFIG_LIMIT, INDEX_LIMIT, read_json
from .inputs import Noted, check_identity
from .names import ADAPTER_CONFIG, CONFIG, INDEX, SINGLE
from .reference import ModelRef
from .safetensors import Columns, TensorEntry, read_columns
from .view_columns import ABSENT, FileColumn
from .views import FileRegion, View

OTHER_FILES = 256  # descriptors that are left to outputs and to whatever else the process has open


class InputFile(Protocol):
    """A file that was there when a plan was made."""

    @property
    def path(self) -> Path: ...

    @property
    def identity(self) -> system.Identity: ...

    @property
    def digests(self) -> dict[str, str]:
        """For the manifest: what was hashed, and its SHA-256."""
        ...


class Part(Protocol):
    """A directory, or a file, that tensors are read from."""

    @property
    def path(self) -> Path: ...

    @property
    def files(self) -> Sequence[InputFile]: ...


class Shard:
    """One safetensors file.

    Attributes:
        file: a `_core.File`, opened when it is first read. It must still be the one whose header was read.
        identity: of the file (system.identity).
        columns, metadata: of its header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.identity = system.identity(system.settled(path))
            self.columns, self.metadata = read_columns(path)
            changed = system.identity(system.calls.stat(path)) != self.identity
        except OSError as error:
            raise unreadable(error.errno, error.strerror or error, path) from None
        if changed:
            raise unreadable(errno.ESTALE, "it changed", path)
        self.size = self.identity.size
        self.file = _core.File(os.fsencode(path), self.identity)

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        return self.columns.by_name()

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the bytes before the first tensor."""
        nbytes = self.columns.offsets[0] if self.columns.names else self.size
        try:
            fd = system.open_regular(self.path)
            try:
                return {"header_sha256": hashlib.sha256(system.read_at(fd, nbytes, 0)).hexdigest()}
            finally:
                system.close(fd)
        except OSError as error:
            raise unreadable(error.errno, error.strerror or error, self.path) from None

    def check(self) -> None:
        """Raises CheckpointError if what the name stands for is not the file whose header was read."""
        check_identity(self.path, self.identity)

    def close(self) -> None:
        self.file.close()


_core.on_input_error(unreadable)  # also for reads of native code, on whatever thread


def allow_open_files(count: int) -> None:
    """Lets `count` files be open at once, as far as the process's hard limit permits. Shards beyond that take turns."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = wanted if soft == resource.RLIM_INFINITY else soft
    # If not all fit, half is left for outputs: each tensor in flight may need one of its own.
    _core.File.limit_open(room - OTHER_FILES if room >= wanted else room // 2)


class TensorFiles:
    """Safetensors files that make up a model. `columns` has the tensors in the order of files and data, `shard_of` each
    one's file."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self.shards = [Shard(file) for file in files]
        self.columns = Columns.joined([shard.columns for shard in self.shards])
        self.shard_of = array("i")
        for number, shard in enumerate(self.shards):
            self.shard_of.extend([number] * len(shard.columns.names))
        self._check_unique()

    @property
    def title(self) -> str:
        return f"the file '{self.path}'"

    @property
    def parts(self) -> Sequence[Part]:
        """What it is read from: itself, or a model and an adapter."""
        return [self]

    @property
    def files(self) -> Sequence[InputFile]:
        """The files that decide what its tensors are."""
        return self.shards

    @property
    def notices(self) -> Sequence[str]:
        """What a user should know of it, a sentence each."""
        return ()

    @property
    def low_rank(self) -> Sequence[Any]:
        """The views that hold factors of an adapter while they are read."""
        return ()

    @property
    def names(self) -> Sequence[str]:
        return self.columns.names

    def column(self, names: Sequence[str]) -> FileColumn:
        """The views of these tensors, in this order; rows of names that the checkpoint lacks must not be used."""
        column = FileColumn(self.columns, self.shard_of, [shard.file for shard in self.shards])
        return column if names == self.names else column.take([self.rows.get(name, ABSENT) for name in names])

    def companions(self) -> Mapping[str, Any]:
        """The small files that a merge may take over, by name (models.companions). Raises CheckpointError."""
        return companions(self.path)

    def holder(self, name: str) -> Any:
        """Itself, if it has this tensor: what models.picked.Picked says of each of its tensors."""
        return self if name in self.rows else None

    def is_quantized(self) -> bool:
        """Whether the config says that the weights are codes."""
        return False

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each tensor in `columns`."""
        return {name: row for row, name in enumerate(self.columns.names)}

    @cached_property
    def entries(self) -> dict[str, tuple[Shard, TensorEntry]]:
        """The columns as records by name, each with its shard."""
        pairs = zip(self.shard_of, self.columns.entries(), strict=True)
        return {entry.name: (self.shards[number], entry) for number, entry in pairs}

    def view(self, name: str) -> View:
        shard, entry = self.entries[name]
        return FileRegion(entry.dtype, entry.shape, shard.file, entry.offset)

    def _check_unique(self) -> None:
        if len(self.shards) == 1 or len(self.rows) == len(self.columns.names):
            return
        first: dict[str, Shard] = {}
        for shard in self.shards:
            for name in shard.columns.names:
                if name in first:
                    files = f"{first[name].path.name} and {shard.path.name}"
                    raise CheckpointError(f"{self.path}: tensor '{name}' is in both {files}; remove one of them.")
                first[name] = shard

    def check(self) -> None:
        """Raises CheckpointError if a file changed since it was opened."""
        for shard in self.shards:
            shard.check()

    def close(self) -> None:
        for shard in self.shards:
            shard.close()


class Checkpoint(TensorFiles):
    """A model directory."""

    def __init__(self, ref: ModelRef | str) -> None:
        self.ref = ref if isinstance(ref, ModelRef) else ModelRef(str(ref))
        self.path = resolve(self.ref)
        self._config: dict[str, Any] | None = None
        self._noted = Noted([self.path / INDEX, self.path / CONFIG])
        super().__init__(self.path, self._shard_paths())
        self._check_index()
        if not self.columns.names:
            raise CheckpointError(f"{self.path} holds no tensors; is it the right directory?")

    @property
    def title(self) -> str:
        return f"model '{self.ref}'"

    def is_quantized(self) -> bool:
        return bool(self.config().get("quantization_config"))

    def __str__(self) -> str:
        return str(self.ref)

    def _shard_paths(self) -> list[Path]:
        """The single file if there is one, as in transformers, else the files that the index names."""
        self._weight_map: dict[str, str] | None = None
        if system.is_file(self.path / SINGLE):
            return [self.path / SINGLE]
        index = self.path / INDEX
        document = read_object(index, INDEX_LIMIT)
        self._weight_map = document.get("weight_map")
        if not isinstance(self._weight_map, dict):
            raise CheckpointError(f"{index}: not a valid index: it has no 'weight_map'. Download the model again.")
        paths: dict[Any, Path] = {}
        for tensor, name in self._weight_map.items():
            if isinstance(name, str) and name in paths:
                continue
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
                raise CheckpointError(
                    f"{index}: it says that tensor '{tensor}' is in {shown(name)}, but that is no file in this "
                    "directory."
                )
            if not system.is_file(self.path / name):
                raise CheckpointError(f"{index}: the file {name} is missing. Download the model again.")
            paths[name] = self.path / name
        return [paths[name] for name in sorted(paths)]

    def _check_index(self) -> None:
        """Raises CheckpointError if the index and the headers differ. The index is not needed after that."""
        weight_map, self._weight_map = self._weight_map or {}, None
        files = [shard.path.name for shard in self.shards]
        for name, file in weight_map.items():
            row = self.rows.get(name)
            if row is None or files[self.shard_of[row]] != file:
                raise CheckpointError(
                    f"{self.path / INDEX}: it says that tensor '{name}' is in {file}, but it is not. Download the "
                    "model again."
                )

    def config(self) -> dict[str, Any]:
        """The parsed config.json, empty if there is none."""
        if self._config is None:
            path = self.path / CONFIG
            try:
                there = system.exists(path, follow=False)  # a link to nothing is an error
            except OSError as error:
                raise unreadable(error.errno, error.strerror, path) from None
            self._config = read_object(path, CONFIG_LIMIT, constants=True) if there else {}
        return self._config

    def check(self) -> None:
        """Raises CheckpointError if a shard, the index or the config changed since the checkpoint was opened."""
        self._noted.check()
        super().check()


def read_object(path: Path, limit: int, *, constants: bool = False) -> dict[str, Any]:
    """The JSON object in a file of a model. Raises CheckpointError if there is none."""
    try:
        document = read_json(path, limit, constants=constants)
    except OSError as error:
        raise unreadable(error.errno, error.strerror, path) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: not a JSON object.")
    return document


def resolve(ref: ModelRef) -> Path:
    """The directory of a model, as `directory_of` finds it. Raises UsageError and CheckpointError if it holds none."""
    return _with_weights(directory_of(ref, _has_weights))


def directory_of(ref: ModelRef, is_complete: Callable[[Path], bool], kind: str = "model") -> Path:
    """Where a reference leads: a path, else the hub's cache if what is there is complete, else a download.

    Raises UsageError if there is none.
    """
    path = Path(os.path.expanduser(ref.path))
    if system.is_directory(path):
        if ref.revision is not None:
            raise UsageError(
                f"{kind} '{ref}': {ref.path} is a directory and has no revisions; remove the '@' and what follows it."
            )
        return path
    if system.is_file(path):
        raise UsageError(f"{kind} '{ref}' is a file; name the directory that holds it.")
    reason = ""
    if not ref.path.startswith((".", "/", "~")) and ref.path.count("/") <= 1:
        found, why = _hub(ref, is_complete)
        if found:
            return found
        reason = f", and the Hugging Face hub did not provide it ({why})"
    try:
        siblings = [n for n in system.calls.listdir(path.parent) if system.is_directory(path.parent / n)]
    except (OSError, ValueError):
        siblings = []
    raise UsageError(f"{kind} '{ref}' is not a directory{reason}{close_matches(path.name, siblings) or '.'}")


def _has_weights(path: Path) -> bool:
    return system.is_file(path / SINGLE) or system.is_file(path / INDEX)


def _with_weights(path: Path) -> Path:
    if _has_weights(path):
        return path
    if system.is_file(path / ADAPTER_CONFIG):
        raise UsageError(
            f"{path} holds an adapter, not a model; write MODEL+{path} with the model that it was trained on."
        )
    try:
        names = system.calls.listdir(path)
    except OSError as error:
        raise unreadable(error.errno, error.strerror, path) from None
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        raise CheckpointError(
            f"{path} holds no safetensors files, only pytorch_model*.bin; convert it to safetensors first."
        )
    raise CheckpointError(f"{path} holds neither {SINGLE} nor {INDEX}; name the directory of a model.")


_HUB_ERRORS = {
    "GatedRepoError": "you need access to it: ask for it there",
    "HFValidationError": "it is not a valid id",
    "LocalEntryNotFoundError": "there is no connection",
    "RepositoryNotFoundError": "it is not there, or needs a login",
    "RevisionNotFoundError": "there is no such revision",
}


def _hub(ref: ModelRef, is_complete: Callable[[Path], bool]) -> tuple[Path | None, str]:
    """The snapshot of a reference on the hub, from the cache if it is there, or why there is none."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None, "huggingface_hub is not installed"
    patterns = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "*.py"]
    why = ""
    for cached in (True, False):
        try:
            path = Path(
                snapshot_download(ref.path, revision=ref.revision, local_files_only=cached, allow_patterns=patterns)
            )
        except Exception as error:  # the hub's errors have no common base class; each means that the model is not there
            name = type(error).__name__
            why = _HUB_ERRORS.get(name, name)
            continue
        if is_complete(path) or not cached:  # a cache can hold the config alone
            return path, ""
    return None, why
