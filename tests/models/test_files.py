"""Files of the native module: who closes them, which may be opened again, and guards that signals do not end."""

import errno
import os
import signal
import threading
import weakref

import numpy as np
import pytest
import warpmerge.models  # noqa: F401  says what an input that cannot be read raises
from warpmerge import CheckpointError, _core, system

SIZE = 4096


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def file_of(path, number=0):
    if not path.exists():
        path.write_bytes(bytes([number]) * SIZE)
    return _core.File(os.fsencode(path), system.identity(os.stat(path)))


@pytest.fixture
def room():
    """Lets only so many files be open at once."""
    yield _core.File.limit_open
    _core.File.limit_open(512)


@pytest.fixture
def watched():
    """The calls of native code, and what is answered to them."""
    calls, answers = [], {}

    def watch(call, fd, offset, nbytes, data):
        calls.append((call, offset, nbytes, data))
        return answers[call].pop(0) if answers.get(call) else 0

    _core.watch(watch)
    yield calls, answers
    _core.watch(None)


def test_a_file_is_opened_when_it_is_read_and_closed_with_its_last_user(tmp_path):
    before = descriptors()
    file = file_of(tmp_path / "a", 7)
    view = _core.View(0, file=file)
    assert descriptors() == before
    assert file.read(10, 3) == b"\7\7\7"
    assert descriptors() == before + 1
    del file
    assert descriptors() == before + 1
    del view
    assert descriptors() == before


def test_files_take_turns(tmp_path, room):
    """40 files with room for 3, read by several threads at once."""
    before = descriptors()
    room(3)
    files = [file_of(tmp_path / str(n), n) for n in range(40)]
    wrong, most = [], []

    def read(start):
        for step in range(200):
            n = (start + step * 7) % 40
            if files[n].read(step, 2) != bytes([n]) * 2:
                wrong.append(n)
            most.append(descriptors() - before)

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert max(most) <= 3 + 2  # and those by which the threads list descriptors


@pytest.mark.parametrize("change", ["rewritten", "replaced", "shorter", "gone"])
def test_a_file_must_be_the_same_whenever_it_is_opened(tmp_path, room, change):
    room(1)
    path = tmp_path / "a"
    file, other = file_of(path, 1), file_of(tmp_path / "b", 2)
    assert file.read(0, 1) == b"\1" and other.read(0, 1) == b"\2"  # which closes the first
    if change == "rewritten":
        path.write_bytes(bytes(SIZE))
    elif change == "shorter":
        os.truncate(path, 100)
    else:
        path.unlink()
        if change == "replaced":
            path.write_bytes(b"\1" * SIZE)
    message = "No such file" if change == "gone" else "changed while it was being read"
    with pytest.raises(CheckpointError, match=message):
        file.read(0, 1)


def test_a_closed_file(tmp_path):
    file = file_of(tmp_path / "a", 1)
    file.read(0, 1)
    before = descriptors()
    file.close()
    file.close()
    assert descriptors() == before - 1
    with pytest.raises(CheckpointError, match="it is closed"):
        file.read(0, 1)


def test_calls_are_completed(tmp_path, watched):
    """After a signal, and after a part."""
    calls, answers = watched
    file = _core.File(os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT))
    answers |= {"pwrite": [errno.EINTR, -3, -1], "pread": [errno.EINTR, -2], "close": [errno.EINTR]}
    file.write(b"0123456789", 5)
    assert file.read(5, 10) == b"0123456789"
    file.close()
    assert [(c, at, n) for c, at, n, _ in calls] == [
        ("pwrite", 5, 10),
        ("pwrite", 5, 10),
        ("pwrite", 8, 7),
        ("pwrite", 9, 6),
        ("pread", 5, 10),
        ("pread", 5, 10),
        ("pread", 7, 8),
        ("close", 0, 0),
    ]
    assert calls[2][3] == b"3456789"


def test_other_files_may_go_while_one_is_opened_or_closed(tmp_path, room):
    """As when Python collects garbage within a watcher."""
    room(2)
    held = {name: file_of(tmp_path / name) for name in "abcdef"}
    for name in "ab":
        held[name].read(0, 1)

    def let_go(call, *_):
        if held and call in ("open", "close"):
            held.popitem()[1].read(0, 1)
        return 0

    first = held.pop("a")
    _core.watch(let_go)
    try:
        for _ in range(4):
            file_of(tmp_path / "g").read(0, 1)
            first.read(0, 1)
            first.put_away()
        first.close()
    finally:
        _core.watch(None)
    assert not held


def test_what_fails_is_said(tmp_path, watched):
    _, answers = watched
    file = file_of(tmp_path / "a")
    output = _core.File(os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT))
    answers |= {"open": [errno.EACCES], "pread": [errno.EIO], "pwrite": [errno.ENOSPC], "close": [errno.EDQUOT]}
    with pytest.raises(CheckpointError, match=r"cannot read .*/a: Permission denied"):
        file.read(0, 1)
    with pytest.raises(CheckpointError, match=r"cannot read .*/a: Input/output error"):
        file.read(0, 1)
    with pytest.raises(OSError) as failed:
        output.write(b"1", 0)
    assert failed.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as failed:
        output.close()
    assert failed.value.errno == errno.EDQUOT


def test_a_launch_holds_its_owner_until_it_is_settled():
    class Owner:
        pass

    owner, pool = Owner(), _core.Pool(1)
    gone = weakref.ref(owner)
    source, target = np.ones(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8)
    view, output = _core.View(0, memory=source.ctypes.data), _core.Output(0, memory=target.ctypes.data)
    pool.submit([pool.copy(view, source.nbytes, 4096, output)], owner)
    del owner
    assert gone() is not None
    pool.settle()
    assert gone() is None


def test_a_guard_acts_to_the_end():
    """However often a signal interrupts its action, and whatever ended the block."""
    left = []

    def action():
        left.append(len(left))
        if len(left) < 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(ValueError, match="of the block"), _core.Guard(action):
        raise ValueError("of the block")
    assert left == [0, 1, 2, 3, 4]
    left.clear()
    with pytest.raises(KeyboardInterrupt), _core.Guard(action):
        pass
    assert left == [0, 1, 2, 3, 4]


def test_a_guard_whose_action_fails():
    def action():
        attempts.append(1)
        raise OSError("always")

    attempts = []
    with pytest.raises(OSError, match="always"), _core.Guard(action):
        pass
    assert len(attempts) == 3
