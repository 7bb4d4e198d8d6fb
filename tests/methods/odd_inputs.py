"""Degenerate inputs for tests of methods: three tensors of each kind."""

import torch


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


ONE = tensor([1, 2, -2, 0.5], [0.25, -3, 1, 1])
RIGHT = tensor([0, 3, 0, 0], [1, 0, 0, 0])
ODD = {
    "identical": (ONE, ONE, ONE),
    "zero": (ONE * 0, ONE * 0, ONE * 0),
    "one zero": (ONE, ONE * 0, ONE.flip(1)),
    "all but one zero": (ONE * 0, ONE, ONE * 0),
    "parallel": (ONE, 2 * ONE, 3 * ONE),
    "antiparallel": (ONE, -ONE, ONE),
    "cancelling": (ONE, ONE, -2 * ONE),
    "right angles": (ONE * tensor([1], [0]), RIGHT, ONE * tensor([0], [1])),
    "at 120 degrees": (tensor(1, 0), tensor(-0.5, 0.75**0.5), tensor(-0.5, -(0.75**0.5))),
    "rank one": (ONE[:, :1] @ ONE[:1], ONE[:, 1:2] @ ONE[:1], ONE[:, :1] @ ONE[1:]),
    "one row is the same": (ONE, ONE * tensor([1], [2]), ONE * tensor([1], [-1])),
    "one element": (tensor([3]), tensor([-1]), tensor([2])),
    "one row": (ONE[:1], ONE[1:], RIGHT[:1]),
    "one column": (tensor([3], [1], [-4]), tensor([-1], [2], [5]), tensor([2], [2], [2])),
    "a vector": (ONE[0], ONE[1], RIGHT[0]),
    "a vector of one": (tensor(3), tensor(-1), tensor(2)),
    "no dimension": (torch.tensor(3.0), torch.tensor(-1.0), torch.tensor(2.0)),
    "empty": (torch.empty(0, 3),) * 3,
    "empty rows": (torch.empty(3, 0),) * 3,
    "four dimensions": (ONE.view(2, 1, 2, 2), RIGHT.view(2, 1, 2, 2), -ONE.view(2, 1, 2, 2)),
    "subnormal": (ONE * 1e-44, RIGHT * 1e-43, -ONE * 1e-45),
    "tiny": (ONE * 1e-30, RIGHT * 1e-30, ONE * -3e-30),
    "huge": (ONE * 3e37, RIGHT * 1e37, ONE * -1e37),
    "tiny rows beside huge ones": (ONE * tensor([1e-19], [1e19]), RIGHT * tensor([1e-19], [1e19]), ONE),
}


def odd_tensors(kind, models):
    return [ODD[kind][k % 3].clone() for k in range(models)]


NAN, INF = float("nan"), float("inf")
VALUES = torch.tensor([[-0.0, 0.0, 0.1], [-6e-8, 3.0, 1e-45], [90.0, -1e4, -7.7]], dtype=torch.float64)
# Values that come out as they are where no model changes them: -0, subnormals, large ones, NaN as in a mask.
FROZEN = (
    VALUES,
    VALUES * 1e-10,
    VALUES * 0,
    VALUES.flatten(),
    VALUES[:1],
    VALUES[:, :1],
    VALUES[0, 0],
    VALUES[:0],
    torch.tensor([[NAN, -INF], [-0.0, 1.0]], dtype=torch.float64),
)
