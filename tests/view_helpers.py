"""Views of all kinds at random, each with the tensor that it must be equal to."""

import contextlib
import dataclasses
import math
import random
import tempfile

import torch
from kernel_helpers import buffer, changed, native_file, task
from warpmerge.backends.reference.output import round_to
from warpmerge.models.row_views import MeanRows
from warpmerge.models.views import FileRegion, GatheredRows, JoinedParts


class Views:
    """Makes views in memory and in several files. `in_place`: in memory of the device only, which is the host."""

    def __init__(self, seed, dtype=torch.bfloat16, in_place=False):
        self.random, self.dtype, self.in_place = random.Random(seed), dtype, in_place
        self.generator = torch.Generator().manual_seed(seed)
        self.open, self.files = contextlib.ExitStack(), []

    def __enter__(self):
        for _ in range(0 if self.in_place else 3):
            self.files.append(self.open.enter_context(tempfile.TemporaryFile()))
            self.files[-1].write(b"odd")  # elements in a file are at any byte
        return self

    def __exit__(self, *_):
        self.open.close()

    def leaf(self, shape):
        tensor = (torch.randn(shape, generator=self.generator) * 0.02).to(self.dtype)
        found = buffer(tensor)
        if self.in_place:
            return dataclasses.replace(found, device="cpu"), tensor
        if self.random.random() < 0.4:
            return found, tensor
        file = self.random.choice(self.files)
        offset = file.seek(0, 2)
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        file.flush()
        return FileRegion(found.dtype, found.shape, native_file(file), offset), tensor

    def gathered(self, shape, depth):
        rows = self.random.randint(1, shape[0] + 5)
        source, tensor = self.view((rows, *shape[1:]), depth - 1)
        first, length = self.random.randint(0, rows - 1), self.random.randint(1, rows)
        index = {
            "any": [self.random.randrange(rows) for _ in range(shape[0])],
            "reversed": [-1 - i for i in range(shape[0])],
            "runs": [first + i % length for i in range(shape[0])],
        }[self.random.choice(["any", "reversed", "runs"])]
        index = [i % rows for i in index]
        return GatheredRows(source, index, "t"), tensor[index]

    def joined(self, shape, depth, axis=None):
        axis = self.random.randrange(len(shape)) if axis is None else axis
        cuts = sorted(self.random.randint(0, shape[axis]) for _ in range(self.random.randint(0, 3)))
        lengths = [b - a for a, b in zip([0, *cuts], [*cuts, shape[axis]], strict=True)]
        made = [self.view((*shape[:axis], n, *shape[axis + 1 :]), depth - 1) for n in lengths]
        views, tensors = zip(*made, strict=True)
        return JoinedParts(views, axis - self.random.choice([0, len(shape)]), "t"), torch.cat(tensors, axis)

    def mean(self, shape, depth):
        made = [self.view((self.random.randint(1, 5), *shape[1:]), depth - 1) for _ in range(self.random.randint(1, 3))]
        index = [[self.random.randint(-1, len(tensor) - 1) for _ in range(shape[0])] for _, tensor in made]
        total = torch.zeros(shape, dtype=torch.float64)
        for row, places in enumerate(zip(*index, strict=True)):
            found = [tensor[at].double() for (_, tensor), at in zip(made, places, strict=True) if at >= 0]
            total[row] = sum(found[1:], found[0]) / len(found) if found else 0
        dtype = buffer(torch.zeros(0, dtype=self.dtype)).dtype
        return MeanRows([view for view, _ in made], index, dtype, "t"), round_to(total, dtype)

    def view(self, shape, depth=2):
        """A view of that shape out of up to `depth` views around each other, and its tensor."""
        if depth == 0 or not shape:
            return self.leaf(shape)
        kinds = [self.gathered, self.joined]
        if self.dtype.is_floating_point and not self.in_place and shape[0]:
            kinds.append(self.mean)
        return self.random.choice(kinds)(shape, depth)

    def task(self, method, shape, models, **parameters):
        """A task whose operands are views, as `kernel_helpers.task` makes it, and the same of tensors."""
        made = [self.view(shape) for _ in range(models + 1)]
        (_, base), *inputs = made
        plain, wanted = task(method, [t for _, t in inputs], base, **parameters)
        composed, got = task(method, [t for _, t in inputs], base, **parameters)
        base_view = made[0][0] if composed.base is not None else None
        composed = changed(composed, inputs=[view for view, _ in made[1:]], base=base_view)
        return (composed, got), (plain, wanted)


def shape_of(count, random):
    """A shape of 1 to 3 axes with about `count` elements."""
    first = random.randint(1, max(1, math.isqrt(count)))
    return random.choice([(count,), (first, count // first), (2, first, max(1, count // first // 2))])
