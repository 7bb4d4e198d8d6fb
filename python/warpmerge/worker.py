"""A thread that does what it is given, in order, beside the one that gives it.

The executor of the standard library waits at conditions, which are written in Python: a signal between two of their
instructions leaves a lock in a state that nobody expects. What is waited at here is a lock of the interpreter, and
whether something is done is a flag. So any wait can be interrupted, and begun again.
"""

from __future__ import annotations

import _thread
import queue
from collections.abc import Callable

POLL = 0.1  # seconds


class Job:
    """Something to be done. `done` becomes true when it has been, or has failed with `error`."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self.done = False
        self.error: BaseException | None = None
        self._under_way = _thread.allocate_lock()
        self._under_way.acquire()

    def run(self) -> None:
        try:
            self._action()
        except BaseException as error:  # the one who waits for it gets it
            self.error = error
        finally:
            del self._action
            self.done = True
            self._under_way.release()

    def wait(self) -> None:
        """Waits until it is done. Raises what it raised."""
        while not self.done:
            if self._under_way.acquire(timeout=POLL):
                self._under_way.release()
        if self.error is not None:
            raise self.error


class Worker:
    """The thread. It ends with `shutdown`."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._started = False

    def start(self) -> None:
        """Starts the thread, if it is not there. Raises RuntimeError if there can be no more threads."""
        if not self._started:
            _thread.start_new_thread(_serve, (self._jobs,))
            self._started = True

    def submit(self, action: Callable[[], object]) -> Job:
        """Has something done after all that was given before."""
        self.start()
        job = Job(action)
        self._jobs.put(job)
        return job

    def shutdown(self) -> None:
        """Waits until all is done. After an interrupt it can be called again."""
        if self._started:
            self.submit(_nothing).wait()
            self._started = False
            self._jobs.put(None)


def _nothing() -> None: ...


def _serve(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # what it holds is let go of now, not with the next one
