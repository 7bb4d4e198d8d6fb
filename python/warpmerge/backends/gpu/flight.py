"""Where the operands of a batch are while it is worked on.

    InPlace     tensors of the device itself: nothing is moved, work goes to the caller's stream
    Resident    the batch fits the flight's share of device memory: it is brought once, whatever the number of passes
    Streamed    it does not: every pass brings it in loads, which take turns in two halves of that share

A load is what lies in device memory together. `sweep` calls a kernel on each load and, when it combines, sends results
on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ...models.views import Memory, View
from ...tasks import DeviceSink, TensorTask
from .loads import Cuts, Load, Part, anywhere, footprint, lay_out, pack
from .scratch import Scratch
from .staging import Arrival, Inbound, Move, Outbound
from .tables import ALIGN

Kernel = Callable[[Any, int], None]  # called with the stream and the number of the load
TEMPORARIES = 256 << 20  # bytes at most of what exists during one pass only
TEMPORARY_PART = 8  # or so many times less than a flight's share of device memory


class Temporary:
    """`memory` for what exists during a pass only. `holds`: what is in it, once all that is queued has been done."""

    def __init__(self, memory: Any) -> None:
        self.memory, self.address, self.nbytes = memory, memory.address, memory.nbytes
        self.holds: Any = None


class Temporaries:
    """One for each of two streams, that grow. Whoever was given one may use it until he drops it."""

    def __init__(self, runtime: Any, streams: Sequence[Any] = ()) -> None:
        self._runtime, self._streams = runtime, streams
        self._found: list[Temporary | None] = [None, None]

    def __call__(self, half: int, nbytes: int) -> Temporary:
        found = self._found[half]
        if found is None or found.nbytes < nbytes:
            self._found[half] = None
            found = self._found[half] = Temporary(self._runtime.alloc(nbytes, self._streams))
        return found


class InPlace:
    """Tensors in the device's memory. Work goes to `stream`, in order with what the caller does there."""

    waits = False  # combining may return before the device is done

    def __init__(self, runtime: Any) -> None:
        self.stream = runtime.current_stream()
        self.temporary = Temporaries(runtime)
        self.temporary_bytes = TEMPORARIES
        self._made: dict[int, Any] = {}  # id of a view that is composed of others -> its elements

    def _address(self, view: View) -> int:
        if isinstance(view, Memory):
            return view.address
        if id(view) not in self._made:
            with self.stream.context():
                self._made[id(view)] = view.tensor()
        return self._made[id(view)].data_ptr()

    def loads(self, tasks: Sequence[TensorTask], cuts: Cuts = anywhere) -> list[Load]:
        load = Load()
        for task in tasks:
            part = Part(task, 0, task.info.count)
            part.inputs = [self._address(view) for view in task.inputs]
            part.base = self._address(task.base) if task.base else 0
            part.outputs = [sink.address for sink in task.sinks if isinstance(sink, DeviceSink)]
            load.parts.append(part)
        return [load]

    def sweep(self, loads: list[Load], kernel: Kernel) -> None:
        for number in range(len(loads)):
            kernel(self.stream, number)

    def combine(self, loads: list[Load], kernel: Kernel) -> Outgoing:
        self.sweep(loads, kernel)
        return Outgoing()


class Outgoing:
    """Results on their way to their sinks."""

    def __init__(self) -> None:
        self.arrivals: dict[tuple[int, int], Arrival] = {}
        self.futures: list[Future] = []
        self._event: Any = None

    def after(self, event: Any) -> Outgoing:
        """Itself as an event: that `event` has passed and all has arrived."""
        self._event = event
        return self

    def moves(self, load: Load, tasks: set[int]) -> list[Move]:
        moves = []
        for part, output, nbytes, offset in load.outward:
            task = part.task
            if id(task) in tasks:
                whole = task.info.count * task.out_dtype.itemsize
                key = (id(task), output)
                arrival = self.arrivals.get(key) or self.arrivals.setdefault(key, Arrival(task.sinks[output], whole))
                moves.append(Move(arrival, part.first * task.out_dtype.itemsize, nbytes, offset))
        return moves

    def synchronize(self) -> None:
        """Raises OSError if something could not be written."""
        self._event.synchronize()
        for future in self.futures:
            future.result()

    def digest(self, task: TensorTask) -> int | None:
        arrival = self.arrivals.get((id(task), 0))
        if arrival is None:  # nothing to move: an empty tensor, or one that is merged in place
            return Arrival(task.sinks[0], 0).digest if task.info.count == 0 else None
        return arrival.digest


