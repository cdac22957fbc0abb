"""Maximum mean discrepancies: KID (Bińkowski et al. 2018) and CMMD (Jayasumana et al. 2024).

Shape suffixes: N samples, M reference images, F features, P rows of a part, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import HemstitchError
from .score import Array, Rows, Score, block, counts, gathered, same_width

Kernel = Callable[[Tensor, Tensor], Tensor]
SUBSET_SEED = 2020  # torch-fidelity's
PART = 3000  # rows of each set behind an error: two kernel matrices of 72 MB
BLOCK = 2048  # rows: a block of the kernel matrix is 34 MB
CMMD_WIDTH = 10.0  # σ of the published kernel
CMMD_SCALE = 1000.0


class KernelDistance(NamedTuple):
    """score: mean over the subsets, with its error. subsets_std: deviation over the subsets (ddof 0), as published.
    subset_size: rows in each, which KID depends on a little and its deviation much."""

    score: Score
    subsets_std: float
    subset_size: int


def kernel_distance(
    features_NF: Rows, reference_MF: Rows, subsets: int = 100, subset_size: int = 1000, resamples: int = 100
) -> KernelDistance:
    """KID: the unbiased MMD² under (x·y / F + 1)³ (Bińkowski et al. 2018, sec. 4), mean over random subsets, float64.

    Subsets are drawn as torch-fidelity 0.4 draws them, by NumPy's RandomState(2020), of min(subset_size, N, M) rows:
    the size used is in the result. The error has two parts: bootstrap over the samples (`_spread`), and that of a mean
    over so many subsets. Raises `HemstitchError` for fewer than 2 rows, unequal widths, NaN or infinity.
    """
    N, M, _ = same_width(features_NF, reference_MF, 2, "KID")
    size = min(subset_size, N, M)
    if size < 2 or subsets < 1:
        raise HemstitchError(f"KID needs 1 subset or more of at least 2 rows, not {subsets} of {subset_size}")
    random = np.random.RandomState(SUBSET_SEED)
    values = np.empty(subsets)
    for i in range(subsets):
        x = _double(gathered(features_NF, random.choice(N, size, replace=False).astype(np.int64)))
        y = _double(gathered(reference_MF, random.choice(M, size, replace=False).astype(np.int64)))
        same = _off_diagonal(_polynomial(x, x)) + _off_diagonal(_polynomial(y, y))
        values[i] = same / (size * (size - 1)) - 2 * float(_polynomial(x, y).mean())
    draws, scale = _spread(features_NF, reference_MF, _polynomial, True, resamples)
    drawn = scale * float(draws.std(ddof=1)) if resamples > 1 else math.nan
    chosen = float(values.std()) / math.sqrt(subsets)
    scale *= math.hypot(drawn, chosen) / drawn if drawn > 0 else 1.0
    note = f"{subsets} subsets of {size}; bootstrap over {min(N, PART)} of the samples, with the error of the subsets"
    return KernelDistance(Score(float(values.mean()), draws, scale, note, N), float(values.std()), size)


def cmmd(features_NF: Rows, reference_MF: Rows, resamples: int = 100) -> Score:
    """1000 times the MMD² of L2-normalised embeddings under exp(-|x - y|² / (2·10²)), float64.

    The biased estimate, diagonals included, as the paper's released evaluator has it (Jayasumana et al. 2024, sec. 4;
    Gretton et al. 2012, eq. 5): the fewer the samples, the larger. Error by bootstrap over the samples (`_spread`).
    Raises `HemstitchError` for fewer than 2 rows, unequal widths, embeddings of length zero, NaN or infinity.
    """
    N = same_width(features_NF, reference_MF, 2, "CMMD")[0]
    within = _mean(features_NF, features_NF) + _mean(reference_MF, reference_MF)
    value = CMMD_SCALE * (within - 2 * _mean(features_NF, reference_MF))
    draws, scale = _spread(features_NF, reference_MF, lambda x, y: _gaussian(_unit(x), _unit(y)), False, resamples)
    note = f"bootstrap over {min(N, PART)} of the samples"
    return Score(value, CMMD_SCALE * draws, scale, note, N, biased_by_size=True)


def _double(part: np.ndarray) -> Tensor:
    return torch.from_numpy(part.astype(np.float64))


def _products(x_PF: Tensor, y_PF: Tensor) -> Tensor:
    """x yᵀ by NumPy, which takes a matrix by itself at half the price."""
    return torch.from_numpy(x_PF.numpy() @ y_PF.numpy().T)


def _polynomial(x_PF: Tensor, y_PF: Tensor) -> Tensor:
    product = _products(x_PF, y_PF).div_(x_PF.shape[1]).add_(1)
    return product.square().mul_(product)


def _unit(x_PF: Tensor) -> Tensor:
    length = x_PF.norm(dim=1, keepdim=True)
    if not length.all():
        raise HemstitchError("an embedding is all zero and has no direction: the extractor is broken")
    return x_PF / length


def _gaussian(x_PF: Tensor, y_PF: Tensor) -> Tensor:
    """The kernel less 1, of unit vectors: the ones cancel in an MMD, and without them the small differences that are
    left keep their digits."""
    return _products(x_PF, y_PF).sub_(1).div_(CMMD_WIDTH**2).expm1_()


def _mean(x_NF: Rows, y_MF: Rows) -> float:
    """Mean of CMMD's kernel over all pairs, a block of the matrix at a time; half of it where both sets are one."""
    total = 0.0
    for i in range(0, len(x_NF), BLOCK):
        x = _unit(_double(block(x_NF, i, i + BLOCK)))
        for j in range(i if x_NF is y_MF else 0, len(y_MF), BLOCK):
            y = _unit(_double(block(y_MF, j, j + BLOCK)))
            total += float(_gaussian(x, y).sum()) * (2 if x_NF is y_MF and i != j else 1)
    return total / (len(x_NF) * len(y_MF))


def _off_diagonal(kernel_PP: Tensor) -> float:
    return float(kernel_PP.sum() - kernel_PP.diagonal().sum())


def _spread(x_NF: Rows, y_MF: Rows, kernel: Kernel, unbiased: bool, resamples: int) -> tuple[Array, float]:
    """(R,) MMD² of resamples of a fixed part of the samples, and the factor from their spread to that of all samples.

    A part of m = min(N, 3000) rows of either set is chosen at random, its kernel matrices are computed once, and each
    resample weights them. The spread of a mean over m rows is √(m/N) that of all N; where the two distributions are
    nearly equal the truth falls faster, as m/N, and the error is too large rather than too small.
    """
    x, y = _part(x_NF), _part(y_MF)
    m = len(x)
    weights = torch.from_numpy(np.stack([counts(m, r) for r in range(resamples)]) if resamples else np.empty((0, m)))
    weights = weights.double()
    same, other = kernel(x, x), kernel(y, y)
    if unbiased:
        same.fill_diagonal_(0)
        other.fill_diagonal_(0)
    within = ((weights @ same) * weights).sum(1) / (m * (m - unbiased))
    across = weights @ kernel(x, y).mean(1) / m
    draws = within + other.sum() / (len(y) * (len(y) - unbiased)) - 2 * across
    return draws.numpy(), math.sqrt(m / len(x_NF))


def _part(rows: Rows) -> Tensor:
    N = len(rows)
    index = np.random.Generator(np.random.Philox(key=N)).permutation(N)[:PART]
    return _double(gathered(rows, np.sort(index).astype(np.int64)))
