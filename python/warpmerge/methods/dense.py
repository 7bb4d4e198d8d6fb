"""Methods on matrices: merges of singular vectors, and matrices of least squares.

The singular vectors of a weight matrix are the directions in which it acts. `tsv`, `iso_c`, `iso_cts` and `knots` merge
these directions, so that each model's have room. `wudi` and `regmean` choose the matrix whose outputs are closest to
those of the models.

These methods work on whole tensors (TensorFunction). So their memory is a few copies of the largest matrix, and results
of two devices agree to rounding, not bit by bit. This file holds the methods. The algebra is in subspaces.py and
least_squares.py; they need torch and are imported when the first matrix is merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..requests import Combine, TensorFunction, WeightedSum
from .auxiliary import AuxiliaryTensor
from .base import Base, TensorInfo, check_sum, total
from .parameters import choice, number
from .registry import method
from .task_vectors import LAMBDA, refuse_negative

if TYPE_CHECKING:
    import torch

Function = Callable[[Sequence["torch.Tensor"]], "torch.Tensor"]

WEIGHT = number("weight", default=1.0, per_model=True, help="coefficient of the model's delta")
CUTOFF = number(
    "cutoff",
    low=1e-7,
    high=1,
    default=1e-6,
    help="a singular value below this share of the largest counts as 0; raise it for LoRA models that were saved in 16 "
    "bits, because rounding hides their low rank",
)
OTHERS = "A tensor that is not a matrix becomes x_0 + lambda (mean of w_k d_k)."
DEVICES = "Computed in float64 by torch's linear algebra. Results of two devices agree to rounding, not bit by bit."
BLOCKS = 256 << 20  # bytes: a few of linalg.py's blocks of rows
NOT_THERE = "mergekit does not implement this method."


def memory(shape: tuple[int, ...], models: int) -> int:
    """Bytes for a matrix in float32: copies of it and of each model's part, and square matrices in float64."""
    if len(shape) != 2:
        return 0
    short = min(max(shape), models * min(shape))
    copies = 4 * (3 * models + 4) * math.prod(shape)
    return copies + 8 * (2 * models + 8) * short**2 + min(BLOCKS, 32 * models * math.prod(shape))


def is_matrix(tensor: TensorInfo) -> bool:
    return tensor.shape is not None and len(tensor.shape) == 2


def mean_of_deltas(p: Mapping[str, Any], models: int) -> WeightedSum:
    weights = p.get("weight", (1.0,) * models)
    return WeightedSum(tuple(p["lambda"] * w / models for w in weights), on_deltas=True)


def combine(tensor: TensorInfo, p: Mapping[str, Any], function: Function) -> WeightedSum | TensorFunction:
    """lambda times the function's result for the deltas of a matrix; other tensors: lambda times the mean w_k d_k."""
    if not is_matrix(tensor) or p["lambda"] == 0:
        return mean_of_deltas(p, tensor.models)
    return TensorFunction(lambda deltas, base: of_finite(function, deltas, tensor.models) * p["lambda"])


def of_finite(function: Function, tensors: Sequence[torch.Tensor], models: int) -> torch.Tensor:
    """The function of the tensors with 0 for NaN and infinities; these come back in their places."""
    import torch

    from ..finite import all_finite

    if all(map(all_finite, tensors)):
        return function(tensors)
    finite = [torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in tensors]
    return function(finite) + sum(t - f for t, f in zip(tensors[:models], finite, strict=False))


# --- singular vectors -----------------------------------------------------------------------------------------------