class Workspace:
    """One flight's share of device memory: an arena in two halves, each with a stream. Grows up to `limit` bytes."""

    def __init__(self, runtime: Any, inbound: Inbound, outbound: Outbound, limit: int, shares: float) -> None:
        """`shares`: of the device memory to use that make one `limit`."""
        self.runtime, self.inbound, self.outbound, self.limit = runtime, inbound, outbound, limit
        self.shares = shares
        self.streams = [runtime.new_stream(), runtime.new_stream()]
        self._arena: Any = None
        self._clear()

    def _clear(self) -> None:
        self.scratch = Scratch(self.runtime, self.streams)
        self.temporary = Temporaries(self.runtime, self.streams)

    @property
    def temporary_bytes(self) -> int:
        return min(TEMPORARIES, self.limit // TEMPORARY_PART)

    def arena(self, nbytes: int) -> Any:
        if self._arena is None or self._arena.nbytes < nbytes:
            self._arena = None  # give back before asking for more
            self._arena = self.runtime.alloc(nbytes, self.streams)
        return self._arena

    def synchronize(self) -> None:
        for stream in self.streams:
            stream.record().synchronize()

    def release(self) -> None:
        """Gives all memory back."""
        self.synchronize()
        self._arena = None
        self._clear()


class Staged:
    """A batch from files or host memory in a workspace: `Resident` if it fits, else `Streamed`."""

    waits = True

    def __init__(self, workspace: Workspace, tasks: Sequence[TensorTask]) -> None:
        self.workspace: Any = workspace
        self.remaining = len(tasks)
        self.stream = workspace.streams[0]
        total = sum(footprint(t, t.info.count) for t in tasks)
        self.resident = total <= workspace.limit
        self._whole: Load | None = None
        self._places: dict[int, int] = {}  # id of a view -> its address
        self._parts: dict[int, Part] = {}  # id of a task -> its part
        if self.resident:
            self._bring_all(tasks)

    def _bring_all(self, tasks: Sequence[TensorTask]) -> None:
        load = lay_out([(t, 0, t.info.count) for t in tasks if t.info.count])
        arena = self.workspace.arena(max(load.nbytes, ALIGN))
        self.workspace.inbound.bring(load.inward, arena, self.stream)
        for move in load.inward:
            self._places[id(move.tensor)] = arena.address + move.offset
        for part in load.parts:
            part.outputs = [arena.address + offset for offset in part.outputs]
            self._parts[id(part.task)] = part
        self._whole = load

    def forget(self) -> None:
        """Lets go of the tasks, which refer to their flight, and of what they hold."""
        self._whole = None
        self._places, self._parts = {}, {}

    @property
    def temporary(self) -> Temporaries:
        return self.workspace.temporary

    @property
    def temporary_bytes(self) -> int:
        return self.workspace.temporary_bytes

    def loads(self, tasks: Sequence[TensorTask], cuts: Cuts = anywhere) -> list[Load]:
        workspace = self.workspace
        if self._whole is None:
            half = workspace.limit // 2 // ALIGN * ALIGN
            loads = pack(tasks, half, 2 * workspace.shares, cuts)
            # Both halves as a whole: requests of several groups take turns in them, and no one's may move.
            address = workspace.arena(2 * half).address
            for number, load in enumerate(loads):
                load.move(number % 2 * half, address)
            return loads
        load = Load()
        load.outward = self._whole.outward
        for task in tasks:
            if task.info.count == 0:
                continue
            part = self._parts.get(id(task)) or self._parts[id(task.replaces)]
            # A task that turned into a copy is another one, with fewer inputs than were brought.
            part.task = task
            part.inputs = [self._places[id(b)] for b in task.inputs]
            part.base = self._places[id(task.base)] if task.base else 0
            load.parts.append(part)
        return [load] if load.parts else []

    def sweep(self, loads: list[Load], kernel: Kernel) -> None:
        self._pass(loads, kernel, None)

    def combine(self, loads: list[Load], kernel: Kernel) -> Outgoing:
        outgoing = Outgoing()
        self._pass(loads, kernel, outgoing)
        return outgoing

    def _pass(self, loads: list[Load], kernel: Kernel, outgoing: Outgoing | None) -> None:
        workspace = self.workspace
        first, second = workspace.streams
        several = self._whole is None and len(loads) > 1
        if several:  # the second stream starts after what was queued on the first
            second.wait(first.record())
        for number, load in enumerate(loads):
            half = number % 2
            stream = workspace.streams[half]
            arena = workspace.arena(0)
            if self._whole is None:
                workspace.inbound.bring(load.inward, arena, stream)
            kernel(stream, number)
            if outgoing is not None:
                moves = outgoing.moves(load, {id(p.task) for p in load.parts})
                outgoing.futures += workspace.outbound.take(moves, arena, stream)
        if several:
            first.wait(second.record())
