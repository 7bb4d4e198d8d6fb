"""A device as a backend of the engine: a batch's operands take up residency, its requests become launches.

Work on files and host memory runs in a thread of its own, so that reading, copying, computing and writing of the
batches in flight overlap. Work on the device's own tensors runs where it is asked for, on the caller's stream.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from ... import _core
from ...errors import DeviceError
from ...requests import Copy, TensorFunction, WrittenFunction
from ...tasks import DeviceSink, Outcome, TensorTask, Work
from ...threads import thread_count
from ...units import show_size
from ..protocol import Backend
from .execution import LaunchGroup, grouped
from .lowering import Lowering, lifted
from .requests import BINS, steps
from .residency import InPlace, Staged, Workspace
from .scratch import Scratch
from .staging import BUFFER_BYTES, BUFFERS, IO_TILE, Arrival, Cancelled, Inbound, Outbound, wait_for
from .tables import ALIGN, CHUNK
from .tiles import footprint

IN_FLIGHT = 6  # batches: some being read, one computed, some being written
BATCH_BYTES = 64 << 20  # input bytes of a batch
BATCH_INPUTS = 2048  # tensors of a batch, inputs counted: counters of selections are 16 kB for each
SCRATCH_SHARE = 0.2  # of the device memory: tables, partial sums, counters and, half of it, values of formulas
HEADROOM = 512 << 20  # bytes left to others by default


class DeviceBackend(Backend):
    """`budget`: bytes of device memory to use, None: what is free less a margin. `buffer_bytes`: of the pinned rings.

    `resident`: all work is on tensors of the device, so that nothing limits a batch.
    """

    def __init__(
        self,
        name: str,
        runtime: Any,
        kernels: Any,
        *,
        threads: int | None = None,
        budget: int | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        batch_bytes: int = BATCH_BYTES,
        resident: bool = False,
    ) -> None:
        self.name, self.runtime, self.kernels = name, runtime, kernels
        self._lowering = Lowering(kernels)
        self.batch_bytes, self.batch_inputs, self.in_flight = batch_bytes, BATCH_INPUTS, IN_FLIGHT
        self.residencies = IN_FLIGHT  # that may be on this device at once; more if it is one of several
        if resident:
            self.batch_bytes, self.batch_inputs = 2**62, 8 * BATCH_INPUTS
        if budget is not None:
            counters = int(budget * SCRATCH_SHARE / 2) // IN_FLIGHT // (8 * BINS)
            self.batch_inputs = max(1, min(self.batch_inputs, counters))
        self._threads, self._buffer_bytes = thread_count(threads), buffer_bytes
        self._budget = budget
        self._cancelled = threading.Event()
        self._halved = False
        self._rings: Any = None  # Inbound and Outbound
        self._pools: list[Any] = []
        self._thread: Any = None  # a ThreadPoolExecutor
        self._limit = 0
        self._workspaces: list[Workspace] = []
        self._latest: Any = None  # the workspace that was taken last
        self._idle: list[Workspace] = []

    def launch(self, work: Sequence[Work]) -> DeviceTicket:
        asked = work
        work = [(task, self._lowering.lowered(task, request)) for task, request in work]
        if all(_in_place(task) for task, _ in work):
            try:
                return DeviceTicket(asked, self._start_in_place(work))
            except MemoryError as error:
                raise DeviceError(f"{error}. Free some of it, or merge fewer tensors at a time.") from None
        self._prepare()
        return DeviceTicket(asked, self._thread.submit(self._start_staged, work))

    def holds(self, task: TensorTask) -> bool:
        """Whether a residency of this device has the task's operands."""
        residency = task.residency
        return residency is not None and residency.workspace is not None and residency.workspace.runtime is self.runtime

    def cancel(self) -> None:
        """Drops what has not started and waits for what has. After an interrupt it can be called again."""
        if self._thread is None:
            return
        self._cancelled.set()
        try:
            self._thread.shutdown(wait=True, cancel_futures=True)
            for pool in self._pools:
                pool.settle()
            self._rings[1].close()
            for workspace in self._workspaces:  # their memory must outlive what is queued on it
                workspace.release()
        except Exception:  # of the device, which is not usable any more
            self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        self._thread, self._rings = None, None
        self._workspaces, self._idle, self._latest = [], [], None

    def close(self) -> None:
        self.cancel()

    # --- tensors of the device --------------------------------------------------------------------------------------

    def _start_in_place(self, work: Sequence[Work]) -> Pending:
        residency = InPlace(self.runtime)
        scratch = Scratch(self.runtime)
        pending = Pending(self, len(work))
        rest = []
        for position, (task, request) in enumerate(work):
            if isinstance(request, Copy):
                with residency.stream.context():
                    _on_device(task).reshape(-1).copy_(task.inputs[request.index].tensor().reshape(-1))
                pending.answer(position, Outcome(None))
            elif isinstance(request, TensorFunction):
                with residency.stream.context():
                    pending.answer(position, _tensor_function(task, request))
            else:
                rest.append(position)
        self._queue(pending, work, rest, residency, scratch)
        return pending

    # --- files and host memory --------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self._thread is not None:
            return
        self._thread = ThreadPoolExecutor(1, f"warpmerge-{self.runtime.name}")
        if not self._pools:
            self._pools = [_core.Pool(self._threads), _core.Pool(self._threads)]
        readers, writers = self._pools
        self._cancelled = threading.Event()
        cancelled = self._cancelled.is_set
        self._rings = (
            Inbound(self.runtime, readers, cancelled, self._buffer_bytes, BUFFERS),
            Outbound(self.runtime, writers, cancelled, self._buffer_bytes, BUFFERS),
        )
        if not self._limit:
            free, _ = self.runtime.memory()
            budget = self._budget or max(free - HEADROOM, free // 2)
            self._limit = int(budget * (1 - SCRATCH_SHARE)) // self.residencies

    def _start_staged(self, work: Sequence[Work]) -> Pending:
        items = {i: self._copy(task, request) for i, (task, request) in enumerate(work) if isinstance(request, Copy)}
        launch = self._pools[1].submit(list(items.values()), work) if items else None
        for i in items:  # measured before, and found to need no merging
            if work[i][0].residency is not None:
                self.finished(work[i][0].residency, 1)
        rest = [i for i, (_, request) in enumerate(work) if not isinstance(request, Copy | TensorFunction)]
        try:
            pending = self._start_resident(work, rest)
        except MemoryError as error:
            if self._halved:
                raise self._too_little(error) from None
            error.__traceback__ = None  # its frames hold what is to be given back
            limit = self._halve([work[i][0] for i in rest])
            try:
                pending = self._start_resident(work, rest, limit)
            except MemoryError as again:
                raise self._too_little(again) from None
        pending.copying = launch
        pending.copied = items
        for position, (task, request) in enumerate(work):
            if isinstance(request, TensorFunction):
                pending.answer(
                    position, _tensor_function(task, request, device=self.runtime.name, threads=self._threads)
                )
                if isinstance(request, WrittenFunction) and task.residency is not None:
                    self.finished(task.residency, 1)
        return pending

    def _start_resident(self, work: Sequence[Work], positions: Sequence[int], limit: int | None = None) -> Pending:
        """Starts what is on a residency already, and the others on a new one."""
        pending = Pending(self, len(work))
        held = [i for i in positions if self.holds(work[i][0])]
        others = [i for i in positions if not self.holds(work[i][0])]
        residencies = [
            (self._residency([work[i][0] for i in share], limit), share) for share in (held, others) if share
        ]
        for residency, share in residencies:
            residency.workspace.scratch.reset()
            self._queue(pending, work, share, residency, residency.workspace.scratch)
        return pending

    def _halve(self, tasks: Sequence[TensorTask]) -> int:
        """Something else has taken memory since it was counted: a limit with which these tasks need half, in tiles."""
        self._halved = True
        self._limit //= 2
        wanted = sum(footprint(t, t.info.count) for t in tasks)
        least = 2 * max(footprint(t, min(t.info.count, CHUNK)) + ALIGN for t in tasks)
        limit = min(self._limit, max(wanted // 2, least))
        used = [self._latest]
        for task in tasks:
            if task.residency is not None:
                used.append(task.residency.workspace)
                task.residency.workspace = None
                task.residency = None
        for workspace in used:
            if workspace is not None and workspace not in self._idle:
                self._idle.append(workspace)
        for workspace in self._idle:
            workspace.release()
        return limit

    def _too_little(self, error: MemoryError) -> DeviceError:
        return DeviceError(
            f"{error}. Free some of it, pass --device-memory with less than "
            f"{show_size(self._limit * self.residencies)}, or use --device cpu."
        )

    def _copy(self, task: TensorTask, request: Copy) -> Any:
        source = task.inputs[request.index]
        return self._pools[1].copy(source.native(), source.nbytes, IO_TILE, Arrival(task.sinks[0], 0).output(0))

    def _residency(self, tasks: Sequence[TensorTask], limit: int | None = None) -> Staged:
        """The residency that these tasks are on, or a new one."""
        if self.holds(tasks[0]):
            self._latest = tasks[0].residency.workspace
            return tasks[0].residency
        if self._idle:
            workspace = self._idle.pop()
        else:
            inbound, outbound = self._rings
            workspace = Workspace(self.runtime, inbound, outbound, self._limit, self.residencies / (1 - SCRATCH_SHARE))
            self._workspaces.append(workspace)
        workspace.limit = limit or self._limit
        self._latest = workspace
        residency = Staged(workspace, tasks)
        for task in tasks:
            task.residency = residency
        return residency

    def _queue(
        self, pending: Pending, work: Sequence[Work], positions: Sequence[int], residency: Any, scratch: Scratch
    ) -> None:
        for group in grouped([work[i] for i in positions]):
            group.positions = [positions[p] for p in group.positions]
            pending.add(group, residency, steps(group, residency, self.kernels, scratch))

    def finished(self, residency: Staged, tasks: int) -> None:
        """So many tasks of a residency are merged; with the last one its workspace is free again."""
        residency.remaining -= tasks
        if residency.remaining == 0 and residency.workspace is not None:
            self._idle.append(residency.workspace)
            residency.workspace = None
            residency.forget()

    def release(self, tasks: Sequence[TensorTask]) -> None:
        """Ends the residencies of tasks that were measured only."""
        for task in tasks:
            residency, task.residency = task.residency, None
            if residency is not None:
                self.finished(residency, 1)


class Pending:
    """A batch's requests under way: those that have to look at results of the device before they go on."""

    def __init__(self, backend: DeviceBackend, count: int) -> None:
        self.backend = backend
        self._outcomes: list[Any] = [None] * count  # Outcomes
        self.waiting: list[tuple[LaunchGroup, Any, Any, Any]] = []  # group, residency, generator, its event
        self.copying: Any = None
        self.copied: dict[int, Any] = {}

    def answer(self, position: int, outcome: Outcome) -> None:
        self._outcomes[position] = outcome

    def add(self, group: LaunchGroup, residency: Any, generator: Any) -> None:
        try:
            self.waiting.append((group, residency, generator, next(generator)))
        except StopIteration as stop:
            for position, outcome in zip(group.positions, stop.value, strict=True):
                self.answer(position, outcome)
            if isinstance(residency, Staged) and group.combines:
                self.backend.finished(residency, len(group.tasks))

    def resume(self) -> None:
        """Goes on with every request; only after its event has been waited for."""
        waiting, self.waiting = self.waiting, []
        for group, residency, generator, _ in waiting:
            self.add(group, residency, generator)

    def outcomes(self) -> list[Outcome]:
        for position, item in self.copied.items():
            self.answer(position, Outcome(item.digest))
        return self._outcomes


class DeviceTicket:
    def __init__(self, asked: Sequence[Work], pending: Pending | Future) -> None:
        self._asked, self._pending = asked, pending

    def wait(self) -> list[Outcome]:
        """Blocks until all is done. Raises OSError if a file could not be written or read, DeviceError for memory."""
        try:
            pending = self._pending.result() if isinstance(self._pending, Future) else self._pending
            while pending.waiting:
                for *_, event in pending.waiting:
                    event.synchronize()
                pending.resume()
            if pending.copying is not None:
                wait_for(pending.copying, lambda: False)
            found = zip(self._asked, pending.outcomes(), strict=True)
            return [Outcome(lifted(*work, outcome.value), outcome.nonfinite) for work, outcome in found]
        except (Cancelled, CancelledError):
            raise RuntimeError("waited for a batch that was cancelled") from None


def _tensor_function(task: TensorTask, request: TensorFunction, **options: Any) -> Outcome:
    from .. import tensor_function  # needs torch

    return tensor_function.carry_out(task, request, **options)


def _on_device(task: TensorTask) -> Any:
    """The torch tensor that the result goes to."""
    sink = task.sinks[0]
    assert isinstance(sink, DeviceSink)
    return sink.owner


def _in_place(task: TensorTask) -> bool:
    return task.inputs[0].device is not None if not task.sinks else isinstance(task.sinks[0], DeviceSink)
