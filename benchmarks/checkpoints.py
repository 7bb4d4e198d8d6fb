"""Makes realistic checkpoints quickly, with numpy alone: a base and its fine-tunes.

    python -m benchmarks.checkpoints qwen2.5-0.5b build/bench/qwen2.5-0.5b --models 3

A base weight is N(0, 0.02), a fine-tune adds heavy-tailed deltas (Student t with 3 degrees of freedom). In
bf16 the deltas are rounded with the weights, so that many of them tie or vanish as they do in real
fine-tunes: at the default scale of 5e-3 standard deviations 39-47 % of the elements are unchanged, and up to
14 % share the magnitude at density 0.5. Smaller scales leave more than half unchanged (58 % at 3e-3), and a
trim to 0.5 then has nothing to select.

Fisher informations, which are checkpoints of their own beside the models', spread over sixteen decades, and a twentieth
of them are 0.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .shapes import SHAPES, TensorSpec

WEIGHT_STD = 0.02
SHARD_BYTES = 500 * 1000**2
MARKER, FISHER_MARKER = "checkpoints.json", "fisher.json"
VERSION = 1  # raise when the same settings would give other bytes

# Pools of random numbers, read at a different offset for each tensor and model. Drawing 2 G numbers afresh
# would take minutes. The lengths are primes, so that a weight and its delta never repeat together within a
# tensor.
WEIGHTS, DELTAS = 8388593, 4194301
CHUNK = 1 << 17  # elements worked at once: the temporaries stay in L2


@dataclass(frozen=True)
class Settings:
    shape: str
    models: int = 3
    dtype: str = "bf16"
    scale: float = 5e-3  # std of the first model's deltas in std of the weights
    seed: int = 0
    tie_free: bool = False  # fp32 only: deltas are exact, and no two of a tensor have the same magnitude
    shard_bytes: int = SHARD_BYTES

    def digest(self) -> str:
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CheckpointSet:
    base: Path
    models: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.base, *self.models)


def make(settings: Settings, folder: Path) -> CheckpointSet:
    """Makes `folder/base` and `folder/model1`.., or reuses them if they were made with the same settings."""
    names = ["base", *(f"model{i + 1}" for i in range(settings.models))]
    result = CheckpointSet(folder / names[0], tuple(folder / name for name in names[1:]))
    marker = folder / MARKER
    if marker.is_file() and json.loads(marker.read_text()).get("digest") == settings.digest():
        return result
    if settings.tie_free and settings.dtype != "fp32":
        raise ValueError("tie_free needs dtype fp32: in bf16 deltas tie by rounding")
    marker.unlink(missing_ok=True)
    for path in (*folder.glob("base"), *folder.glob("model*")):
        shutil.rmtree(path)
    pools = _Pools(settings.seed)
    # numpy releases the interpreter lock in its loops, and models are independent of each other.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        chunks = [functools.partial(_chunks, settings, pools, model=i) for i in range(len(names))]
        list(threads.map(lambda i: _write_model(settings, folder / names[i], chunks[i]), range(len(names))))
    _write_json(marker, {"digest": settings.digest(), "settings": asdict(settings)})
    return result


def make_fisher(settings: Settings, folder: Path) -> tuple[Path, ...]:
    """Makes `folder/fisher1`.., one for each model of `make`, or reuses them; whatever else is there stays."""
    result = tuple(folder / f"fisher{i + 1}" for i in range(settings.models))
    marker = folder / FISHER_MARKER
    if marker.is_file() and json.loads(marker.read_text()).get("digest") == settings.digest():
        return result
    marker.unlink(missing_ok=True)
    for path in folder.glob("fisher?"):
        shutil.rmtree(path)
    rng = np.random.default_rng(settings.seed + 1)
    pool = 10 ** (2 * rng.standard_normal(DELTAS, dtype=np.float32) - 8)
    pool[rng.random(DELTAS) < 0.05] = 0  # elements that no gradient reached
    pool = _extend(pool)
    for model, path in enumerate(result, 1):
        _write_model(settings, path, lambda spec, model=model: _informations(settings, pool, spec, model))
    _write_json(marker, {"digest": settings.digest(), "settings": asdict(settings)})
    return result


def _informations(settings: Settings, pool: np.ndarray, spec: TensorSpec, model: int) -> Iterator[np.ndarray]:
    first = _offset(spec.name, model)
    for start in range(0, spec.size, CHUNK):
        at = (first + start) % DELTAS
        values = pool[at : at + min(CHUNK, spec.size - start)]
        yield to_bf16(values) if settings.dtype == "bf16" else values


class _Pools:
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weights = _extend(rng.standard_normal(WEIGHTS, dtype=np.float32) * np.float32(WEIGHT_STD))
        deltas = rng.standard_t(3, DELTAS) / np.sqrt(3)
        deltas[rng.random(DELTAS) < 0.05] = 0  # elements that training never touched
        self.deltas = _extend((deltas * WEIGHT_STD).astype(np.float32))


def _extend(pool: np.ndarray) -> np.ndarray:
    """Appends the beginning, so that a chunk never wraps around."""
    return np.concatenate([pool, pool[:CHUNK]])


def _offset(name: str, model: int) -> int:
    return zlib.crc32(f"{model}:{name}".encode())


def _chunks(settings: Settings, pools: _Pools, spec: TensorSpec, model: int) -> Iterator[np.ndarray]:
    """The values of one tensor as stored: uint16 for bf16, float32 for fp32. Model 0 is the base."""
    base_at, delta_at = _offset(spec.name, 0), _offset(spec.name, model)
    gain, bias = {"weight": (1.0, 0.0), "bias": (5.0, 0.0), "norm": (2.5, 1.0)}[spec.kind]
    scale = np.float32(settings.scale * 1.15 ** max(model - 1, 0) * gain)
    exact = _exact_deltas(spec, settings.seed + delta_at) if settings.tie_free and model else None
    for start in range(0, spec.size, CHUNK):
        n = min(CHUNK, spec.size - start)
        at = (base_at + start) % WEIGHTS
        values = pools.weights[at : at + n] * np.float32(gain) + np.float32(bias)
        if settings.tie_free:
            values = _coarse(values, spec)
        if settings.dtype == "bf16":
            values = from_bf16(to_bf16(values))
        if model:
            at = (delta_at + start) % DELTAS
            values += exact[start : start + n] if exact is not None else pools.deltas[at : at + n] * scale
        yield to_bf16(values) if settings.dtype == "bf16" else values


def _coarse(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Base weights on a grid coarse enough that base + delta is exact in float32."""
    low, high = (0.5, 1.5) if spec.kind == "norm" else (-0.0625, 0.0625)
    return np.clip(np.rint(values * 4096) / np.float32(4096), low, high)


