"""Several devices as one backend: each batch goes to the device that has been given the fewest bytes so far."""

from __future__ import annotations

from collections.abc import Sequence

from ...tasks import TensorTask, Work
from ..protocol import Backend
from .backend import DeviceBackend, DeviceTicket


class MultiDeviceBackend(Backend):
    def __init__(self, members: Sequence[DeviceBackend]) -> None:
        self.members = list(members)
        self.name = members[0].name
        self.batch_bytes, self.batch_inputs = members[0].batch_bytes, members[0].batch_inputs
        self.in_flight = sum(m.in_flight for m in members)
        for member in self.members:  # by bytes, all that are under way may be on one
            member.residencies = self.in_flight
        self.given = [0] * len(members)  # bytes

    def launch(self, work: Sequence[Work]) -> DeviceTicket:
        for member in self.members:  # a batch stays on its device until it is merged
            if any(member.holds(task) for task, _ in work):
                return member.launch(work)
        least = min(range(len(self.members)), key=self.given.__getitem__)
        self.given[least] += sum(task.nbytes for task, _ in work)
        return self.members[least].launch(work)

    def release(self, tasks: Sequence[TensorTask]) -> None:
        for member in self.members:
            member.release([task for task in tasks if member.holds(task)])

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
