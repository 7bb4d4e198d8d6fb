"""What tests share: model directories written and read by hand, recipes, and the command line.

The safetensors files are made and parsed here without the package under test and without the safetensors library, so
that damaged ones can be made too.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
NUMPY = {code: np.dtype(name) for name, code in CODES.items()}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}

# Beside a model's weights: what a merge copies, and what it does not.
FILES = {
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": '{"temperature": 0.5}',
    "modeling_own.py": "x = 1\n",
    "README.md": "the base's own card",
    "trainer_state.json": "{}",
    "notes.log": "not a part of the model",
}

# As a safetensors header describes it: dtype code, shape, little-endian bytes in row-major order.
Raw = tuple[str, tuple[int, ...], bytes]
Tensors = Mapping[str, "np.ndarray | Raw"]


def to_bf16(values: Any) -> np.ndarray:
    """float32 values rounded to bfloat16 (to nearest even; no NaN), as uint16 bit patterns."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def bf16(values: Any) -> Raw:
    """A bfloat16 tensor for write_model."""
    values = np.asarray(values, dtype=np.float32)
    return "BF16", values.shape, to_bf16(values).tobytes()


def raw(tensor: np.ndarray | Raw) -> Raw:
    if isinstance(tensor, tuple):
        return tensor
    return CODES[tensor.dtype.name], tensor.shape, np.ascontiguousarray(tensor).tobytes()


def array(tensor: Raw) -> np.ndarray:
    """The values; bfloat16 becomes float32, which holds it exactly."""
    code, shape, data = tensor
    if code == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, NUMPY[code]).reshape(shape)


def header_of(tensors: Tensors) -> tuple[dict[str, Any], bytes]:
    """The header (without __metadata__) and the data of a file that holds `tensors` in their order."""
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        code, shape, content = raw(tensor)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return header, data


def file_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; `header` is JSON text, bytes or a document, `length` a length to claim instead of its own."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    text = text if isinstance(text, bytes) else text.encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    header, data = header_of(tensors)
    if metadata is not None:
        header = {"__metadata__": dict(metadata), **header}
    path.write_bytes(file_bytes(header, data))


def write_model(
    path: Path,
    tensors: Tensors,
    *,
    shards: int = 1,
    config: Mapping[str, Any] | None = CONFIG,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """A model directory: `tensors` spread evenly over `shards` files, config.json (None: without), other `files`."""
    path.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        write_safetensors(path / SINGLE, tensors, {"format": "pt"})
    else:
        names = list(tensors)
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            mine = names[len(names) * i // shards : len(names) * (i + 1) // shards]
            write_safetensors(path / file, {name: tensors[name] for name in mine}, {"format": "pt"})
            weight_map.update(dict.fromkeys(mine, file))
        (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_safetensors(path: Path) -> dict[str, Raw]:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, fields in header.items():
        begin, end = fields["data_offsets"]
        found[name] = (fields["dtype"], tuple(fields["shape"]), content[start + begin : start + end])
    return found


def read_model(path: Path) -> dict[str, Raw]:
    """Every tensor of a model directory, as its index (or single file) gives it."""
    if (path / SINGLE).exists():
        return read_safetensors(path / SINGLE)
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    files = {file: read_safetensors(path / file) for file in set(weight_map.values())}
    return {name: files[file][name] for name, file in weight_map.items()}


def looks_complete(path: Path) -> bool:
    return (path / SINGLE).exists() or (path / INDEX).exists()


def llama(seed: int, *, layers: int = 2, width: int = 8, dtype: str = "float32", tied: bool = True) -> dict[str, Any]:
    """A tiny model's tensors under the names that Hugging Face Llama models have. dtype: numpy's, or bfloat16."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (16, width)}
    for i in range(layers):
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (width, width)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (2 * width, width)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not tied:
        shapes["lm_head.weight"] = (16, width)
    values = {name: rng.standard_normal(math.prod(shape)).reshape(shape) for name, shape in shapes.items()}
    if dtype == "bfloat16":
        return {name: bf16(v) for name, v in values.items()}
    return {name: v.astype(dtype) for name, v in values.items()}


def write_recipe(path: Path, document: Mapping[str, Any] | str) -> Path:
    text = document if isinstance(document, str) else yaml.safe_dump(dict(document), sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def write_ties(folder: Path) -> Path:
    """`base` with FILES, fine-tunes `a` and `b`, and the recipe `r.yml` of their TIES merge."""
    for seed, name in enumerate(["base", "a", "b"]):
        write_model(folder / name, llama(seed), shards=3 - seed, files=FILES if name == "base" else {})
    document = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [str(folder / "a"), str(folder / "b")],
        "parameters": {"weight": 0.5, "density": 0.5},
    }
    write_recipe(folder / "r.yml", document)
    return folder


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a directory, with its bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Finished(NamedTuple):
    status: int
    stdout: str
    stderr: str


def run_cli(*arguments: Any) -> Finished:
    """The command line, in this process. An exception that it does not handle comes through."""
    from warpmerge import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run([str(a) for a in arguments])
    return Finished(status, out.getvalue(), err.getvalue())


# The setup of a process that gets SIGINT when it has finished its first shard.
INTERRUPTED = """
import os, signal
from warpmerge.models.output import OutputDirectory as O
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
real = O.finish_shard
def finish(*a):
    real(*a)
    os.kill(os.getpid(), signal.SIGINT)
O.finish_shard = finish
"""


def run_process(*arguments: Any, setup: str = "", **options: Any) -> Finished:
    """The command line in a process of its own; `setup` is Python code that runs there first."""
    code = f"{setup}\nfrom warpmerge.__main__ import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    return Finished(done.returncode, done.stdout, done.stderr)
