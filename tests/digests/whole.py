"""Digests of what is merged from files, in pools and in streams of checkpoints."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import warpmerge as wm
from digests import dense, elementwise_tables, geometric_tables, sparse_tables
from digests.cases import WEIGHTS, Case, Table, data_of, digest_of, some
from digests.inputs import fishers, grams, state_dicts
from helpers import array, read_model, write_model

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
TABLES = {**elementwise_tables.TABLES, **sparse_tables.TABLES, **geometric_tables.TABLES}
FILES = 3  # models of which there are files

Lines = Callable[[], Iterator[tuple[str, str]]]


# --- checkpoints ----------------------------------------------------------------------------------------------------


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory()


@functools.cache
def checkpoints(kind: str) -> tuple[Path, list[Path]]:
    """A base and models in bfloat16 and float16, with vectors in float32, in one file or two."""
    parts = {d: state_dicts(kind, d, True) for d in ("bfloat16", "float16", "float32")}
    paths = []
    for k in range(FILES + 1):
        rounded, exact = (_numbered(parts[d], k) for d in ("float16" if k == 2 else "bfloat16", "float32"))
        tensors = {name: exact[name] if t.ndim == 1 else t for name, t in rounded.items()}
        paths.append(saved(f"{kind}-{k}", tensors, shards=1 + k % 2))
    return paths[0], paths[1:]


def _numbered(made: tuple, k: int) -> dict[str, torch.Tensor]:
    return made[0] if k == 0 else made[1][k - 1]


def saved(name: str, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> Path:
    """A model directory of this name."""
    raw = {n: (CODES[str(t.dtype).removeprefix("torch.")], tuple(t.shape), data_of(t)) for n, t in tensors.items()}
    return write_model(Path(folder().name) / name, raw, shards=shards)


@functools.cache
def companions(method: str, kind: str) -> list[Path]:
    made = {"fisher": fishers, "regmean": grams}[method](kind, "float32", FILES)
    return [saved(f"{method}-{kind}-{k}", tensors) for k, tensors in enumerate(made)]


# --- recipes --------------------------------------------------------------------------------------------------------


def recipe(method: str, table: Table, case: Case, kind: str, models: int, **keys: Any) -> dict[str, Any]:
    """The recipe of a case: what is per model stands with the model, all else at the top."""
    given = {name.rstrip("_"): v for name, v in {**table.common, **case.parameters}.items() if v is not None}
    each = {name: v for name, v in given.items() if isinstance(v, (tuple, list))}
    base, paths = checkpoints(kind)
    listed = []
    for k, path in enumerate(paths[:models]):
        own = {name: v[k] for name, v in each.items()}
        if table.companions:
            own[table.companions[0]] = str(companions(method, kind)[k])
        listed.append({"model": str(path), "parameters": own})
    made = {"merge_method": method, "models": listed, **keys}
    made["parameters"] = {name: v for name, v in given.items() if name not in each}
    return {**made, "base_model": str(base)} if table.has_base(case) or method == "slerp" else made


def merged_files(document: Mapping[str, Any], **options: Any) -> Path:
    out = Path(tempfile.mkdtemp(dir=folder().name))
    wm.merge(dict(document), out, backend="cpu", sync=False, **options)
    return out


def digest_of_files(path: Path) -> str:
    """Of the weight files of a directory, or of one file, and of the index."""
    digest = hashlib.blake2b(digest_size=8)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if ".safetensors" in p.name)
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _is_of_model(case: Case) -> bool:
    return case.slow or case.parameters.get("scope") == "model"


def file_cases(method: str, table: Table) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Title, recipe and seed of the main case, and of all that measure the whole model."""
    for title, case in table.cases.items():
        if title == table.main or _is_of_model(case):
            models = 1 if method == "slerp" else some(table.counts(case))
            yield title, recipe(method, table, case, "few" if case.slow else "plain", models), case.seed


def file_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """Shards are small, so that there are several."""
    for title, document, seed in file_cases(method, table):
        yield title, digest_of_files(merged_files(document, seed=seed, shard_size=6000))


def dense_file_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """Sums of the main case's matrices."""
    document = recipe(method, table, table.cases[table.main], "matrices", 3, out_dtype="float32")
    merged = read_model(merged_files(document))
    floats = {name: torch.from_numpy(array(raw).copy()) for name, raw in merged.items() if raw[0] == "F32"}
    yield table.main, dense.text_of(dense.sums_of(floats))


