"""Streams of checkpoints where something is wrong: with a checkpoint, with a file, in the middle of saving."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import llama, write_model, write_safetensors
from test_streams import MAKE, as_torch, result, run, stream
from warpmerge import system
from warpmerge.running import state_files


def nan(checkpoint):
    tensor = checkpoint["weight"].copy()
    tensor[3, 4] = math.nan
    return checkpoint | {"weight": tensor}


WRONG = {
    "nan": (nan, r"tensor 'weight' .*1 of 4,773 in 'checkpoint 4'\. Repair the model\.$"),
    "missing": (lambda c: {n: t for n, t in c.items() if n != "bias"}, "checkpoint 4 lacks the tensor 'bias'"),
    "extra": (lambda c: c | {"odd": np.ones(2)}, "checkpoint 4 has the tensor 'odd', which the state lacks"),
    "shape": (lambda c: c | {"bias": np.ones(6)}, r"tensor 'bias' is \[5\] in the state but \[6\] in checkpoint 4"),
    "kind": (
        lambda c: c | {"bias": np.ones(5, int)},
        "tensor 'bias' is float32 in the state but int64 in checkpoint 4",
    ),
    "integers": (lambda c: c | {"steps": np.array([7, 9])}, "tensor 'steps' .*differs in checkpoint 4"),
    "nothing": (lambda c: {}, "checkpoint 4 holds no tensors"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", MAKE)
def test_an_error_leaves_the_state_as_it_was(kind, wrong):
    checkpoints = stream()
    spoil, message = WRONG[wrong]
    running = run(MAKE[kind](), checkpoints[:3])
    before = result(running)
    with pytest.raises(wm.CheckpointError, match=message):
        running.update(spoil(checkpoints[3]))
    assert running.count == 3 and result(running) == before
    assert result(run(running, checkpoints[3:])) == result(run(MAKE[kind](), checkpoints))


def test_a_first_checkpoint_is_checked_too():
    running = wm.RunningMean()
    with pytest.raises(wm.CheckpointError, match=r"'weight' has NaN .* in 'checkpoint 1'"):
        running.update(nan(stream(1)[0]))
    quantized = {"q": torch.ones(4).to(torch.float8_e4m3fn)}
    with pytest.raises(wm.CheckpointError, match="'q' is quantized"):
        running.update(quantized)
    assert running.count == 0
    for call in (running.mean, lambda: running.save("x"), lambda: running.write("x")):
        with pytest.raises(wm.UsageError, match="of 0 checkpoints needs at least 1: call update first"):
            call()
    with pytest.raises(wm.UsageError, match="needs at least 2"):
        run(wm.RunningVariance(), stream(1)).variance()


def test_what_is_no_checkpoint(tmp_path):
    running = wm.RunningMean()
    with pytest.raises(wm.UsageError, match="not a list"):
        running.update([1])
    with pytest.raises(wm.UsageError, match="is not a directory"):
        running.update(tmp_path / "none")
    with pytest.raises(wm.CheckpointError, match="cannot read"):
        running.update(tmp_path / "none.safetensors")
    for decay in (-0.1, 1.5, "0.9", True, math.nan):
        with pytest.raises(wm.UsageError, match="decay must be a number from 0 to 1"):
            wm.RunningEMA(decay)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    checkpoints = stream(3)
    running = run(wm.RunningMean(), checkpoints[:2])
    running.save(path)
    before = path.read_bytes()
    running.update(checkpoints[2])

    def fail(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(system.calls, "fsync", fail)
        with pytest.raises(wm.OutputError, match="No space left"):
            running.save(path)

    def interrupt(self, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(state_files.FileSink, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            running.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(wm.OutputError, match="cannot write"):
        running.save(tmp_path / "none" / "state.safetensors")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    running = run(wm.RunningMean(), stream(2))
    monkeypatch.setattr("warpmerge.running.state._scale", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for name in ("out", "out.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            running.write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def spoiled(path: Path, change) -> Path:
    """A saved state with other metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    described = json.loads(header["__metadata__"][state_files.KEY])
    change(described)
    header["__metadata__"][state_files.KEY] = json.dumps(described)
    text = json.dumps(header).encode()
    other = path.with_name("other.safetensors")
    other.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return other


