"""Launch tables for the programs that run Triton kernels in the interpreter, and what the CPU makes of the same."""

import itertools

import numpy as np
import torch
from kernel_helpers import ISAS, operands, pool, signed, weights, work
from triton_helpers import at, code
from warpmerge import _core
from warpmerge.backends.gpu.tables import Kind, SegmentRow, Table, blocks_of, is_aligned, rule_rows
from warpmerge.requests import KEEP_ALL, KEEP_NONE, RandomMask, TopKMask
from warpmerge.triton_kernels import reduce

CPU = ISAS[0]


class Problem:
    """One tensor: inputs, perhaps a base, outputs; and the rules and numbers that go with it."""

    def __init__(self, tensors, base=None, *, policy=1, outputs=0, out=None, numbers=None, keep=None):
        self.tensors, self.base, self.policy, self.numbers, self.keep = tensors, base, policy, numbers, keep
        first = base if base is not None else tensors[0]
        self.count = first.numel()
        self.outputs = [torch.full((self.count,), 123.0, dtype=out or first.dtype) for _ in range(outputs)]

    @property
    def nonfinite(self):
        return [0 if t is None else int((~torch.isfinite(t)).sum()) for t in [*self.tensors, self.base]]

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
        everything = [t for p in problems for t in [*p.tensors, *p.outputs, *([] if p.base is None else [p.base])]]
        kind = Kind(
            inputs=tuple(code(t) for t in head.tensors),
            base=-1 if head.base is None else code(head.base),
            out=code(head.outputs[0]) if head.outputs else 0,
            outputs=len(head.outputs),
            fp64=any(t.dtype == torch.float64 for t in [*head.tensors, *([] if head.base is None else [head.base])]),
            policy=head.policy,
            aligned=is_aligned(*(t.data_ptr() for t in everything)),
        )
        segments, numbers, rules, self.blocks, ranges = [], [], [], 0, []
        for tensor, p in enumerate(problems):
            blocks = blocks_of(p.count)
            ranges.append((self.blocks, blocks))
            cuts = [0, split, p.count] if split and split < p.count else [0, p.count]
            for first, end in itertools.pairwise(cuts):
                segments.append(
                    SegmentRow(
                        end - first, first, tensor, self.blocks + first // 4096, p.count,
                        0 if p.base is None else address(p.base, first),
                        tuple(address(t, first) for t in p.tensors), tuple(address(t, first) for t in p.outputs),
                    )
                )  # fmt: skip
                if p.numbers is not None:
                    numbers.append(p.numbers)
                if p.keep is not None:
                    rules.append(rule_rows(p.keep))
            self.blocks += blocks
        table = Table(
            kind, segments, np.array(numbers, np.float64) if numbers else None, np.array(rules) if rules else None
        )
        self._memory = [np.zeros(table.nbytes + 16, np.uint8)]
        start = -self._memory[0].ctypes.data % 16
        memory = self._memory[0][start:]
        self.launch = table.write(memory[: table.nbytes], memory.ctypes.data)
        self.tensors = len(problems)
        self.ranges = np.array(ranges, np.int64)
        self.nonfinite = np.zeros((self.tensors, self.models + 1), np.int64)

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


def native(keep):
    return [
        _core.Mask.drawn(k.key, k.cut) if isinstance(k, RandomMask) else _core.Mask(k.threshold, k.tie_end)
        for k in keep
    ]


def coefficients(models, *, lambda_=0.7, vote=signed):
    return [*weights(models), *vote(models), *([1.0] * models), lambda_]


def rules(models, fp64=False):
    """A mixture: thresholds with and without ties, random, all, none."""
    one = 0x3F50624DD2F1A9FC if fp64 else 0x3B03126F  # of 0.001 or 0.002
    kinds = [
        TopKMask(one),
        RandomMask(0x946207DDBE679413, 32768),
        TopKMask(0, 2999),
        KEEP_ALL,
        KEEP_NONE,
        RandomMask(3, 1),
        TopKMask(one, 0),
        RandomMask(2**63 + 12345, 65535),
        TopKMask(one - 7, 16385),
    ]
    return kinds[:models]


def ties():
    """Many elements lie on the threshold; the last one kept, and the next, are on either side of tie_end."""
    values = (torch.arange(40_000) % 3).float()
    key = 0x3F800000  # of 1
    keep = [TopKMask(key, 1), TopKMask(key, 2), TopKMask(key, 16384 + 2), TopKMask(key, 16384 + 3)]
    return [values.clone() for _ in keep], torch.zeros(40_000), keep
