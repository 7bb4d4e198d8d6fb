"""Where the operands of a batch are while it is worked on.

    InPlace     tensors of the device itself: nothing is moved, work goes to the caller's stream
    Resident    the batch fits the residency's share of device memory: it is copied once, for all passes
    Streamed    it does not: every pass copies it in tiles, which take turns in two halves of that share

A tile is the segments that lie in device memory together. `sweep` calls a kernel on each tile; `combine` also sends
results on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ...models.views import Memory, View
from ...tasks import DeviceSink, TensorTask
from .scratch import Scratch
from .staging import Arrival, Inbound, Move, Outbound
from .tables import ALIGN
from .tiles import EndsOf, Segment, Tile, anywhere, divide, footprint, lay_out

Kernel = Callable[[Any, int], None]  # called with the stream and the number of the tile
VALUE_SCRATCH = 256 << 20  # bytes at most of the value scratch of one stream's tiles
VALUE_SCRATCH_DIVISOR = 8  # or so many times less than a residency's share of device memory


class ValueScratch:
    """`memory` for the values and ranks of formulas during one pass.

    `holds`: what is in it, once all that is queued has been done.
    """

    def __init__(self, memory: Any) -> None:
        self.memory, self.address, self.nbytes = memory, memory.address, memory.nbytes
        self.holds: Any = None


class ValueScratches:
    """One for each of two streams, that grow. Each is valid while the caller holds a reference."""

    def __init__(self, runtime: Any, streams: Sequence[Any] = ()) -> None:
        self._runtime, self._streams = runtime, streams
        self._found: list[ValueScratch | None] = [None, None]

    def __call__(self, half: int, nbytes: int) -> ValueScratch:
        found = self._found[half]
        if found is None or found.nbytes < nbytes:
            self._found[half] = None
            found = self._found[half] = ValueScratch(self._runtime.alloc(nbytes, self._streams))
        return found


class InPlace:
    """Tensors in the device's memory. Work goes to `stream`, in order with what the caller does there."""

    waits = False  # combining may return before the device is done

    def __init__(self, runtime: Any) -> None:
        self.stream = runtime.current_stream()
        self.value_scratch = ValueScratches(runtime)
        self.value_scratch_bytes = VALUE_SCRATCH
        self._made: dict[int, Any] = {}  # id of a view that is composed of others -> its elements

    def _address(self, view: View) -> int:
        if isinstance(view, Memory):
            return view.address
        if id(view) not in self._made:
            with self.stream.context():
                self._made[id(view)] = view.tensor()
        return self._made[id(view)].data_ptr()

    def tiles(self, tasks: Sequence[TensorTask], ends_of: EndsOf = anywhere) -> list[Tile]:
        tile = Tile()
        for task in tasks:
            segment = Segment(task, 0, task.info.count)
            segment.inputs = [self._address(view) for view in task.inputs]
            segment.base = self._address(task.base) if task.base else 0
            segment.outputs = [sink.address for sink in task.sinks if isinstance(sink, DeviceSink)]
            tile.segments.append(segment)
        return [tile]

    def sweep(self, tiles: list[Tile], kernel: Kernel) -> None:
        for number in range(len(tiles)):
            kernel(self.stream, number)

    def combine(self, tiles: list[Tile], kernel: Kernel) -> Outgoing:
        self.sweep(tiles, kernel)
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

    def moves(self, tile: Tile, tasks: set[int]) -> list[Move]:
        moves = []
        for segment, output, nbytes, offset in tile.outward:
            task = segment.task
            if id(task) in tasks:
                whole = task.info.count * task.out_dtype.itemsize
                key = (id(task), output)
                arrival = self.arrivals.get(key) or self.arrivals.setdefault(key, Arrival(task.sinks[output], whole))
                moves.append(Move(arrival, segment.first * task.out_dtype.itemsize, nbytes, offset))
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
    """One residency's share of device memory: an arena in two halves, each with a stream. Grows up to `limit` bytes."""

    def __init__(self, runtime: Any, inbound: Inbound, outbound: Outbound, limit: int, shares: float) -> None:
        """`shares`: of the device memory to use that make one `limit`."""
        self.runtime, self.inbound, self.outbound, self.limit = runtime, inbound, outbound, limit
        self.shares = shares
        self.streams = [runtime.new_stream(), runtime.new_stream()]
        self._arena: Any = None
        self._clear()

    def _clear(self) -> None:
        self.scratch = Scratch(self.runtime, self.streams)
        self.value_scratch = ValueScratches(self.runtime, self.streams)

    @property
    def value_scratch_bytes(self) -> int:
        return min(VALUE_SCRATCH, self.limit // VALUE_SCRATCH_DIVISOR)

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
        self._whole: Tile | None = None
        self._addresses: dict[int, int] = {}  # id of a view -> its address
        self._segments: dict[int, Segment] = {}  # id of a task -> its segment
        if self.resident:
            self._bring_all(tasks)

    def _bring_all(self, tasks: Sequence[TensorTask]) -> None:
        tile = lay_out([(t, 0, t.info.count) for t in tasks if t.info.count])
        arena = self.workspace.arena(max(tile.nbytes, ALIGN))
        self.workspace.inbound.bring(tile.inward, arena, self.stream)
        for move in tile.inward:
            self._addresses[id(move.tensor)] = arena.address + move.offset
        for segment in tile.segments:
            segment.outputs = [arena.address + offset for offset in segment.outputs]
            self._segments[id(segment.task)] = segment
        self._whole = tile

    def forget(self) -> None:
        """Lets go of the tasks, which refer to their residency, and of what they hold."""
        self._whole = None
        self._addresses, self._segments = {}, {}

    @property
    def value_scratch(self) -> ValueScratches:
        return self.workspace.value_scratch

    @property
    def value_scratch_bytes(self) -> int:
        return self.workspace.value_scratch_bytes

    def tiles(self, tasks: Sequence[TensorTask], ends_of: EndsOf = anywhere) -> list[Tile]:
        workspace = self.workspace
        if self._whole is None:
            half = workspace.limit // 2 // ALIGN * ALIGN
            tiles = divide(tasks, half, 2 * workspace.shares, ends_of)
            # Both halves as a whole: requests of several groups take turns in them, and no one's may move.
            address = workspace.arena(2 * half).address
            for number, tile in enumerate(tiles):
                tile.move(number % 2 * half, address)
            return tiles
        tile = Tile()
        tile.outward = self._whole.outward
        for task in tasks:
            if task.info.count == 0:
                continue
            segment = self._segments.get(id(task)) or self._segments[id(task.narrows)]
            # A task that turned into a copy is another one, with fewer inputs than were brought.
            segment.task = task
            segment.inputs = [self._addresses[id(b)] for b in task.inputs]
            segment.base = self._addresses[id(task.base)] if task.base else 0
            tile.segments.append(segment)
        return [tile] if tile.segments else []

    def sweep(self, tiles: list[Tile], kernel: Kernel) -> None:
        self._pass(tiles, kernel, None)

    def combine(self, tiles: list[Tile], kernel: Kernel) -> Outgoing:
        outgoing = Outgoing()
        self._pass(tiles, kernel, outgoing)
        return outgoing

    def _pass(self, tiles: list[Tile], kernel: Kernel, outgoing: Outgoing | None) -> None:
        workspace = self.workspace
        first, second = workspace.streams
        several = self._whole is None and len(tiles) > 1
        if several:  # the second stream starts after what was queued on the first
            second.wait(first.record())
        for number, tile in enumerate(tiles):
            half = number % 2
            stream = workspace.streams[half]
            arena = workspace.arena(0)
            if self._whole is None:
                workspace.inbound.bring(tile.inward, arena, stream)
            kernel(stream, number)
            if outgoing is not None:
                moves = outgoing.moves(tile, {id(p.task) for p in tile.segments})
                outgoing.futures += workspace.outbound.take(moves, arena, stream)
        if several:
            first.wait(second.record())
