"""What is fuzzed. A target takes the bytes of one hostile file and raises if anything happens that must not happen.

Any exception but a MergeError comes through. So does a MergeError that does not name a file of the target's folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import attack_world as world
import warpmerge as wm
from helpers import INDEX, contents, read_model
from mutation import Pairs, damage_bytes, damaged, parsed
from safetensors import SafetensorError, deserialize
from warpmerge.dtypes import BY_SAFETENSORS
from warpmerge.errors import MergeError
from warpmerge.models import Checkpoint
from warpmerge.models.safetensors import TensorEntry, _entries, _parse, read_columns
from warpmerge.plan.file_plan import make_plan


class Wrong(AssertionError):
    """A broken promise."""


class Target:
    """One kind of file in a folder of its own. `folder` should lie in memory: every input is written there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    def prepare(self) -> None:
        """Whatever lies beside the file."""

    def document(self, rng: random.Random) -> Any:
        """A document that is read without an error."""
        raise NotImplementedError

    def generate(self, rng: random.Random) -> bytes:
        return damaged(self.document(rng), rng)

    def damage(self, data: bytes, rng: random.Random) -> bytes:
        """Changes an input that there is: in its structure if it has one."""
        try:
            return damaged(parsed(data), rng)
        except (ValueError, RecursionError):
            return damage_bytes(data, rng)

    def use(self, data: bytes) -> None:
        """Does with the file what users do. MergeErrors come through."""
        raise NotImplementedError

    def check(self, data: bytes) -> str:
        """`read` or `refused`."""
        try:
            self.use(data)
        except MergeError as error:
            if str(self.folder) not in str(error):
                raise Wrong(f"the error names no file: {error}") from error
            return "refused"
        return "read"


