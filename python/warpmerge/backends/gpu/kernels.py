"""The two sets of kernels behind one interface: compiled CUDA ones, and Triton ones.

Every method queues one kernel: (stream, launch, ...) with addresses as integers; csrc/cuda/launch.h describes them.
"""

from __future__ import annotations

from typing import Any

from .code import Code
from .tables import KernelLaunch


class CudaKernels:
    """Those of the native module, on one of its devices. Streams are native ones or torch's."""

    samples = True  # there is select_sample, which shrinks the interval before the first sweep
    bins = 2048  # that select_sweep counts in

    def __init__(self, native: Any, device: Any) -> None:
        self._native, self.device = native, device

    @staticmethod
    def long_row(fp64: bool) -> int:
        """Elements of a row above which `ranks` needs scratch memory: kRankShared32 and 64 of launch.h."""
        return 4096 if fp64 else 8192

    @staticmethod
    def select_sweeps(fp64: bool, sampled: bool) -> int:
        """Sweeps after which a key is nearly always found: each leaves one of 2048 bins, a sample a few per cent."""
        return (5 if fp64 else 2) if sampled else (6 if fp64 else 3)

    def ranks(self, stream: Any, launch: KernelLaunch, code: Code, ordinal: int, longest: int) -> None:
        self._queue("ranks")(stream, launch, code, code.program.ranked[ordinal], ordinal, longest)

    def __getattr__(self, name: str) -> Any:
        queue = self._queue(name)
        setattr(self, name, queue)
        return queue

    def _queue(self, name: str) -> Any:
        kernel = getattr(self.device, name)

        def queue(stream: Any, *arguments: Any) -> None:
            native = getattr(stream, "native", None)
            found = [self._native_form(a) for a in arguments]
            if native is not None:
                kernel(native, *found)
                return
            with stream.context():  # the native module changes the thread's current device, torch puts it back
                kernel(self.device.external_stream(stream.handle), *found)

        return queue

    def _native_form(self, argument: Any) -> Any:
        if isinstance(argument, KernelLaunch):
            launch = argument
            return self._native.KernelLaunch(
                segments=launch.segments,
                chunks=launch.chunks,
                models=launch.models,
                outputs=launch.outputs,
                inputs=list(launch.inputs),
                base=launch.base,
                out=launch.out,
                fp64=launch.fp64,
                policy=launch.policy,
                aligned=launch.aligned,
                segment_rows=launch.segment_rows,
                chunk_map=launch.chunk_map,
                numbers=launch.numbers,
                rules=launch.rules,
                words=launch.words,
            )
        if isinstance(argument, Code):
            program = argument.program
            return self._native.KernelProgram(
                code=argument.address,
                instructions=len(program.code),
                operands=argument.operands,
                constants=len(program.constants),
                values=len(program.outputs),
                rules=len(program.rules),
                keys=len(program.keys),
                vectors=len(program.vectors),
                ranks=len(program.ranked),
                file=argument.file,
                file_bytes=argument.file_bytes,
            )
        return argument


class TritonKernels:
    """Those of triton_kernels, on torch's current device and stream."""

    samples = True
    bins = 256

    @staticmethod
    def long_row(fp64: bool) -> int:
        """No row needs scratch memory."""
        return 2**62

    def __init__(self) -> None:
        from ...triton_kernels import (
            elect_and_sum,
            formula,
            gram,
            ranks,
            reduce,
            reduce_columns,
            reduce_rows,
            reduce_tensor,
            select,
        )

        self._functions = {
            "elect_and_sum": elect_and_sum.launch,
            "tensor_sums": reduce_tensor.sums,
            "kept_sums": reduce_tensor.kept_sums,
            "gram": gram.launch,
            "formula": formula.launch,
            "ranks": ranks.launch,
            "row_values": reduce_rows.values,
            "row_products": reduce_rows.products,
            "row_totals": reduce_rows.totals,
            "column_terms": reduce_columns.terms,
            "column_totals": reduce_columns.totals,
            "reduce_blocks": reduce.launch,
            "select_sample": select.sample,
            "select_sweep": select.sweep,
            "shrink_interval": select.shrink_interval,
            "select_ties": select.ties,
            "select_locate": select.locate,
            "select_position": select.position,
        }

    @staticmethod
    def select_sweeps(fp64: bool, sampled: bool) -> int:
        """Sweeps after which a key is found: each leaves one of 256 bins."""
        return (7 if fp64 else 3) if sampled else (8 if fp64 else 4)

    def __getattr__(self, name: str) -> Any:
        function = self.__dict__["_functions"].get(name)
        if function is None:
            raise AttributeError(name)

        def queue(stream: Any, *arguments: Any) -> None:
            with stream.context():
                function(*arguments)

        setattr(self, name, queue)
        return queue