def test_files_that_hold_no_such_state(tmp_path):
    running = run(wm.RunningEMA(0.5), stream(2))
    path = tmp_path / "ema.safetensors"
    running.save(path)
    with pytest.raises(wm.CheckpointError, match=r"the state of a RunningEMA; load it with wm\.RunningEMA\.load"):
        wm.RunningMean.load(path)
    write_safetensors(tmp_path / "model.safetensors", llama(0))
    with pytest.raises(wm.CheckpointError, match="holds no state of running means"):
        wm.RunningMean.load(tmp_path / "model.safetensors")
    with pytest.raises(wm.CheckpointError, match="cannot read"):
        wm.RunningMean.load(tmp_path / "none")
    for change in (
        lambda d: d.update(count=0),
        lambda d: d.update(options={"decay": 2}),
        lambda d: d.update(options={"odd": 2}),
        lambda d: d.pop("kind"),
    ):
        with pytest.raises(wm.CheckpointError, match="damaged"):
            wm.RunningEMA.load(spoiled(path, change))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(wm.CheckpointError, match="truncated"):
        wm.RunningEMA.load(cut)
    mean = tmp_path / "mean.safetensors"
    run(wm.RunningMean(), stream(2)).save(mean)
    with pytest.raises(wm.CheckpointError, match="not those of a RunningVariance"):
        wm.RunningVariance.load(spoiled(mean, lambda d: d.update(kind="RunningVariance")))


@pytest.mark.parametrize("kind", MAKE)
def test_a_state_in_a_file_has_the_bits_of_one_in_memory(kind, tmp_path):
    """Each update is in the file when it returns; another object goes on from there."""
    checkpoints, file = stream(), tmp_path / "state.safetensors"
    for seen, checkpoint in enumerate(checkpoints):
        running = MAKE[kind](file=file)
        assert running.count == seen
        running.update(as_torch(checkpoint, torch.float32) if seen % 2 else checkpoint)
        reference = run(MAKE[kind](), checkpoints[: seen + 1])
        assert result(running) == result(reference) == result(type(running).load(file))
    reference.save(tmp_path / "reference.safetensors")
    running.save(tmp_path / "copy.safetensors")
    assert file.read_bytes() == (tmp_path / "reference.safetensors").read_bytes()
    assert file.read_bytes() == (tmp_path / "copy.safetensors").read_bytes()
    running.write(tmp_path / "mean.safetensors", dtype="float16")
    reference.write(tmp_path / "same.safetensors", dtype="float16")
    assert (tmp_path / "mean.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", MAKE)
def test_an_error_leaves_the_file_as_it_was(kind, wrong, tmp_path):
    checkpoints, file = stream(), tmp_path / "state.safetensors"
    spoil, message = WRONG[wrong]
    running = run(MAKE[kind](file=file), checkpoints[:3])
    before = file.read_bytes()
    with pytest.raises(wm.CheckpointError, match=message):
        running.update(spoil(checkpoints[3]))
    assert running.count == 3 and file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    assert result(run(running, checkpoints[3:])) == result(run(MAKE[kind](), checkpoints))


def test_a_file_that_cannot_be_gone_on_from(tmp_path, monkeypatch):
    file = tmp_path / "state.safetensors"
    checkpoints = stream(2)
    running = run(wm.RunningEMA(0.5, file=file), checkpoints[:1])
    with pytest.raises(wm.UsageError, match=r"was made with \{'decay': 0.5\}, not with \{'decay': 0.6\}"):
        wm.RunningEMA(0.6, file=file)
    with pytest.raises(wm.CheckpointError, match="holds the state of a RunningEMA"):
        wm.RunningMean(file=file)
    with monkeypatch.context() as patched:
        patched.setattr(system.calls, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(wm.OutputError, match="No space left"):
            running.update(checkpoints[1])
    assert running.count == 1 and wm.RunningEMA(0.5, file=file).count == 1
    run(wm.RunningEMA(0.5, file=file), checkpoints[1:])
    with pytest.raises(wm.CheckpointError, match="changed while it was being read"):
        running.update(checkpoints[1])
    with pytest.raises(wm.OutputError, match="cannot write"):
        run(wm.RunningMean(file=tmp_path / "none" / "state.safetensors"), checkpoints)


def test_no_file_stays_open(tmp_path):
    path = write_model(tmp_path / "model", llama(0))
    running = run(wm.RunningVariance(file=tmp_path / "state.safetensors"), [path])
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(running, [path] * 3)
    running.mean(), running.variance(), running.save(tmp_path / "copy.safetensors")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
