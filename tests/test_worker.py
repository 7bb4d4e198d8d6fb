"""A thread beside the caller: order, errors, and waits that signals end and that can be begun again."""

import signal
import threading
import time

import pytest
from warpmerge.worker import Worker


def test_jobs_are_done_in_order():
    worker, done = Worker(), []
    jobs = [worker.submit(lambda n=n: done.append(n)) for n in range(100)]
    jobs[-1].wait()
    assert done == list(range(100)) and all(job.done for job in jobs)
    worker.shutdown()
    worker.shutdown()


def test_an_error_is_raised_where_it_is_waited_for():
    worker = Worker()

    def fail():
        raise OSError(28, "full")

    job, next_one = worker.submit(fail), worker.submit(lambda: None)
    next_one.wait()
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            job.wait()
    worker.shutdown()


def test_the_thread_ends():
    before = threading.active_count()
    for _ in range(50):
        worker = Worker()
        worker.submit(lambda: None)
        worker.shutdown()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_waits_may_be_interrupted_again_and_again(monkeypatch):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    worker, done = Worker(), []
    try:
        job = worker.submit(lambda: (time.sleep(0.5), done.append(1)))
        interrupted = 0
        for wait in [job.wait] * 20 + [worker.shutdown] * 20:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            try:
                wait()
            except Stop:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert interrupted > 5
        job.wait()
        worker.shutdown()
        assert done == [1]
    finally:
        signal.signal(signal.SIGALRM, before)
