"""Launch tables for the programs that run Triton kernels in the interpreter, and what the CPU makes of the same."""

import itertools

import numpy as np
import torch
from kernel_helpers import ISAS
from native_pool import operands, pool, work
from triton_helpers import at, code
from warpmerge.backends.gpu.tables import Kind, SegmentRow, Table, blocks_of, is_aligned
from warpmerge.triton_kernels import reduce

CPU = ISAS[0]


class Problem:
    """One tensor: inputs and perhaps a base."""

    def __init__(self, tensors, base=None, *, policy=1):
        self.tensors, self.base, self.policy, self.count = tensors, base, policy, tensors[0].numel()

    @property
    def nonfinite(self):
        return [0 if t is None else int((~torch.isfinite(t)).sum()) for t in [*self.tensors, self.base]] + [0]

    @property
    def operands(self):
        return operands(self.tensors, self.base, self.policy)


def address(tensor, first):
    return tensor.data_ptr() + first * tensor.element_size()


class Request:
    """The launch table of some problems alike, a tensor each; `split`: elements after which a tensor is divided."""

    def __init__(self, *problems, split=None):
        head = problems[0]
        self.problems, self.models = problems, len(head.tensors)
        everything = [t for p in problems for t in [*p.tensors, *([] if p.base is None else [p.base])]]
        kind = Kind(
            inputs=tuple(code(t) for t in head.tensors),
            base=-1 if head.base is None else code(head.base),
            out=0,
            outputs=0,
            fp64=any(t.dtype == torch.float64 for t in [*head.tensors, *([] if head.base is None else [head.base])]),
            policy=head.policy,
            aligned=is_aligned(*(t.data_ptr() for t in everything)),
        )
        segments, self.blocks, ranges = [], 0, []
        for tensor, p in enumerate(problems):
            blocks = blocks_of(p.count)
            ranges.append((self.blocks, blocks))
            cuts = [0, split, p.count] if split and split < p.count else [0, p.count]
            for first, end in itertools.pairwise(cuts):
                segments.append(
                    SegmentRow(
                        end - first, first, tensor, self.blocks + first // 4096, p.count,
                        0 if p.base is None else address(p.base, first),
                        tuple(address(t, first) for t in p.tensors), (),
                    )
                )  # fmt: skip
            self.blocks += blocks
        table = Table(kind, segments)
        self._memory = [np.zeros(table.nbytes + 16, np.uint8)]
        start = -self._memory[0].ctypes.data % 16
        memory = self._memory[0][start:]
        self.launch = table.write(memory[: table.nbytes], memory.ctypes.data)
        self.tensors = len(problems)
        self.ranges = np.array(ranges, np.int64)
        self.nonfinite = np.zeros((self.tensors, self.models + 2), np.int64)

    def reduce(self, partials, columns):
        result = np.zeros((self.tensors, columns), np.float64)
        reduce.launch(at(partials), at(self.ranges), self.tensors, columns, at(result))
        return result

    def check_nonfinite(self, items):
        """`items` have what is right: those of the CPU, or the problems themselves."""
        wanted = [list(i.nonfinite) for i in items]
        assert self.nonfinite.tolist() == wanted, f"counted {self.nonfinite.tolist()}, not {wanted}"


def expect(make, problems):
    items = [make(p) for p in problems]
    work(pool(CPU), *items)
    return items