@method(
    "tsv",
    base=Base.REFERENCE,
    parameters=[WEIGHT, LAMBDA, CUTOFF],
    memory=memory,
    formula="d_k ~ U_k S_k V_k^T  with the floor(min(rows, columns) / K) largest singular values, if above cutoff\n"
    "U = polar([U_1 ... U_K]),  V = polar([V_1 ... V_K])\n"
    "y = x_0 + lambda U diag(w_1 S_1, ..., w_K S_K) V^T",
    paper="Gargiulo et al. 2024, Task singular vectors: reducing task interference in model merging, arXiv 2412.00081",
    notes=[
        "With more models than rows or columns no singular value is left. The output is the base.",
        OTHERS,
        DEVICES,
    ],
    differences={
        "mergekit": NOT_THERE,
        "the paper": [
            "The paper has no weights.",
            "In a delta of low rank some singular vectors are arbitrary. The authors' code uses them in the polar "
            "factors. warpmerge uses only those above cutoff.",
        ],
    },
)
def tsv(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Task singular vectors: each delta keeps its largest ones, and all of them together are made orthogonal."""

    def merged(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        from .subspaces import task_singular_vectors

        return task_singular_vectors(deltas, p["weight"], p["cutoff"])

    return combine(tensor, p, merged)


@method(
    "iso_c",
    base=Base.REFERENCE,
    parameters=[WEIGHT, LAMBDA, CUTOFF],
    memory=memory,
    formula="sum w_k d_k = U S V^T\ny = x_0 + lambda mean(S) U V^T,  without singular values below cutoff in U and V",
    paper="Marczak et al. 2025, No task left behind: isotropic model merging with common and task-specific subspaces, "
    "arXiv 2502.04959",
    notes=[OTHERS, DEVICES],
    differences={
        "mergekit": NOT_THERE,
        "the paper": [
            "The paper has no weights.",
            "If the sum has a low rank, some singular vectors are arbitrary. The authors' code gives them the mean "
            "too. warpmerge gives it only to those above cutoff.",
        ],
    },
)
def iso_c(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Sum of the deltas with all singular values made equal to their mean."""

    def merged(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        from .subspaces import isotropic

        return isotropic(deltas, p["weight"], p["cutoff"])

    return combine(tensor, p, merged)


@method(
    "iso_cts",
    base=Base.REFERENCE,
    parameters=[
        WEIGHT,
        number("common", low=0, high=1, default=0.8, help="share of the directions that are common to all models"),
        LAMBDA,
        CUTOFF,
    ],
    memory=memory,
    formula="U_c, S_c, V_c: of the c largest singular values of sum w_k d_k,  c about common min(rows, columns)\n"
    "U_k, S_k, V_k: of the (min(rows, columns) - c) / K largest of w_k (I - U_c U_c^T) d_k,  all above cutoff\n"
    "y = x_0 + lambda mean(S_1, ..., S_K, S_c) polar([U_1 ... U_K U_c]) polar([V_1 ... V_K V_c])^T",
    paper="Marczak et al. 2025, No task left behind: isotropic model merging with common and task-specific subspaces, "
    "arXiv 2502.04959",
    notes=[
        "Each model gets the same number of directions, rounded half to even. All other directions are common.",
        OTHERS,
        DEVICES,
    ],
    differences={"mergekit": NOT_THERE, "the paper": "The paper has no weights and no cutoff."},
)
def iso_cts(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Like iso_c, but some directions are reserved for single models, beside the common ones."""

    def merged(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        from .subspaces import isotropic_in_parts

        return isotropic_in_parts(deltas, p["weight"], p["common"], p["cutoff"])

    return combine(tensor, p, merged)


def _check_knots(p: Mapping[str, Any], models: int) -> None:
    if p["merge"] == "ties":
        refuse_negative(p["weight"], "merge: task_arithmetic")


@method(
    "knots",
    base=Base.REFERENCE,
    parameters=[
        WEIGHT,
        number(
            "density",
            low=0,
            high=1,
            default=1.0,
            per_model=True,
            help="share of the elements of a model's part to keep",
        ),
        choice(
            "merge",
            ["ties", "task_arithmetic"],
            default="ties",
            help="how to merge the models' parts: with an election of signs, or as a weighted sum",
        ),
        LAMBDA,
        CUTOFF,
    ],
    check=_check_knots,
    memory=memory,
    formula="[d_1 ... d_K] = U S [V_1 ... V_K]^T,  singular values above cutoff\n"
    "t_k = the density_k largest elements of S V_k^T\n"
    "y = x_0 + lambda U m,  m = sum w_k t_k / sum w_k over the w_k t_k of the sign of their sum;  0 if it is 0\n"
    "with merge: task_arithmetic  m = sum w_k t_k",
    paper="Stoica et al. 2024, Model merging with SVD to tie the knots, arXiv 2410.19735",
    notes=[
        "A sum counts as 0 if it is at most 2^-20 (float32) or 2^-40 (float64) of the sum of magnitudes.",
        "With merge: ties negative weights are an error: the sign cancels in the division.",
        OTHERS,
        DEVICES,
    ],
    differences={
        "mergekit": NOT_THERE,
        "the paper": [
            "The paper has one threshold for all layers. warpmerge has one for each matrix.",
            "The authors' code drops singular values below 1e-5, an absolute bound.",
            "If votes sum to 0, the authors' code takes the majority's sign. It depends on the arbitrary signs of "
            "singular vectors.",
        ],
    },
)
def knots(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """TIES in the coordinates of the singular vectors of all deltas side by side."""

    def merged(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        from .subspaces import aligned, merged_parts

        elect = p["merge"] == "ties"
        return aligned(deltas, p["cutoff"], lambda parts: merged_parts(parts, p["weight"], p["density"], elect))

    return combine(tensor, p, merged)


# --- least squares --------------------------------------------------------------------------------------------------


@method(
    "wudi",
    base=Base.REFERENCE,
    parameters=[LAMBDA],
    memory=memory,
    formula="y = x_0 + lambda t,  t = the matrix of least norm that minimizes sum |(t - d_k) d_k^T|^2 / |d_k|^2\n"
    "  = (sum d_k H_k) (sum H_k)^+,  H_k = d_k^T d_k / |d_k|^2",
    paper="Cheng et al. 2025, Whoever started the interference should end it, arXiv 2503.08099",
    notes=["A tensor that is not a matrix becomes x_0 + lambda (mean of d_k).", DEVICES],
    differences={
        "mergekit": NOT_THERE,
        "the paper": "The paper takes 300 steps of Adam from the sum of the deltas. warpmerge computes the minimum.",
    },
)
def wudi(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """The matrix that interferes least with the deltas: its products with their rows are the closest to theirs."""

    def merged(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        from .least_squares import least_interference

        return least_interference(deltas)

    return combine(tensor, p, merged)


def _memory_with_grams(shape: tuple[int, ...], models: int) -> int:
    """Bytes for a matrix in float32 and its grams: their copies, and square matrices of its columns in float64."""
    if len(shape) != 2:
        return 0
    m, n = shape
    squares = models + 6 + (2 * models if m > (models - 1) * n else 0)
    return 4 * (models + 8) * m * n + (4 * models + 8 * squares) * n**2 + min(BLOCKS, 32 * models * m * n)


def _gram_shape(weight: tuple[int, ...]) -> tuple[int, ...] | None:
    return (weight[1], weight[1]) if len(weight) == 2 else None


@method(
    "regmean",
    base=Base.METADATA,
    auxiliary=[
        AuxiliaryTensor(
            "gram",
            help="checkpoint of Gram matrices X^T X (in, in) of linear layers' inputs, named as the weights (out, in)",
            shape=_gram_shape,
            required=False,
        )
    ],
    parameters=[
        number("weight", low=0, default=1.0, per_model=True, help="how much the model counts"),
        number("alpha", low=0, high=1, default=0.9, help="factor of the off-diagonal elements of gram"),
        number(
            "ridge",
            low=0,
            default=1e-6,
            help="strength of the pull towards the mean, as a share of the grams' mean diagonal element",
        ),
    ],
    check=lambda p, models: check_sum("regmean", p["weight"], "give at least one model a weight above 0"),
    memory=_memory_with_grams,
    formula="y = the matrix that minimizes sum w_k |X_k (y - x_k)^T|^2 + r |y - mean|^2,  X_k^T X_k = gram_k\n"
    "  = mean + (sum w_k (x_k - mean) G_k) (sum w_k G_k + r I)^-1,  mean = sum w_k x_k / sum w_k\n"
    "G_k = gram_k with off-diagonal elements times alpha,  r = ridge (mean diagonal element of sum w_k G_k)",
    paper="Jin et al. 2022, Dataless knowledge fusion by merging weights of language models, arXiv 2212.09849",
    notes=[
        "Write `parameters: {gram: PATH}` under each model, the path of a checkpoint of Gram matrices.",
        "A weight without Gram matrices, such as an embedding or a norm, becomes the weighted mean.",
        "Directions of a layer's input that no model has seen get the mean's weights.",
        DEVICES,
    ],
    differences={
        "mergekit": NOT_THERE,
        "the paper": ["The paper has neither weights nor a ridge.", "Other programs have an alpha of 1 or 0.1."],
    },
)
def regmean(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """For each linear layer the matrix whose outputs come closest to those of the models on the models' own inputs."""
    shares = tuple(w / total(p["weight"]) for w in p["weight"])
    if not tensor.auxiliary:
        return WeightedSum(shares, on_deltas=False, agree=True)

    def merged(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        from .least_squares import least_squares

        return least_squares(tensors[: tensor.models], tensors[tensor.models :], shares, p["alpha"], p["ridge"])

    return TensorFunction(lambda tensors, base: of_finite(merged, tensors, tensor.models), on_deltas=False)
