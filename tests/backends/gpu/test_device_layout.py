"""How work is laid out for a device: tables, tiles, buffers, scratch, several devices. None is needed here."""

import ctypes
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warpmerge.backends.gpu.multi_device import MultiDeviceBackend, parse_devices
from warpmerge.backends.gpu.scratch import Scratch
from warpmerge.backends.gpu.staging import Move, fill_buffers
from warpmerge.backends.gpu.tables import ALIGN, BLOCK, CHUNK, Kind, SegmentRow, Table, chunks_of, is_aligned, rule_rows
from warpmerge.backends.gpu.tiles import divide, footprint
from warpmerge.dtypes import BFLOAT16, FLOAT32
from warpmerge.errors import DeviceError
from warpmerge.methods import TensorInfo
from warpmerge.models.views import Memory
from warpmerge.requests import KEEP_ALL, KEEP_NONE, RandomMask, TopKMask
from warpmerge.tasks import MemorySink, TensorTask

counts = st.lists(st.integers(0, 5 * CHUNK), min_size=1, max_size=12)


def kind(models=2, outputs=1):
    return Kind((2,) * models, 0, 2, outputs, False, 0, True)


@given(counts=counts)
@settings(deadline=None, max_examples=60)
def test_a_table_covers_every_element_once(counts):
    segments = [SegmentRow(n, 0, s, 0, n, 1000 + s, (2000 + s, 3000 + s), (4000 + s,)) for s, n in enumerate(counts)]
    numbers = np.arange(len(counts) * 3, dtype=np.float64).reshape(-1, 3)
    table = Table(kind(), segments, numbers)
    room = np.full(table.nbytes, 0xEE, np.uint8)
    launch = table.write(room, 1 << 20)
    assert is_aligned(launch.segment_rows, launch.chunk_map, launch.numbers) and launch.rules == 0

    def section(address, dtype, shape):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start = address - (1 << 20)
        return room[start : start + size].view(dtype).reshape(shape)

    segment_rows = section(launch.segment_rows, np.int64, (len(counts), 7 + 2 + 1))
    assert np.array_equal(section(launch.numbers, np.float64, numbers.shape), numbers)
    assert launch.chunks == sum(map(chunks_of, counts))
    covered = [0] * len(counts)
    owners = section(launch.chunk_map, np.int32, (launch.chunks,)) if launch.chunks else []
    for chunk, segment in enumerate(owners):
        begin = (chunk - segment_rows[segment, 2]) * CHUNK
        assert begin == covered[segment]
        covered[segment] += min(CHUNK, segment_rows[segment, 0] - begin)
    assert covered == counts
    assert [list(row[6:]) for row in segment_rows] == [
        [1000 + s, 2000 + s, 3000 + s, 4000 + s] for s in range(len(counts))
    ]


def test_keep_rules_as_numbers():
    drawn = RandomMask(2**64 - 1, 30000)
    rows = rule_rows([KEEP_ALL, KEEP_NONE, TopKMask(7, 99), drawn])
    assert rows == [(-1, 0, 2**63 - 1, 0), (-1, 2**63 - 1, 2**63 - 1, 0), (-1, 7, 99, 0), (30000, 0, 0, -1)]


def task(count, models=2, dtype=BFLOAT16, base=True):
    buffers = [Memory(dtype, (count,), address=1) for _ in range(models + base)]
    return TensorTask.alone(
        info=TensorInfo("t", count, models),
        method=None,
        values={"nonfinite": "error"},
        inputs=buffers[:models],
        base=buffers[models] if base else None,
        out_dtype=dtype,
        sinks=[MemorySink(1)],
        labels=[],
    )


LEAST = footprint(task(CHUNK, 3, FLOAT32), CHUNK)


@given(counts=counts, capacity=st.integers(LEAST, 8 * LEAST), models=st.integers(1, 3), base=st.booleans())
@settings(deadline=None, max_examples=100)
def test_tiles_hold_every_element_once_and_fit(counts, capacity, models, base):
    tasks = [task(n, models, (BFLOAT16, FLOAT32)[i % 2], base) for i, n in enumerate(counts)]
    tiles = divide(tasks, capacity)
    reached = dict.fromkeys(map(id, tasks), 0)
    for tile in tiles:
        assert 0 < tile.nbytes <= capacity
        taken = [(m.offset, m.offset + m.nbytes) for m in tile.inward]
        taken += [(offset, offset + nbytes) for _, _, nbytes, offset in tile.outward]
        assert all(start % ALIGN == 0 for start, _ in taken)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(sorted(taken)))
        assert max(end for _, end in taken) <= tile.nbytes
        for segment in tile.segments:
            assert (
                segment.first == reached[id(segment.task)] and segment.first % CHUNK == 0 and segment.first % BLOCK == 0
            )
            reached[id(segment.task)] += segment.count
            assert len(segment.inputs) == models
        for move in tile.inward:
            assert any(move.start == p.first * move.tensor.dtype.itemsize for p in tile.segments)
    assert [reached[id(t)] for t in tasks] == counts


