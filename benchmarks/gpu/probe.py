"""Prints, as JSON, why a backend cannot be used here, and the versions of CUDA: asked in a process of its own."""

import importlib
import json

from warpmerge import backends

from .sections import BACKENDS


def main() -> None:
    missing = {name: reason for name in BACKENDS if (reason := backends.find(name).reason)}
    versions = {}
    try:
        versions["torch_cuda"] = importlib.import_module("torch").version.cuda or ""
        native = importlib.import_module("warpmerge.backends.gpu.cuda").native()
        versions["cuda_runtime"] = ".".join(map(str, native.runtime_version()))
        versions["cuda_architectures"] = ",".join(native.architectures())
    except ImportError:
        pass  # the reasons say it
    print(json.dumps({"missing": missing, "versions": versions}))


if __name__ == "__main__":
    main()
