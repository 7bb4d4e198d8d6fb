"""Runs requests on a backend: each tensor's method measures, decides and combines, many tensors at a time.

Tasks are taken in batches. A batch's next requests are launched as soon as its last ones are answered, and several
batches are in flight, so the backend always has work while Python decides. This is the only such loop: merges of files
and of memory, and measurements of whole models, differ in the steps that their tasks take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..backends.protocol import Backend
from ..dtypes import FLOAT16
from ..errors import CheckpointError, MergeError
from ..requests import Combine, Copy, WeightedSum
from ..tasks import Request, TensorTask, same_bytes

Progress = Callable[[int], None]  # bytes read since the last call
Done = Callable[[TensorTask, Any], None]  # a task and the value of its last outcome


def silent(done: int) -> None: ...


def ignored(task: TensorTask, value: Any) -> None: ...


class Step(NamedTuple):
    """A request of a task. `steps`: the method's generator, which gets the answer; None: this is the last request."""

    task: TensorTask
    request: Request
    steps: Generator[Any, Any, Any] | None = None


def in_flight(
    steps: Iterable[Step],
    backend: Backend,
    done: Done = ignored,
    progress: Progress = silent,
    most_inputs: int | None = None,
) -> Iterator[None]:
    """Takes the steps of all tasks. Yields after each answer of a batch.

    Batches end in order if each task takes one step.

    Args:
        steps: the first step of each task.
        done: called with each task and the value of its last outcome.
        progress: called with the bytes that a batch has read.
        most_inputs: of a batch; the default is the backend's.

    Raises:
        MergeError, or OSError of a file. Work may then be under way: callers are within `backend.guard()`.
    """
    under_way: deque[_Batch] = deque()
    for batch in _batches(steps, backend, most_inputs or backend.batch_inputs):
        under_way.append(_Batch(batch, backend))
        while len(under_way) >= backend.in_flight:
            _turn(under_way, done, progress)
            yield
    while under_way:
        _turn(under_way, done, progress)
        yield


def run(
    tasks: Iterable[TensorTask],
    backend: Backend,
    done: Done = ignored,
    progress: Progress = silent,
    solved: Callable[[str], Any] | None = None,
) -> None:
    """Merges every task. `solved`: the combination for a tensor's name, where the whole model has decided it."""
    for _ in in_flight((_first(task, solved) for task in tasks), backend, done, progress):
        pass


def measure(
    work: Iterable[tuple[TensorTask, Request]],
    backend: Backend,
    progress: Progress = silent,
    most_inputs: int | None = None,
) -> Iterator[Any]:
    """The results of one measurement of each task, in order.

    Raises MergeError for elements that are not finite, unless a tensor is the same in all inputs.
    """
    answers: deque[Any] = deque()
    steps = (Step(task, request) for task, request in work)
    for _ in in_flight(steps, backend, lambda task, value: answers.append(value), progress, most_inputs):
        while answers:
            yield answers.popleft()


def _batches(steps: Iterable[Step], backend: Backend, most_inputs: int) -> Iterator[list[Step]]:
    """Batches of the size that suits the backend, or of at most so many inputs."""
    batch: list[Step] = []
    size = inputs = 0
    for step in steps:
        batch.append(step)
        size += step.task.nbytes
        inputs += len(step.task.group.inputs)
        if size >= backend.batch_bytes or inputs >= most_inputs:
            yield batch
            batch, size, inputs = [], 0, 0
    if batch:
        yield batch


class _Batch:
    """A batch under way: the present step of each unfinished task."""

    def __init__(self, batch: list[Step], backend: Backend) -> None:
        self._backend, self._steps = backend, batch
        self._launch()

    def _launch(self) -> None:
        self._ticket = self._backend.launch([(task, request) for task, request, _ in self._steps])

    def advance(self, done: Done, progress: Progress) -> bool:
        """Waits for the present requests and launches the next ones. False when the batch is complete."""
        outcomes = self._ticket.wait()
        following: list[Step] = []
        read, measured = 0, []
        for (task, request, steps), outcome in zip(self._steps, outcomes, strict=True):
            read += task.inputs[request.index].read_bytes if isinstance(request, Copy) else task.nbytes
            if outcome.nonfinite:
                *counts, too_large = outcome.nonfinite
                if any(counts) and task.values["nonfinite"] == "error":
                    if not _identical(task):
                        raise _nonfinite_error(task, counts)
                    if task.sinks:
                        # The same in every input: it comes out as it is, like any tensor that no model changes.
                        following += [_copy(alone, 0) for alone in _one_by_one(task)]
                        continue
                if too_large and not _settled(task, request):
                    raise _overflow_error(task, too_large)
            if steps is not None:
                following.append(_next(task, steps, outcome.value))
                continue
            done(task, outcome.value)
            if not task.sinks:
                measured.append(task)
        if measured:
            self._backend.release(measured)
        progress(read)
        self._steps = following
        if following:
            self._launch()
        return bool(following)


