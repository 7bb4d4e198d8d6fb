"""Runs tasks on a backend: each task's method generator measures, solves and combines, many tensors at a time.

Tasks are taken in batches. A batch's next request is launched as soon as its last one is answered, and several batches
are in flight, so the backend always has work while Python solves.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from ..backends.protocol import Backend
from ..errors import CheckpointError, MergeError
from ..requests import Copy, Map, TensorFunction, WeightedSum, WrittenFunction
from ..tasks import Outcome, TensorTask, Work, same_bytes

Progress = Callable[[int], None]  # bytes read since the last call


def silent(done: int) -> None: ...


def batches(
    tasks: Iterable[TensorTask], backend: Backend, most_inputs: int | None = None
) -> Iterator[list[TensorTask]]:
    """Batches of the size that suits the backend, or of at most so many inputs."""
    nbytes, most = backend.batch_bytes, most_inputs or backend.batch_inputs
    batch: list[TensorTask] = []
    size = inputs = 0
    for task in tasks:
        batch.append(task)
        size += task.nbytes
        inputs += len(task.inputs)
        if size >= nbytes or inputs >= most:
            yield batch
            batch, size, inputs = [], 0, 0
    if batch:
        yield batch


class _Flight:
    """A batch under way: each unfinished task with its generator and its present request."""

    def __init__(self, batch: list[TensorTask], backend: Backend) -> None:
        self._backend = backend
        self._steps = []
        for task in batch:
            steps = _steps(task)
            self._steps.append((steps, *next(steps)))
        self._launch()

    def _launch(self) -> None:
        self._ticket = self._backend.launch([(task, request) for _, task, request in self._steps])

    def advance(self, progress: Progress) -> bool:
        """Waits for the present requests and launches the next ones. False when the batch is complete."""
        outcomes = self._ticket.wait()
        following = []
        for (steps, task, request), outcome in zip(self._steps, outcomes, strict=True):
            progress(task.inputs[request.index].read_bytes if isinstance(request, Copy) else task.nbytes)
            if outcome.nonfinite and task.values["nonfinite"] == "error":
                if not _identical(task):
                    raise _nonfinite_error(task, outcome)
                # The same in every input: it comes out as it is, like any tensor that no model changes.
                for alone in _one_by_one(task):
                    steps = _steps(alone, frozen=True)
                    following.append((steps, *next(steps)))
                continue
            with contextlib.suppress(StopIteration):
                following.append((steps, *steps.send(outcome)))
        self._steps = following
        if following:
            self._launch()
        return bool(following)


def _steps(task: TensorTask, frozen: bool = False) -> Generator[Work, Outcome, None]:
    """Requests of one task, the combination last, each with the task that it is on; it is sent outcomes."""
    combine: Any
    if task.method is None or frozen:
        combine = Copy()
    elif task.solved is not None:
        combine = task.solved
    else:
        steps = task.method.steps(task.info, task.values)
        answer = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as stop:
                combine = stop.value
                break
            answer = (yield task, request).value
        if isinstance(combine, TensorFunction):
            combine = WrittenFunction(combine.function, combine.on_deltas)
    if isinstance(combine, Map) and task.values["nonfinite"] == "propagate":
        combine = combine.propagating()
    outcome = yield as_copy(task, combine.index) if isinstance(combine, Copy) else (task, combine)
    if task.done:
        task.done(outcome.value)


def as_copy(task: TensorTask, index: int) -> Work:
    """A copy of one input: bytes where the dtype stays, the exact value rounded once where it changes."""
    if task.inputs[index].dtype == task.out_dtype:
        return task, Copy(index)
    if len(task.inputs) > 1:  # the others are not to be read
        task = dataclasses.replace(
            task, inputs=[task.inputs[index]], labels=[task.labels[index]], cache={}, replaces=task
        )
    return task, WeightedSum((1.0,), on_deltas=False, agree=True)


def measure(
    work: Iterable[Work], backend: Backend, progress: Progress = silent, most_inputs: int | None = None
) -> Iterator[Any]:
    """The results of one measurement of each task, in order, while batches (of at most so many inputs) are in flight.

    Raises MergeError for elements that are not finite, unless a tensor is the same in all inputs.
    """
    flights: deque[tuple[list[TensorTask], Any]] = deque()
    in_flight = backend.in_flight

    def answered() -> Iterator[Any]:
        tasks, ticket = flights.popleft()
        outcomes = ticket.wait()
        backend.release(tasks)
        for task, outcome in zip(tasks, outcomes, strict=True):
            progress(task.nbytes)
            if outcome.nonfinite and task.values["nonfinite"] == "error" and not _identical(task):
                raise _nonfinite_error(task, outcome)
            yield outcome.value

    try:
        requests: dict[int, Any] = {}

        def asked() -> Iterator[TensorTask]:
            for task, request in work:
                requests[id(task)] = request
                yield task

        for batch in batches(asked(), backend, most_inputs):
            flights.append((batch, backend.launch([(task, requests.pop(id(task))) for task in batch])))
            while len(flights) >= in_flight:
                yield from answered()
        while flights:
            yield from answered()
    except BaseException:
        backend.cancel()
        raise


def _one_by_one(task: TensorTask) -> list[TensorTask]:
    """A task for each output: a copy has one."""
    if len(task.sinks) == 1:
        return [task]
    first, *others = ([sink] for sink in task.sinks)
    return [
        dataclasses.replace(task, sinks=first, cache={}),  # stays on its flight, if it is on one, and ends it
        *(dataclasses.replace(task, sinks=sinks, cache={}, flight=None) for sinks in others),
    ]


def _identical(task: TensorTask) -> bool:
    """Whether all models and the base hold the same bytes, in the dtype of the output."""
    views = [*task.inputs[: task.info.models], *([task.base] if task.base else [])]
    if len(views) == 1 or any(v.dtype != task.out_dtype for v in views):
        return False
    return same_bytes(views)


def _nonfinite_error(task: TensorTask, outcome: Outcome) -> MergeError:
    found = [(label, count) for label, count in zip(task.labels, outcome.nonfinite, strict=False) if count]
    where = " and ".join(f"{count:,} of {task.info.count:,} in '{label}'" for label, count in found)
    return CheckpointError(
        f"{task.info} has NaN or infinite elements: {where}. Repair the model, or set the parameter "
        "nonfinite to 'propagate' or 'base'."
    )


def run(tasks: Iterable[TensorTask], backend: Backend, progress: Progress = silent) -> None:
    """Merges every task. Raises MergeError, or OSError of a file; what has started is finished or dropped first."""
    flights: deque[_Flight] = deque()
    in_flight = backend.in_flight
    try:
        for batch in batches(tasks, backend):
            flights.append(_Flight(batch, backend))
            while len(flights) >= in_flight:
                _turn(flights, progress)
        while flights:
            _turn(flights, progress)
    except BaseException:
        backend.cancel()
        raise


def _turn(flights: deque[_Flight], progress: Progress) -> None:
    flight = flights.popleft()
    if flight.advance(progress):
        flights.append(flight)