class Header(Target):
    """The safetensors library is the judge. The native scanner and the careful reader agree."""

    # Parts of our messages about files that the library reads. tests/attacks/header_attacks.py has the reasons.
    STRICTER = ("' twice", "is not supported", "lacks its dtype", "impossible shape", "nested too deeply")

    def prepare(self) -> None:
        self.path = self.folder / "x.safetensors"

    def document(self, rng: random.Random) -> Any:
        header, at = Pairs(), 0
        if rng.random() < 0.3:
            header.append(("__metadata__", Pairs([("format", "pt")])))
        for number in range(rng.randrange(4)):
            code = rng.choice(list(BY_SAFETENSORS))
            shape = [rng.randrange(4) for _ in range(rng.randrange(3))]
            end = at + math.prod(shape) * BY_SAFETENSORS[code].itemsize
            fields = [("dtype", code), ("shape", shape), ("data_offsets", [at, end])]
            header.append((f"t{number}", Pairs(rng.sample(fields, 3))))
            at = end
        self.size = at
        return header

    def generate(self, rng: random.Random) -> bytes:
        text = super().generate(rng) + rng.choice([b"", b"", b"   ", b"\n"])
        length, size = len(text), self.size
        if rng.randrange(8) == 0:
            length = rng.choice(
                [0, 1, max(0, length - 1), length + 1, length + size, 2**31, 2**63 - 8, 2**64 - 8, 2**64 - 1]
            )
        if rng.randrange(8) == 0:
            size = max(0, size + rng.choice([-8, -1, 1, 8]))
        return length.to_bytes(8, "little") + text + bytes(size)

    def damage(self, data: bytes, rng: random.Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        if rng.randrange(8) == 0 or len(data) < 8 + length:
            return damage_bytes(data, rng)
        text = super().damage(data[8 : 8 + length], rng)
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    def use(self, data: bytes) -> None:
        self.path.write_bytes(data)
        library, why = as_the_library_reads(data)
        careful = self._carefully(data)
        try:
            columns, metadata = read_columns(self.path)
        except MergeError as error:
            if library is not None and not any(text in str(error) for text in self.STRICTER):
                raise Wrong(f"the library reads it, but: {error}") from error
            if careful is not None:
                raise Wrong("the careful reader reads it") from error
            raise
        entries = columns.entries()
        if (entries, metadata) != careful:
            raise Wrong("the native scanner and the careful reader differ")
        if library is None:
            raise Wrong(f"it is read, but the library says: {why}")
        if {e.name: (e.dtype.safetensors, e.shape, e.nbytes) for e in entries} != library:
            raise Wrong("the library reads something else")

    def _carefully(self, data: bytes) -> tuple[list[TensorEntry], dict[str, str]] | None:
        """What is found without the native scanner."""
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 + length:
            return None
        try:
            header, metadata = _parse(data[8 : 8 + length], self.path)
            return _entries(self.path, header, 8 + length, len(data)), metadata
        except MergeError:
            return None


def as_the_library_reads(data: bytes) -> tuple[dict[str, tuple[str, tuple[int, ...], int]] | None, str]:
    """What the safetensors library finds, or why it finds nothing."""
    try:
        found = deserialize(data)
    except SafetensorError as error:
        return None, str(error)
    return {name: (f["dtype"], tuple(f["shape"]), len(f["data"])) for name, f in found}, ""


class Beside(Target):
    """A JSON file of the world that attackers find; `file` is its path."""

    file: str

    def prepare(self) -> None:
        world.prepare(self.folder, self.kind)
        self.path = self.folder / self.file
        self.good = self.path.read_bytes()

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def document(self, rng: random.Random) -> Any:
        return parsed(self.good)


class Index(Beside):
    """Whatever an index says, a model that opens has the tensors of its shards."""

    file = f"model/{INDEX}"

    def use(self, data: bytes) -> None:
        self.path.write_bytes(data)
        checkpoint = Checkpoint(str(self.folder / "model"))
        if not checkpoint.names or any(world.TENSORS[n].shape != e.shape for n, (_, e) in checkpoint.entries.items()):
            raise Wrong(f"tensors that are not in the shards: {checkpoint.entries}")
        checkpoint.close()


class Config(Beside):
    """A merge reads what its dry run reads, and its output has the config's keys."""

    file = "model/config.json"

    def use(self, data: bytes) -> None:
        self.path.write_bytes(data)
        shutil.rmtree(self.folder / world.OUT, ignore_errors=True)
        world.merge(self.folder, dry_run=True)
        try:
            world.merge(self.folder)
        except MergeError as error:
            raise Wrong(f"the dry run did not say: {error}") from error
        config = json.loads(data)
        if config and (missing := config.keys() - self._written().keys()):
            raise Wrong(f"the output's config lacks {missing}")

    def _written(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.folder / world.OUT / "config.json").read_text())
        return config


class Manifest(Beside):
    """Only the manifest of the merge itself verifies, and only files of the output are removed because of one."""

    file = f"{world.OUT}/warpmerge.json"

    def prepare(self) -> None:
        super().prepare()
        self.model = read_model(self.folder / world.OUT)
        self.tensors = json.loads(self.good)["tensors"]

    def use(self, data: bytes) -> None:
        self.path.write_bytes(data)
        try:
            problems = wm.verify(self.folder / world.OUT, threads=1).problems
        finally:
            self._overwrite(data)
        if not problems and {n: _checked(r) for n, r in json.loads(data)["tensors"].items()} != {
            n: _checked(r) for n, r in self.tensors.items()
        }:
            raise Wrong("a manifest of another merge verifies")

    def _overwrite(self, data: bytes) -> None:
        before = contents(self.folder).keys()
        world.merge(self.folder, overwrite=True)
        if self.path.read_bytes() != self.good or read_model(self.folder / world.OUT) != self.model:
            raise Wrong("the merge over a hostile manifest is wrong")
        if before - contents(self.folder).keys():
            raise Wrong("--overwrite removed a file")


