"""Training and evaluation: next-byte cross entropy on windows of the text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Llama

BATCH = 8  # windows per step; at equal time 8 reached a lower loss than 4 or 16
WARM_UP = 10  # steps


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    The base keeps its rate to the end, as if more training were to come, and each fine-tune anneals from
    there: its delta then holds what its domain teaches and what any of them would, and a merge keeps both.
    """

    steps: int
    rate: float
    anneal: bool
    seed: int

    def rate_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / WARM_UP)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.anneal else 1.0
        return self.rate * warm * cosine


def train(model: Llama, texts: list[bytes], schedule: Schedule) -> float:
    """Trains in place, on the texts in equal parts; returns the mean training loss of the last tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    losses = []
    for step, windows in enumerate(batches(texts, model.context + 1, schedule)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = cross_entropy(model, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses[-math.ceil(len(losses) / 10) :]).mean().item()


def batches(texts: list[bytes], length: int, schedule: Schedule) -> Iterator[Tensor]:
    """Windows at random positions, a function of the seed alone; the texts take turns."""
    generator = torch.Generator().manual_seed(schedule.seed)
    sources = [to_tokens(text).unfold(0, length, 1) for text in texts]
    for step in range(schedule.steps):
        rows = [sources[(step * BATCH + i) % len(sources)] for i in range(BATCH)]
        yield torch.stack([row[torch.randint(len(row), (), generator=generator)] for row in rows])


@torch.no_grad()
def evaluate(model: Llama, text: bytes) -> float:
    """The loss on a held-out text, in nats per byte."""
    length = model.context + 1
    return cross_entropy(model, to_tokens(text).unfold(0, length, length)).item()


def cross_entropy(model: Llama, windows: Tensor) -> Tensor:
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def to_tokens(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


@contextmanager
def one_thread() -> Iterator[None]:
    """Holds torch to one thread, and gives the caller's setting back.

    The models then do not depend on the number of cores, nor the time on what else runs: a step takes 40 ms;
    with two threads on two cores 25 ms, but 100 ms beside another busy process.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