def _exact_deltas(spec: TensorSpec, seed: int) -> np.ndarray:
    """Distinct magnitudes: 1..n permuted, in units of 2^-27 (2^-22 beside a norm's 1), with random signs."""
    if spec.size > (1024 if spec.kind == "norm" else 1 << 20):
        raise ValueError(f"{spec.name}: too many elements for exact deltas without ties")
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, spec.size) * 2 - 1
    unit = 2.0**-22 if spec.kind == "norm" else 2.0**-27
    return ((rng.permutation(spec.size) + 1) * signs * unit).astype(np.float32)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> bf16 bits, rounded to nearest even. The values are finite."""
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= np.uint32(16)
    return odd.astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _write_model(settings: Settings, folder: Path, chunks: Callable[[TensorSpec], Iterator[np.ndarray]]) -> None:
    decoder = SHAPES[settings.shape]()
    itemsize = {"bf16": 2, "fp32": 4}[settings.dtype]
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in decoder.tensors():
        if shards[-1] and filled + spec.size * itemsize > settings.shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.size * itemsize
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"model{part}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for spec in shard:
            end = offset + spec.size * itemsize
            dtype = {"bf16": "BF16", "fp32": "F32"}[settings.dtype]
            header[spec.name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
            weight_map[spec.name], offset = name, end
        total += offset
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb", buffering=0) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for spec in shard:
                for chunk in chunks(spec):
                    file.write(chunk)  # type: ignore[arg-type]
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", decoder.config(settings.dtype))
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    """The smallest tokenizer that loads: merge tools copy these files and must find them."""
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    steps = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    tokenizer = {"version": "1.0", "added_tokens": [], **dict.fromkeys(steps), "model": model}
    _write_json(folder / "tokenizer.json", tokenizer)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    _write_json(folder / "special_tokens_map.json", special)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a base checkpoint and its fine-tunes for benchmarks.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=Settings.models, help="fine-tunes beside the base")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default=Settings.dtype)
    parser.add_argument("--scale", type=float, default=Settings.scale, help="size of the deltas, see above")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--tie-free", action="store_true", help="fp32: no two deltas of a tensor are equal")
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    start = time.perf_counter()
    made = make(replace(Settings(arguments["shape"]), **arguments), folder)
    print(f"{', '.join(str(path) for path in made.all)}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
