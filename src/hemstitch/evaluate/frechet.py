"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

Shape suffixes: N samples, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import HemstitchError


@dataclass(frozen=True)
class Moments:
    """Count, mean (F,) and unbiased covariance (F, F), float64."""

    count: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features_NF: Tensor) -> Moments:
        x = features_NF.double().cpu().numpy()
        if x.ndim != 2 or len(x) < 2:
            raise HemstitchError(f"moments need (N, F) features of at least 2 samples, not {x.shape}")
        if not np.isfinite(x).all():
            raise HemstitchError("features hold NaN or infinity: the samples or the extractor are broken")
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|² + tr(C_a + C_b - 2 (C_a C_b)^½).

    With C = R Rᵀ the trace of the product's root is the sum of the singular values of R_aᵀ R_b: no complex square root,
    and no square root of rounding noise where a covariance is singular.
    """
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    offset = a.mean - b.mean
    return float(offset @ offset + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """R with R Rᵀ = covariance; eigenvalues that are rounding noise count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    noise = values.max() * len(values) * np.finfo(np.float64).eps
    return vectors * np.sqrt(np.where(values > noise, values, 0.0))


def bootstrap_distances(features_NF: Tensor, reference: Moments, resamples: int = 20) -> NDArray[np.float64]:
    """(resamples,) distances of the samples drawn with replacement. Draws are fixed: equal for every set of N samples,
    so that differences between sets that share their seeds are paired."""
    generator = torch.Generator().manual_seed(0)
    N = len(features_NF)
    draws = [torch.randint(N, (N,), generator=generator) for _ in range(resamples)]
    return np.array([frechet_distance(Moments.of(features_NF[d]), reference) for d in draws])
