"""The two sets of kernels behind one interface: compiled CUDA ones, and Triton ones.

Every method queues one kernel: (stream, launch, ...) with addresses as integers; csrc/cuda/launch.h describes them.
"""

from __future__ import annotations

from typing import Any

from .tables import Launch


class CudaKernels:
    """Those of the native module, on one of its devices. Streams are native ones or torch's."""

    samples = True  # there is select_sample, which narrows the interval before the first sweep

    def __init__(self, native: Any, device: Any) -> None:
        self._native, self.device = native, device

    @staticmethod
    def select_sweeps(wide: bool, sampled: bool) -> int:
        """Sweeps after which a key is nearly always found: each leaves one of 2048 parts, a sample a few per cent."""
        return (5 if wide else 2) if sampled else (6 if wide else 3)

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.device, name)

        def queue(stream: Any, *arguments: Any) -> None:
            native = getattr(stream, "native", None)
            arguments = [self._launch(a) if isinstance(a, Launch) else a for a in arguments]
            if native is not None:
                kernel(native, *arguments)
                return
            with stream.context():  # the native module changes the thread's current device, torch puts it back
                kernel(self.device.external_stream(stream.handle), *arguments)

        setattr(self, name, queue)
        return queue

    def _launch(self, launch: Launch) -> Any:
        return self._native.Launch(
            segments=launch.segments,
            chunks=launch.chunks,
            models=launch.models,
            outputs=launch.outputs,
            inputs=list(launch.inputs),
            base=launch.base,
            out=launch.out,
            wide=launch.wide,
            policy=launch.policy,
            aligned=launch.aligned,
            places=launch.places,
            chunk_map=launch.chunk_map,
            numbers=launch.numbers,
            keeps=launch.keeps,
        )


class TritonKernels:
    """Those of triton_kernels, on torch's current device and stream."""

    samples = True

    def __init__(self) -> None:
        from ..triton_kernels import consensus, gram, moments, reduce, select, weighted_sum

        self._functions = {
            "weighted_sum": weighted_sum.launch,
            "consensus": consensus.launch,
            "moments": moments.launch,
            "gram": gram.launch,
            "reduce_blocks": reduce.launch,
            "select_sample": select.sample,
            "select_sweep": select.sweep,
            "select_narrow": select.narrow,
            "select_ties": select.ties,
            "select_locate": select.locate,
            "select_position": select.position,
        }

    @staticmethod
    def select_sweeps(wide: bool, sampled: bool) -> int:
        """Sweeps after which a key is found: each leaves one of 256 parts."""
        return (7 if wide else 3) if sampled else (8 if wide else 4)

    def __getattr__(self, name: str) -> Any:
        function = self.__dict__["_functions"].get(name)
        if function is None:
            raise AttributeError(name)

        def queue(stream: Any, *arguments: Any) -> None:
            with stream.context():
                function(*arguments)

        setattr(self, name, queue)
        return queue
