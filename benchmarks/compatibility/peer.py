"""Carries out jobs with mergekit and PEFT, in their environment: `python peer.py DIRECTORY`.

The directory has inputs.safetensors and jobs.json; results.safetensors, errors.json and versions.json are put there.
Only the documented calls of both are used, and nothing of warpmerge is imported.
"""

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def mergekit(job, tensors):
    from mergekit.merge_methods import merge_tensors

    return merge_tensors(
        tensors,
        job["method"],
        parameters=job["parameters"],
        base_index=0 if job["base"] else None,
        dtype=getattr(torch, job["dtype"]) if job["dtype"] else None,
        out_dtype=getattr(torch, job["out_dtype"]) if job["out_dtype"] else None,
    )


def peft(job, tensors):
    """Of task vectors: the base, the first tensor, comes off and on again."""
    from peft.utils import merge_utils

    parameters = dict(job["parameters"])
    base, *models = tensors
    weights = torch.tensor(parameters.pop("weight"), dtype=base.dtype)
    return base + getattr(merge_utils, job["method"])([m - base for m in models], weights, **parameters)


def main(directory):
    warnings.filterwarnings("ignore")
    inputs = load_file(directory / "inputs.safetensors")
    results, errors = {}, {}
    for job in json.loads((directory / "jobs.json").read_text()):
        torch.manual_seed(job["seed"])
        tensors = [inputs[name].clone() for name in job["tensors"]]
        try:
            results[job["id"]] = {"mergekit": mergekit, "PEFT": peft}[job["peer"]](job, tensors).contiguous()
        except Exception as error:  # whatever a peer raises is a result
            errors[job["id"]] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    save_file(results, directory / "results.safetensors")
    (directory / "errors.json").write_text(json.dumps(errors))
    versions = {name: version(name) for name in ("mergekit", "peft", "torch")}
    (directory / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
