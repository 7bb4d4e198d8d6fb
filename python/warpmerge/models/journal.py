"""What is said of finished shards: by the journal of a merge under way, and by the manifest of a published one.

The first line of the journal is the fingerprint of the merge. Each other line names a shard and gives the digests of
its tensors, in order. Whoever reads a journal gets claims: a shard is kept only if its bytes have these digests. So it
does not matter what a damaged journal says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import _core, system
from .documents import JOURNAL_LIMIT, MANIFEST_LIMIT, parse_json, read_json
from .names import MANIFEST

JOURNAL = "journal"  # no suffix, so that no file taken over from a model has this name
NEW = "journal.new"
INTERVAL = 1.0  # seconds of work that a loss of power may cost besides the shards that are not finished

Claims = dict[str, list[int]]  # the digests of each shard's tensors, in order


class OutputShard(NamedTuple):
    """A file of the output: its header, and its size with all tensors."""

    name: str
    header: bytes
    nbytes: int


class Journal:
    """The journal in a staging directory, as the merge that holds the directory's lock writes it."""

    def __init__(self, staging: Path, fingerprint: str, claims: Mapping[str, Sequence[int]], *, sync: bool) -> None:
        """Replaces the journal by one that makes these claims. There is an old or a new one at any moment."""
        self._staging, self._sync = staging, sync
        new = staging / NEW
        text = "".join([fingerprint, "\n", *(_line(name, digests) for name, digests in claims.items())])
        system.write_file(new, text.encode(), sync=sync)
        system.calls.rename(new, staging / JOURNAL)
        self._file = _core.File(system.calls.open(staging / JOURNAL, system.WRITE))
        self._end = len(text)
        self.sync()

    def add(self, name: str, digests: Sequence[int]) -> None:
        """The shard is written, and on the disk if that is wanted.

        The line itself need not be there at once: without it the shard is merged again.
        """
        line = _line(name, digests).encode()
        system.write_at(self._file.fd, line, self._end)
        self._end += len(line)
        if time.monotonic() - self._synced > INTERVAL:
            self.sync()

    def sync(self) -> None:
        """The lines, and the names of the staged files, are on the disk if that is wanted."""
        if self._sync:
            system.calls.fdatasync(self._file.fd)
            system.sync_directory(self._staging)
        self._synced = time.monotonic()


def _line(name: str, digests: Sequence[int]) -> str:
    return json.dumps({"name": name, "digests": "".join(f"{d:016x}" for d in digests)}) + "\n"


def journal_claims(staging: Path, fingerprint: str, names: Collection[str]) -> Claims:
    """What the journal of this merge claims, up to the first line that is damaged."""
    claims: Claims = {}
    try:
        first, *lines = system.read_file(staging / JOURNAL, JOURNAL_LIMIT).split(b"\n")
        for line in lines if first == fingerprint.encode() else ():
            name, digests = _claim(parse_json(line))
            if name not in names:
                break
            claims[name] = digests
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no journal, or its last line was being written when the machine stopped
    return claims


def _claim(record: Any) -> tuple[str, list[int]]:
    name, text = record["name"], record["digests"]
    digests = [_digest(text[at : at + 16]) for at in range(0, len(text), 16)]
    if not isinstance(name, str):
        raise TypeError
    return name, digests


def _digest(text: Any) -> int:
    if not isinstance(text, str) or len(text) != 16:
        raise ValueError
    return int(text, 16)


def manifest_claims(directory: Path, fingerprint: str) -> Claims | None:
    """What the manifest of this merge claims. None if the directory has no manifest of this merge."""
    claims: Claims = {}
    try:
        manifest = read_json(directory / MANIFEST, MANIFEST_LIMIT)
        if manifest["fingerprint"] != fingerprint:
            return None
        for record in manifest["tensors"].values():
            claims.setdefault(record["shard"], []).append(_digest(record["digest"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return claims
