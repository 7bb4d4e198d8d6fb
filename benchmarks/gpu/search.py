"""The kernels of `select` one after the other, as the backend queues them."""

from __future__ import annotations

import torch
from warpmerge.backends.gpu.requests import BINS, SEARCHING, SMALL
from warpmerge.backends.gpu.tables import blocks_of
from warpmerge.requests import NO_TIE_END, Selection

from .problem import Problem

MOST_SWEEPS = 12


class Searched:
    """A search for the larger half of each delta, and its counters on the device.

    `sweeps`: as many as it takes. The backend queues `select_sweeps` of them before it looks whether they were enough.
    """

    def __init__(self, p: Problem) -> None:
        self.p = p
        begin = torch.tensor([p.count // 2, 0, 2**31 - 1, 0, -1, NO_TIE_END, SEARCHING, 0])
        self._begin = begin.repeat(p.models, 1).to(p.device)
        self.state = self._begin.clone()
        self._bins = torch.zeros(p.models, BINS, dtype=torch.int64, device=p.device)
        self._ties = torch.zeros(blocks_of(p.count), p.models, dtype=torch.int32, device=p.device)
        self._ranges = torch.tensor([[0, blocks_of(p.count)]], device=p.device)
        self.sweeps = p.kernels.select_sweeps(False, p.kernels.samples)
        self.run()
        while any(row[6] == SEARCHING for row in self.state.tolist()):
            self.sweeps += 1
            assert self.sweeps <= MOST_SWEEPS, f"not found in {MOST_SWEEPS} sweeps"
            self.run()

    def begin(self) -> None:
        self.state.copy_(self._begin)
        self._bins.zero_()
        if self.p.kernels.samples and self.p.count > SMALL:
            self.p.kernels.select_sample(self.p.stream, self.p.launch, self.state.data_ptr())

    def sweep(self) -> None:
        p = self.p
        state, bins = self.state.data_ptr(), self._bins.data_ptr()
        p.kernels.select_sweep(p.stream, p.launch, state, bins, p.nonfinite.data_ptr())

    def shrink_interval(self) -> None:
        p = self.p
        p.kernels.shrink_interval(p.stream, self.state.data_ptr(), self._bins.data_ptr(), p.models, False, False)

    def run(self) -> None:
        p = self.p
        self.begin()
        for _ in range(self.sweeps):
            self.sweep()
            self.shrink_interval()
        state, ties = self.state.data_ptr(), self._ties.data_ptr()
        p.kernels.select_ties(p.stream, p.launch, state, ties)
        p.kernels.select_locate(p.stream, state, ties, self._ranges.data_ptr(), 1, p.models)
        p.kernels.select_position(p.stream, p.launch, state)

    def found(self) -> list[Selection]:
        return [Selection(low, end, above, inside) for _, low, _, above, inside, end, _, _ in self.state.tolist()]

    def check(self) -> None:
        """The threshold has as many keys above it and on it as the search says, and the count lies between."""
        self.run()
        for selection, model in zip(self.found(), self.p.inputs, strict=True):
            keys = (model.float() - self.p.base.float()).abs_().view(torch.int32)
            above, ties = int((keys > selection.threshold).sum()), int((keys == selection.threshold).sum())
            assert (selection.above, selection.ties) == (above, ties), f"{selection}, but {above} above, {ties} on it"
            assert above < self.p.count // 2 <= above + ties