def test_too_little_for_one_tile_says_how_much_is_needed():
    with pytest.raises(DeviceError, match=r"tensor 't' needs .* of device memory .* --device-memory"):
        divide([task(10 * CHUNK)], footprint(task(10 * CHUNK), CHUNK) - 1)
    assert len(divide([task(10 * CHUNK)], footprint(task(10 * CHUNK), CHUNK))) == 10


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=20), capacity=st.integers(256, 4096))
@settings(deadline=None, max_examples=100)
def test_buffers_take_all_bytes_in_order(sizes, capacity):
    moves, offset = [], 0
    for number, size in enumerate(sizes):
        moves.append(Move(number, 8 * number, size, offset))
        offset += -(-size // ALIGN) * ALIGN
    moved = dict.fromkeys(range(len(sizes)), 0)
    for buffer in fill_buffers(moves, capacity):
        assert buffer[-1].offset + buffer[-1].nbytes - buffer[0].offset <= capacity
        for move in buffer:
            assert move.start == 8 * move.tensor + moved[move.tensor]
            assert move.offset == moves[move.tensor].offset + moved[move.tensor]
            assert (move.start - 8 * move.tensor) % 8 == 0  # the digest takes whole words
            moved[move.tensor] += move.nbytes
    assert list(moved.values()) == sizes


class HostRuntime:
    def __init__(self):
        self.allocated = 0

    def alloc(self, nbytes, streams=()):
        self.allocated += nbytes
        memory = ctypes.create_string_buffer(nbytes)
        return SimpleNamespace(address=ctypes.addressof(memory), nbytes=nbytes, owner=memory)

    def pinned(self, nbytes):
        return self.alloc(nbytes)


@given(requests=st.lists(st.lists(st.tuples(st.integers(0, 3 << 20), st.booleans()), max_size=8), max_size=4))
@settings(deadline=None, max_examples=30)
def test_scratch_never_overlaps_and_memory_is_used_again(requests):
    runtime = HostRuntime()
    scratch = Scratch(runtime)
    for sizes in requests * 2:
        scratch.reset()
        taken = []
        for nbytes, mirrored in sizes:
            memory = scratch.take(nbytes, mirrored)
            taken.append((memory.address, memory.address + nbytes))
            if mirrored:
                assert memory.host.size == nbytes
        taken = sorted(t for t in taken if t[0] < t[1])
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    for _ in range(12):  # blocks grow until one holds all of a request
        before = runtime.allocated
        scratch.reset()
        for nbytes, mirrored in requests[-1] if requests else []:
            scratch.take(nbytes, mirrored)
    assert runtime.allocated == before


class Member:
    name, batch_bytes, batch_inputs, in_flight = "fake", 1, 1, 3

    def __init__(self):
        self.batches, self.tasks = [], []
        self.closed = False

    def holds(self, task):
        return any(task is held for held in self.tasks)

    def launch(self, work):
        self.batches.append(sum(t.nbytes for t, _ in work))
        self.tasks += [t for t, _ in work]

    def cancel(self):
        self.closed = True

    close = cancel


@given(sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=60), devices=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_batches_are_divided_by_bytes(sizes, devices):
    members = [Member() for _ in range(devices)]
    group = MultiDeviceBackend(members)
    assert group.in_flight == 3 * devices
    tasks = [task(n) for n in sizes]
    for one in tasks:
        group.launch([(one, None)])
    given_bytes = [sum(m.batches) for m in members]
    assert sum(given_bytes) == sum(t.nbytes for t in tasks)
    assert max(given_bytes) - min(given_bytes) <= max(t.nbytes for t in tasks)
    for one in tasks:  # what was measured on a device is merged there
        (owner,) = (m for m in members if m.holds(one))
        before = len(owner.batches)
        group.launch([(one, None)])
        assert len(owner.batches) == before + 1
    assert group.given == given_bytes
    group.close()
    assert all(m.closed for m in members)


def test_names_of_devices():
    assert parse_devices("cuda", 2) == [0]
    assert parse_devices("cuda:1", 2) == [1]
    assert parse_devices("cuda:1,0", 2) == [1, 0]
    assert parse_devices("cuda:all", 3) == [0, 1, 2]
    for text, message in [
        ("cuda:2", "there is no device cuda:2; this machine has cuda:0 to cuda:1"),
        ("cuda:x", "not one of cuda, cuda:N"),
        ("cuda:0,0", "names a device twice"),
        ("cuda:-1", "no device cuda:-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_devices(text, 2)
    with pytest.raises(ValueError, match="this machine has none"):
        parse_devices("cuda", 0)
