"""Jobs: one case on one shape in one precision. Carried out by a peer in its environment, and by warpmerge here."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import warpmerge as wm
from safetensors.torch import load_file, save_file

from .. import peers
from .cases import Case
from .data import Shape, tensors

Result = torch.Tensor | str  # or the error


@dataclass(frozen=True)
class Job:
    """rounded: dtypes that the inputs are brought to, one after the other. dtype: what the peer is told to compute in,
    out_dtype: what both are told to return."""

    id: str
    case: Case
    shape: Shape
    rounded: tuple[str, ...] = ("float32",)
    dtype: str = ""
    out_dtype: str = ""
    seed: int = 0

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The merged tensors by a name that says what they are, the base first if there is one."""
        made = [torch.from_numpy(t) for t in tensors(self.case.data, self.shape)]
        for name in self.rounded:
            made = [t.to(getattr(torch, name)) for t in made]
        name = ".".join([self.case.data, "x".join(map(str, self.shape)), *self.rounded])
        return {f"{name}.{k}": made[k] for k in range(0 if self.case.base else 1, self.case.models + 1)}


def peer_results(jobs: Sequence[Job]) -> tuple[dict[str, Result], dict[str, str]]:
    """What the peers make of the jobs, by id, and their versions."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        inputs = {name: tensor.contiguous() for job in jobs for name, tensor in job.inputs.items()}
        save_file(inputs, directory / "inputs.safetensors")
        (directory / "jobs.json").write_text(json.dumps([_described(job) for job in jobs]))
        python, script = peers.environment() / "bin" / "python", Path(__file__).with_name("peer.py")
        subprocess.run([python, script, directory], check=True, env=peers.mergekit_environment())
        results: dict[str, Result] = dict(load_file(directory / "results.safetensors"))
        results.update(json.loads((directory / "errors.json").read_text()))
        return results, json.loads((directory / "versions.json").read_text())


def _described(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "peer": job.case.peer,
        "method": job.case.method,
        "parameters": dict(job.case.parameters),
        "base": job.case.base,
        "tensors": list(job.inputs),
        "dtype": job.dtype,
        "out_dtype": job.out_dtype,
        "seed": job.seed,
    }


def our_result(job: Job, backend: str = "auto") -> Result:
    """What warpmerge makes of a job."""
    case = job.case
    base, *models = job.inputs.values() if case.base else (None, *job.inputs.values())
    try:
        return wm.merge_tensors(
            models,
            case.ours_method or case.method,
            base=base,
            backend=backend,
            name=job.id,
            seed=job.seed,
            out_dtype=job.out_dtype or None,
            **our_parameters(case.parameters if case.ours is None else case.ours),
        )
    except wm.MergeError as error:
        return f"{type(error).__name__}: {error}"


def our_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`lambda` is a word of Python."""
    return {"lambda_" if name == "lambda" else name: value for name, value in parameters.items()}
