"""Many small tensors, as a mixture of experts has them: what a tensor costs beside its bytes.

100,000 tensors of 1,024 bf16 elements in shards of 20,000, a base and two models, TIES. The bytes are few (0.6 GB read,
0.2 GB written), so the time is that of headers, plans, requests and the manifest.

    python -m benchmarks.bench_experts [--tree DIRECTORY] [--rounds 3]    measures this package, or one in another tree
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .process import _anonymous_kib

COUNT, ELEMENTS, SHARD = 100_000, 1024, 20_000
FOLDER = Path(os.environ.get("WARPMERGE_BENCH_DATA", "build/bench")) / "experts"
MODELS = ("base", "model1", "model2")


def names() -> list[str]:
    """Layers x experts x three matrices, as mixtures of experts name them."""
    each = [f"experts.{e}.{part}_proj" for e in range(521) for part in ("gate", "up", "down")]
    return [f"model.layers.{n // len(each)}.mlp.{each[n % len(each)]}.weight" for n in range(COUNT)]


def make(folder: Path) -> None:
    """The three checkpoints, or what is there of them."""
    marker = folder / "made"
    if marker.exists():
        return
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.02, COUNT * ELEMENTS).astype(np.float32)
    for model in MODELS:
        values = base if model == "base" else base + rng.standard_t(3, base.size).astype(np.float32) * 1e-4
        bf16 = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
        write(folder / model, bf16)
    marker.touch()


def write(folder: Path, values: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed, size, weight_map = names(), 2 * ELEMENTS, {}
    shards = -(-COUNT // SHARD)
    for shard in range(shards):
        mine = listed[shard * SHARD : (shard + 1) * SHARD]
        header = {
            name: {"dtype": "BF16", "shape": [32, ELEMENTS // 32], "data_offsets": [i * size, (i + 1) * size]}
            for i, name in enumerate(mine)
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.write(values[shard * SHARD * ELEMENTS :][: len(mine) * ELEMENTS].tobytes())
        weight_map.update(dict.fromkeys(mine, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def recipe(folder: Path) -> dict:
    return {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / name), "parameters": {"weight": weight, "density": 0.5}}
            for name, weight in zip(MODELS[1:], (0.6, 0.4), strict=True)
        ],
    }


SCRIPT = """
import json, sys, time
import warpmerge as wm, warpmerge.api
start = time.perf_counter()
if sys.argv[1] == "plan":
    wm.api.describe(json.loads(sys.argv[2]), backend="cpu", threads=2)
else:
    wm.merge(json.loads(sys.argv[2]), sys.argv[3], backend="cpu", threads=2, sync=False)
print(json.dumps(time.perf_counter() - start))
assert not {"torch", "numpy"} & sys.modules.keys()
"""


def measure(what: str, tree: Path, folder: Path) -> dict[str, float]:
    """Seconds of the call, CPU seconds of the process, and its peak of anonymous megabytes."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(tree / "python")}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what, json.dumps(recipe(folder)), str(out)],
        stdout=subprocess.PIPE,
        env=environment,
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, _anonymous_kib(child.pid))
        time.sleep(0.005)
    seconds = json.loads(child.stdout.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "s": round(seconds, 2),
        "user s": round(after.ru_utime - before.ru_utime, 2),
        "system s": round(after.ru_stime - before.ru_stime, 2),
        "anonymous MB": round(peak * 1024 / 1e6),
    }


def test_experts(benchmark) -> None:
    make(FOLDER)
    tree = Path(__file__).parents[1]
    benchmark.extra_info.update({what: measure(what, tree, FOLDER) for what in ("plan", "merge")})
    benchmark.pedantic(lambda: measure("merge", tree, FOLDER), rounds=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, action="append", help="may be given several times: measured in turn")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    make(FOLDER)
    for _ in range(arguments.rounds):
        for tree in arguments.tree or [Path(__file__).parents[1]]:
            print(tree, {what: measure(what, tree, FOLDER) for what in ("plan", "merge")}, flush=True)


if __name__ == "__main__":
    main()
