"""The native module's devices, memory, streams and events, on the emulated driver; and the emulation itself."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

cuda = pytest.importorskip("warpmerge._cuda_emulated", reason="built without -DWARPMERGE_CUDA_EMULATION=ON")
EMULATION = Path(__file__).parents[2] / "cuda_emulation"
PATTERN = 0xA5  # of memory that nothing was written to


@pytest.fixture(autouse=True)
def fresh_driver():
    gc.collect()
    cuda.reset()
    live = cuda.live()
    yield
    gc.collect()
    cuda.reset()
    assert cuda.live() == live


@pytest.fixture
def device():
    return cuda.Device(0)


def view(memory, dtype=np.uint8):
    buffer = (ctypes.c_uint8 * memory.nbytes).from_address(memory.address)
    return np.frombuffer(buffer, dtype=dtype)


class Doubling:
    """A launch that doubles `count` float32 numbers, and all the memory that it takes."""

    def __init__(self, device, stream, count=1000, **changes):
        self.device, self.stream, self.count = device, stream, count
        self.host = device.pinned(4 * count)
        self.numbers = view(self.host, np.float32)
        self.numbers[:] = np.arange(count)
        self.input, self.output = device.alloc(4 * count), device.alloc(4 * count)
        self.zeros = self._upload(np.zeros(2, np.int64))
        self.tables = [
            self._upload(np.array([count, 0, 0, 0, 0, 0, 0, self.input.address, self.output.address], np.int64)),
            self._upload(np.zeros((count + 16383) // 16384, np.int32)),
            self._upload(np.array([2.0])),
        ]
        self.launch = cuda.KernelLaunch(
            **{
                **dict(segments=1, chunks=(count + 16383) // 16384, models=1, outputs=1, inputs=[0], base=-1, out=0),
                **dict(fp64=False, policy=0, aligned=True, rules=0),
                **dict(zip(("segment_rows", "chunk_map", "numbers"), (t.address for t in self.tables), strict=True)),
                **changes,
            }
        )

    def _upload(self, array):
        memory = self.device.alloc(array.nbytes)
        self.stream.copy_in(memory.address, array.ctypes.data, array.nbytes)
        self.stream.synchronize()
        return memory

    def queue(self):
        self.stream.copy_in(self.input.address, self.host.address, self.host.nbytes)
        self.device.weighted_sum(self.stream, self.launch, False, self.zeros.address)
        self.stream.copy_out(self.host.address, self.output.address, self.host.nbytes)
        return self.stream.record()


def test_emulation_itself(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler")
    program = tmp_path / "self_test"
    flags = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", f"-I{EMULATION}", "-pthread"]
    subprocess.run([compiler, *flags, EMULATION / "self_test.cpp", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the emulation holds\n"), done.stdout


def test_versions():
    assert cuda.runtime_version() == (13, 0)
    assert cuda.architectures() == ["80", "90"]
    assert cuda.EMULATED


def test_device(device):
    assert cuda.why_not() is None and cuda.device_count() == 1
    assert (device.index, device.name, device.capability) == (0, "emulated device 0", (9, 0))
    assert device.multiprocessors > 0 and device.launches == 0


@pytest.mark.parametrize("index", [-1, 1, 99])
def test_no_such_device(index):
    with pytest.raises(ValueError, match=f"there is no GPU {index}: only GPU 0"):
        cuda.Device(index)
    cuda.set_device_count(3)
    with pytest.raises(ValueError, match="numbered 0 to 2"):
        cuda.Device(-1)


def test_why_not_without_a_device():
    cuda.set_device_count(0)
    assert cuda.why_not() == "there is no NVIDIA GPU, or none is visible"
    assert cuda.device_count() == 0
    with pytest.raises(ValueError, match="there is no NVIDIA GPU"):
        cuda.Device(0)


def test_why_not_without_a_driver():
    cuda.set_driver_version(0, 0)
    assert cuda.why_not() == "no NVIDIA driver is installed"
    assert cuda.device_count() == 0


def test_why_not_with_an_old_driver():
    cuda.set_driver_version(12, 4)
    assert cuda.why_not() == "the NVIDIA driver (12.4) is older than this build's CUDA runtime (13.0)"
    assert cuda.device_count() == 0


def test_why_not_with_an_old_device():
    cuda.set_capability(3, 7)
    reason = "GPU 0 (emulated device 0, compute capability 3.7) is older than what this build supports (8.0)"
    assert cuda.why_not() == reason
    assert cuda.device_count() == 1
    with pytest.raises(ValueError, match="older than what this build supports"):
        cuda.Device(0)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 1)])
def test_devices_with_code_or_newer_than_the_ptx(capability):
    cuda.set_capability(*capability)
    assert cuda.why_not() is None
    assert cuda.Device(0).capability == capability


def test_memory_is_counted(device):
    cuda.limit_memory(1_000_000)
    assert device.memory() == (1_000_000, 1_000_000)
    first = device.alloc(400_000)
    assert first.nbytes == 400_000 and first.address % 256 == 0
    assert device.memory() == (600_000, 1_000_000)
    with pytest.raises(MemoryError, match=r"^GPU 0: cannot allocate 700\.0 kB \(600\.0 kB free\)$"):
        device.alloc(700_000)
    first.free()
    assert (first.address, first.nbytes) == (0, 0)
    first.free()
    second = device.alloc(700_000)
    del second
    assert device.memory() == (1_000_000, 1_000_000)


def test_sizes_of_errors(device):
    with pytest.raises(MemoryError, match=r"cannot allocate 1\.2 TB \(8\.6 GB free\)"):
        device.alloc(1_200_000_000_000)
    cuda.limit_memory(10)
    with pytest.raises(MemoryError, match=r"cannot allocate 11 bytes \(10 bytes free\)"):
        device.alloc(11)


def test_empty_memory(device):
    for memory in (device.alloc(0), device.pinned(0)):
        assert (memory.address, memory.nbytes) == (0, 0)
        device.stream().zero(memory.address, 0)
        memory.free()
    with pytest.raises(ValueError, match="negative"):
        device.alloc(-1)


def test_failing_allocations(device):
    cuda.fail_next_allocations(2)
    for _ in range(2):
        with pytest.raises(MemoryError, match="GPU 0: cannot allocate 100 bytes"):
            device.alloc(100)
    assert device.alloc(100).nbytes == 100
    cuda.fail_next_allocations(0, pinned=1)
    with pytest.raises(MemoryError, match="cannot allocate 100 bytes of page-locked host memory"):
        device.pinned(100)
    assert device.pinned(100).nbytes == 100


def test_copies(device):
    stream, memory, other = device.stream(), device.alloc(1000), device.alloc(1000)
    host, back = device.pinned(1000), device.pinned(1000)
    stream.copy_out(back.address, memory.address, 1000)
    stream.synchronize()
    assert (view(back) == PATTERN).all()

    view(host)[:] = np.arange(1000) % 251
    stream.copy_in(memory.address, host.address, 1000)
    stream.zero(memory.address + 10, 20)
    stream.copy(other.address + 500, memory.address, 500)
    stream.copy_out(back.address, other.address, 1000)
    stream.synchronize()
    expected = np.full(1000, PATTERN, np.uint8)
    expected[500:] = view(host)[:500]
    expected[510:530] = 0
    assert (view(back) == expected).all()


def test_copies_outside_an_allocation(device):
    stream, memory, host = device.stream(), device.alloc(1000), device.pinned(2000)
    inside, outside = memory.address, host.address
    for start, size, why in [(1, 1000, "exceed"), (-1, 10, "not in device memory"), (1000, 1, "not in device memory")]:
        with pytest.raises(RuntimeError, match=f"GPU 0: copy to the device: .*{why}"):
            stream.copy_in(inside + start, outside, size)
        with pytest.raises(RuntimeError, match=f"GPU 0: copy from the device: .*{why}"):
            stream.copy_out(outside, inside + start, size)
        with pytest.raises(RuntimeError, match=f"GPU 0: zeroing memory: .*{why}"):
            stream.zero(inside + start, size)
        with pytest.raises(RuntimeError, match=f"GPU 0: copy on the device: .*{why}"):
            stream.copy(inside, inside + start, size)
    with pytest.raises(RuntimeError, match="the source is device memory"):
        stream.copy_in(inside, inside, 10)
    with pytest.raises(RuntimeError, match="the destination is device memory"):
        stream.copy_out(inside, inside, 10)
    memory.free()
    with pytest.raises(RuntimeError, match="not in device memory"):
        stream.zero(inside, 1)
    stream.copy_in(inside, outside, 0)
    stream.synchronize()


def test_writes_past_an_allocation_are_found(device):
    stream, memory = device.stream(), device.alloc(100)
    (ctypes.c_uint8 * 1).from_address(memory.address + 100)[0] = 1
    with pytest.raises(RuntimeError, match="written past a device allocation of 100 bytes"):
        stream.synchronize()
    stream.synchronize()
    (ctypes.c_uint8 * 1).from_address(memory.address - 1)[0] = 1
    memory.free()
    with pytest.raises(RuntimeError, match="written before a device allocation"):
        stream.record().synchronize()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_kernel(device, reverse):
    cuda.reverse_order(reverse)
    work = Doubling(device, device.stream(), count=40_000)
    work.queue().synchronize()
    assert (work.numbers == 2 * np.arange(40_000)).all()
    assert device.launches == 1
    empty = Doubling(device, work.stream, chunks=0)
    device.weighted_sum(work.stream, empty.launch, False, 0)
    assert device.launches == 1


def test_launches_are_checked(device):
    stream = device.stream()
    for changes in (dict(inputs=[4]), dict(inputs=[]), dict(base=-2), dict(out=9), dict(policy=3), dict(chunks=-1)):
        with pytest.raises(ValueError):
            Doubling(device, stream, **changes)
    with pytest.raises(TypeError):
        cuda.KernelLaunch(1, 1)


def test_deferred_work_waits_for_the_host(device):
    cuda.defer(True)
    work = Doubling(device, device.stream())
    event = work.queue()
    assert not event.done()
    event.synchronize()
    assert event.done() and (work.numbers == 2 * np.arange(1000)).all()

    event = work.queue()
    while not event.done():
        pass
    assert (work.numbers == 4 * np.arange(1000)).all()


def test_streams_wait_for_events(device):
    cuda.defer(True)
    first, second = Doubling(device, device.stream()), Doubling(device, device.stream())
    second.host, second.numbers = first.host, first.numbers  # doubles what the first has doubled
    second.stream.wait(first.queue())
    event = second.queue()
    second.stream.synchronize()
    assert event.done() and (first.numbers == 4 * np.arange(1000)).all()


def test_event_of_an_idle_stream(device):
    event = device.stream().record()
    assert event.done()
    event.synchronize()


def test_external_streams(device):
    own = device.stream()
    assert own.handle != 0 and own.handle != device.stream().handle
    for handle in (0, own.handle):
        stream = device.external_stream(handle)
        assert stream.handle == handle
        work = Doubling(device, stream)
        work.queue().synchronize()
        assert (work.numbers == 2 * np.arange(1000)).all()
    del stream, work
    own.synchronize()  # not destroyed with what wrapped it
    handle = own.handle
    del own
    with pytest.raises(RuntimeError, match="not a stream"):
        device.external_stream(handle).synchronize()


def test_several_devices():
    cuda.set_device_count(2)
    cuda.limit_memory(1000)
    first, second = cuda.Device(0), cuda.Device(1)
    memory = second.alloc(900)
    assert first.memory() == (1000, 1000) and second.memory() == (100, 1000)
    with pytest.raises(MemoryError, match="GPU 1"):
        second.alloc(101)
    with pytest.raises(RuntimeError, match=r"GPU 0: zeroing memory: .* are memory of device 1"):
        first.stream().zero(memory.address, 1)
    second.stream().zero(memory.address, 900)

    cuda.limit_memory(1 << 20)
    work = Doubling(second, second.stream())
    with pytest.raises(ValueError, match="the stream belongs to GPU 0, not to GPU 1"):
        second.weighted_sum(first.stream(), work.launch, False, 0)
    first.stream().wait(work.queue())  # across devices
    assert (first.launches, second.launches) == (0, 1)


def test_one_thread_per_device():
    cuda.set_device_count(4)
    failures = []

    def run(index):
        try:
            device = cuda.Device(index)
            for _ in range(20):
                work = Doubling(device, device.stream(), count=5000)
                work.queue().synchronize()
                assert (work.numbers == 2 * np.arange(5000)).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_errors_do_not_linger(device):
    stream = device.stream()
    with pytest.raises(RuntimeError):
        stream.zero(1, 1)
    with pytest.raises(MemoryError):
        device.alloc(1 << 40)
    work = Doubling(device, stream)
    work.queue().synchronize()
    assert (work.numbers == 2 * np.arange(1000)).all()