def recipes() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Recipes and options that say things in other ways: gradients, filters, dtypes, seeds, models that are listed and
    are the base."""
    base, paths = checkpoints("plain")
    listed = {"base_model": str(base), "models": [str(p) for p in paths]}
    gradient = {"weight": [0.2, 0.9, 0.4], "density": [0.3, 0.8]}
    filters = {"weight": [{"filter": "mlp", "value": [0.1, 0.7]}, {"filter": "norm", "value": 0.0}, 0.4]}
    summed = {"merge_method": "task_arithmetic", **listed, "parameters": {"weight": 0.4}}
    drawn = {"merge_method": "dare_linear", **listed, "parameters": {"weight": 0.4, "density": 0.5}}
    return {
        "gradient": ({"merge_method": "ties", **listed, "parameters": gradient}, {}),
        "filters": ({**summed, "parameters": filters}, {}),
        "with the base": ({**summed, "models": [str(base), *listed["models"]]}, {}),
        "linear with the base": ({**summed, "merge_method": "linear", "models": [str(base), *listed["models"]]}, {}),
        "seed 7": (drawn, {"seed": 7}),
        "two threads": (drawn, {"threads": 2}),
        "little memory": (drawn, {"memory": "16MB", "threads": 1}),
        **{f"out {d}": ({**summed, "out_dtype": d}, {}) for d in ("float16", "bfloat16", "float32", "float64")},
        **{f"dtype {d}": ({**drawn, "dtype": d}, {}) for d in ("bfloat16", "float64")},
        "float64 to bfloat16": ({**drawn, "dtype": "float64", "out_dtype": "bfloat16"}, {}),
    }


def recipe_lines() -> Iterator[tuple[str, str]]:
    for title, (document, options) in recipes().items():
        yield title, digest_of_files(merged_files(document, **options))


# --- pools ----------------------------------------------------------------------------------------------------------

ROWS = [[1, 0, 0], [0.2, 0.3, 0.4], [-0.5, 1.5, 0.25], [0, 0, 0]]
POOLED = {
    "linear": {"weight": list(WEIGHTS[:3])},
    "ties": {"weight": 0.4, "density": 0.5},
    "dare_ties": {"weight": 0.4, "density": 0.5, "seed": 7},
    "geometric_median": {"scope": "model"},
    "sce": {"select_topk": 0.5},
    "median": {"out_dtype": "float32"},
}


def pool_lines(base: Any, models: list[Any]) -> Iterator[tuple[str, str]]:
    """Merges of a pool, new ones and into tensors that are there, and sweeps with a base and without one."""
    with wm.Pool(base, models, device="cpu", backend="cpu") as pool:
        for method, parameters in POOLED.items():
            yield method, digest_of(pool.merge(method, **parameters))
        into = {name: torch.zeros_like(t) for name, t in pool.merge("linear", weight=1.0).items()}
        yield "into", digest_of(pool.merge("ties", weight=0.5, density=0.4, into=into))
        yield "sweep", digest_of(*pool.sweep(ROWS))
        yield "sweep to float32", digest_of(*pool.sweep(ROWS[:2], out_dtype="float32"))
    with wm.Pool(None, models, device="cpu", backend="cpu") as pool:
        yield "linear without a base", digest_of(pool.merge("linear", weight=0.3))
        yield "sweep without a base", digest_of(*pool.sweep(ROWS))


def pools_in_memory() -> Iterator[tuple[str, str]]:
    for dtype in ("float32", "bfloat16", "mixed", "wide"):
        base, models = state_dicts("plain", dtype, True)
        yield from ((f"{title}/{dtype}", value) for title, value in pool_lines(base, models[:3]))


def pools_of_files() -> Iterator[tuple[str, str]]:
    base, models = checkpoints("plain")
    yield from pool_lines(str(base), [str(p) for p in models])


# --- streams --------------------------------------------------------------------------------------------------------

STREAMS = {"mean": wm.RunningMean, "ema": functools.partial(wm.RunningEMA, 0.9), "variance": wm.RunningVariance}


def stream_lines(make: Callable[..., Any], sources: list[Any]) -> Iterator[tuple[str, str]]:
    """What a stream says after each checkpoint, after it was saved and loaded, and what it writes."""
    running, dicts = make(backend="cpu"), []
    for i, source in enumerate(sources):
        if i == len(sources) - 1:
            state = Path(tempfile.mkdtemp(dir=folder().name)) / "state.safetensors"
            running.save(state)
            running = type(running).load(state, backend="cpu")
        running.update(source)
        dicts += [running.mean(), *([running.variance()] if i > 0 and hasattr(running, "variance") else [])]
    yield "states", digest_of(*dicts)
    yield "bfloat16", digest_of(running.mean(dtype="bfloat16"))
    out = Path(tempfile.mkdtemp(dir=folder().name))
    running.write(out / "mean.safetensors", dtype="float16")
    yield "file", digest_of_files(out / "mean.safetensors")
    running.write(out / "model")
    yield "directory", digest_of_files(out / "model")
    if hasattr(running, "variance"):
        running.write_variance(out / "variance.safetensors")
        yield "variance", digest_of_files(out / "variance.safetensors")


def streams_in_memory() -> Iterator[tuple[str, str]]:
    for name, make in STREAMS.items():
        for dtype in ("float32", "float16", "float64", "mixed"):
            models = state_dicts("plain", dtype, False)[1]
            yield from ((f"{name}/{title}/{dtype}", value) for title, value in stream_lines(make, models[:5]))


def streams_of_files() -> Iterator[tuple[str, str]]:
    for name, make in STREAMS.items():
        paths = [str(p) for p in checkpoints("plain")[1]]
        yield from ((f"{name}/{title}", value) for title, value in stream_lines(make, paths))
        kept = make(file=Path(tempfile.mkdtemp(dir=folder().name)) / "state.safetensors", backend="cpu")
        for path in paths:
            kept.update(path)
        yield f"{name}/kept in a file", digest_of(kept.mean())


GROUPS: dict[str, Lines] = {
    **{f"{m}/files": functools.partial(file_lines, m, table) for m, table in TABLES.items()},
    **{f"{m}/dense files": functools.partial(dense_file_lines, m, table) for m, table in dense.TABLES.items()},
    "recipes/files": recipe_lines,
    "pools/memory": pools_in_memory,
    "pools/files": pools_of_files,
    "streams/memory": streams_in_memory,
    "streams/files": streams_of_files,
}