def _checked(record: Any) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("dtype", "shape", "digest"))


class Journal(Target):
    """Whatever a journal says, a merge with --resume gives the right result."""

    def prepare(self) -> None:
        world.prepare(self.folder, "journal")
        (self.path,) = (self.folder / world.OUT).glob("*/journal")
        self.staged = self.folder / "staged"
        shutil.copytree(self.path.parent, self.staged)
        self.good = self.path.read_bytes()
        self.model = read_model(self.folder / "model")

    def generate(self, rng: random.Random) -> bytes:
        return self.damage(self.good, rng)

    def damage(self, data: bytes, rng: random.Random) -> bytes:
        lines = data.splitlines() or [b""]
        number = rng.randrange(len(lines))
        with contextlib.suppress(ValueError, RecursionError):
            lines[number] = damaged(parsed(lines[number]), rng)
        for _ in range(rng.choice([0, 0, 1])):
            place = rng.randrange(len(lines))
            lines[place : place + rng.randrange(3)] = rng.choices(lines, k=rng.randrange(3))
        text = b"".join(line + b"\n" for line in lines)
        return damage_bytes(text, rng) if rng.randrange(4) == 0 else text

    def use(self, data: bytes) -> None:
        shutil.rmtree(self.folder / world.OUT)
        (self.folder / world.OUT).mkdir()
        shutil.copytree(self.staged, self.path.parent)
        self.path.write_bytes(data)
        try:
            world.merge(self.folder, resume=True)
        except MergeError as error:
            raise Wrong(f"a journal stops the merge: {error}") from error
        if read_model(self.folder / world.OUT) != self.model:
            raise Wrong("the resumed merge is wrong")
        if wm.verify(self.folder / world.OUT, threads=1).problems:
            raise Wrong("the resumed merge does not verify")


METHODS = {
    "linear": ["weight"],
    "ties": ["weight", "density"],
    "dare_ties": ["weight", "density"],
    "task_arithmetic": ["weight", "lambda"],
    "slerp": ["t"],
    "passthrough": [],
}


class Recipe(Target):
    """A recipe is read or refused. Damaged JSON is YAML, or nearly."""

    def prepare(self) -> None:
        world.build(self.folder)
        shutil.copytree(self.folder / "model", self.folder / "other")
        self.path = self.folder / "recipe.yml"

    def document(self, rng: random.Random) -> Any:
        model, other = str(self.folder / "model"), str(self.folder / "other")
        method, names = rng.choice(list(METHODS.items()))
        values: list[Any] = [1, 0.5, "1e-5", [0, 1], [{"filter": "a.", "value": 1}, {"value": [0, 1]}]]
        parameters = {name: rng.choice(values) for name in names}
        own = {"weight": rng.choice(values)} if "weight" in names else {}
        document: dict[str, Any] = {"merge_method": method, "parameters": parameters}
        if method != "passthrough":
            document["base_model"] = rng.choice([model, {"model": {"path": model, "revision": None}}])
        document["models"] = [{"model": other, "parameters": own}]
        return document | {key: "bfloat16" for key in ("dtype", "out_dtype") if rng.random() < 0.2}

    def use(self, data: bytes) -> None:
        self.path.write_bytes(data)
        recipe = wm.Recipe.load(self.path)
        recipe.to_yaml()
        make_plan(recipe).close()

    def check(self, data: bytes) -> str:
        """A model, a method or a tensor is named by its name, not by a path."""
        try:
            self.use(data)
        except MergeError as error:
            named = (str(self.folder), "model '", "method '", "tensor '", "name the directory of a model", "convert it")
            if not any(text in str(error) for text in named):
                raise Wrong(f"the error names nothing: {error}") from error
            return "refused"
        return "read"


TARGETS: dict[str, type[Target]] = {
    kind.__name__.lower(): kind for kind in (Header, Index, Config, Manifest, Journal, Recipe)
}
