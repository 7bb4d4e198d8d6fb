"""Several devices as one backend: each batch goes to the device that has been given the fewest bytes so far."""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks import Work
from .backend import DeviceBackend, Ticket


class DeviceGroup:
    def __init__(self, members: Sequence[DeviceBackend]) -> None:
        self.members = list(members)
        self.name = members[0].name
        self.batch_bytes, self.batch_tensors = members[0].batch_bytes, members[0].batch_tensors
        self.in_flight = sum(m.in_flight for m in members)
        self.given = [0] * len(members)  # bytes
        self._member_of: dict[int, int] = {}  # id of a task that is under way -> its device

    def launch(self, work: Sequence[Work]) -> Ticket:
        # What a batch measured lies on its device: it stays there until it is merged.
        known = self._member_of.get(id(work[0][0]))
        if known is None:
            known = min(range(len(self.members)), key=self.given.__getitem__)
            self.given[known] += sum(task.nbytes for task, _ in work)
        ticket = self.members[known].launch(work)
        for task, _ in work:
            self._member_of[id(task)] = known
        return ticket

    def cancel(self) -> None:
        for member in self.members:
            member.cancel()

    def close(self) -> None:
        for member in self.members:
            member.close()


def parse_devices(text: str, count: int) -> list[int]:
    """Ordinals of `cuda`, `cuda:1`, `cuda:0,2` or `cuda:all` where there are `count`. Raises ValueError."""
    kind, _, numbers = text.partition(":")
    if numbers == "all":
        return list(range(count))
    try:
        found = [int(n) for n in numbers.split(",")] if numbers else [0]
    except ValueError:
        raise ValueError(f"device {text!r} is not one of {kind}, {kind}:N, {kind}:N,M and {kind}:all") from None
    if len(set(found)) < len(found):
        raise ValueError(f"device {text!r} names a device twice")
    for n in found:
        if not 0 <= n < count:
            there = f"{kind}:0" if count == 1 else f"{kind}:0 to {kind}:{count - 1}"
            raise ValueError(f"there is no device {kind}:{n}; this machine has {there if count else 'none'}")
    return found