def _turn(under_way: deque[_Batch], done: Done, progress: Progress) -> None:
    batch = under_way.popleft()
    if batch.advance(done, progress):
        under_way.append(batch)


def _first(task: TensorTask, solved: Callable[[str], Any] | None) -> Step:
    """The first step of a task that is merged or copied."""
    group = task.group
    if group.method is None:
        _check_same(task)
        return _copy(task, 0)
    if solved is not None:
        return _last(task, group.carried_out(solved(group.tensors.names[task.row])))
    combine = group.combine(task.row)
    if combine is not None:
        return _last(task, combine)
    return _next(task, group.method.steps(task.info, group.values), None)


def _next(task: TensorTask, steps: Generator[Any, Any, Any], answer: Any) -> Step:
    try:
        return Step(task, steps.send(answer), steps)
    except StopIteration as end:
        return _last(task, task.group.carried_out(end.value))


def _last(task: TensorTask, combine: Combine) -> Step:
    """The step that writes the result."""
    return _copy(task, combine.index) if isinstance(combine, Copy) else Step(task, combine)


def _copy(task: TensorTask, index: int) -> Step:
    """A copy of one input: bytes where the dtype stays, the exact value rounded once where it changes."""
    if task.group.inputs[index].dtype(task.row) == task.out_dtype:
        return Step(task, Copy(index))
    if len(task.group.inputs) > 1 or task.group.base is not None:  # the others are not to be read
        narrowed = TensorTask(task.group.only(index), task.row, task.sinks, narrows=task)
        narrowed.residency, task = task.residency, narrowed
    return Step(task, WeightedSum((1.0,), on_deltas=False, agree=True))


def _one_by_one(task: TensorTask) -> list[TensorTask]:
    """A task for each output: a copy has one."""
    if len(task.sinks) == 1:
        return [task]
    alone = [TensorTask(task.group, task.row, [sink]) for sink in task.sinks]
    alone[0].residency = task.residency  # it ends the task's residency
    return alone


def _check_same(task: TensorTask) -> None:
    """Raises CheckpointError if the models differ in a tensor that is never averaged."""
    first, *others = (column.view(task.row) for column in (task.group.inputs[0], *task.group.agreeing))
    for view, label in zip(others, task.labels[1:], strict=False):
        if view.count != first.count or not same_bytes([first, view]):
            raise CheckpointError(
                f"{task.info} ({first.dtype}) differs between '{task.labels[0]}' and '{label}' and cannot be averaged; "
                "give a base, in a recipe base_model, to take it from."
            )


def _identical(task: TensorTask) -> bool:
    """Whether all models and the base hold the same bytes, in the dtype of the output."""
    views = [*task.inputs[: task.info.models], *([task.base] if task.base else [])]
    if len(views) == 1 or any(v.dtype != task.out_dtype for v in views):
        return False
    return same_bytes(views)


def _settled(task: TensorTask, request: Request) -> bool:
    """Whether results that are too large have been written as the task's values say."""
    policy = task.values["nonfinite"]
    from_base = not isinstance(request, Copy) and request.on_deltas and task.base is not None
    return policy == "propagate" or (policy == "base" and from_base)


def _overflow_error(task: TensorTask, found: int) -> MergeError:
    instead = "write out_dtype: bfloat16 (or float32)" if task.out_dtype == FLOAT16 else "scale the models down"
    policies = "'propagate' or 'base'" if task.base is not None else "'propagate'"
    return CheckpointError(
        f"{task.info}: {found:,} of {task.info.count * len(task.sinks):,} merged elements are too large for "
        f"{task.out_dtype}; {instead}, or set the parameter nonfinite to {policies}."
    )


def _nonfinite_error(task: TensorTask, counts: Sequence[int]) -> MergeError:
    found = [(label, count) for label, count in zip(task.labels, counts, strict=False) if count]
    where = " and ".join(f"{count:,} of {task.info.count:,} in '{label}'" for label, count in found)
    return CheckpointError(
        f"{task.info} has NaN or infinite elements: {where}. Repair the model, or set the parameter "
        "nonfinite to 'propagate' or 'base'."
    )
