"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

Shape suffixes: N samples, F features, K rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf

from ..errors import HemstitchError
from .score import Array, Rows, Score, block, counts, shape_of

BLOCK = 2048  # rows: 16 MB of 2048 float32 features
DRAWS_AT_ONCE = 5  # scatter matrices held while the features are read: 168 MB at 2048 features
# Variance of a feature, of its own, that is noise when the other features tell all of the rest. float32 features are
# known to 6e-8 of themselves, hence their variances to 4e-15; float64 sums of thousands of products to some 1e-15.
COLLINEAR = 3e-14
ROUNDING = 1e-5  # of published covariances, which may be float32, beside their largest number


@dataclass(frozen=True)
class Moments:
    """Mean (F,) and unbiased covariance (F, F), float64. count: samples, None where only statistics were published."""

    count: int | None
    mean: Array
    covariance: Array

    @classmethod
    def of(cls, features_NF: Rows) -> Moments:
        """Of all rows. Raises `HemstitchError` for fewer than 2, NaN or infinity."""
        return cls.streamed(features_NF)

    @classmethod
    def streamed(cls, features_NF: Rows, rows: int = BLOCK) -> Moments:
        """The same, reading `rows` rows at a time."""
        N, F = shape_of(features_NF, 2, "a covariance")
        total = Accumulator.empty(F)
        for start in range(0, N, rows):
            total = total.updated(block(features_NF, start, start + rows))
        return total.moments()

    @classmethod
    def published(cls, mean: NDArray[Any], covariance: NDArray[Any]) -> Moments:
        """From a file of statistics, `mu` and `sigma`. Raises `HemstitchError` if they are not moments: of wrong shape,
        not finite, or no covariance (not symmetric, or with variances below zero, but for rounding)."""
        mu, sigma = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise HemstitchError(
                f"statistics are a mean (F,) and a covariance (F, F), not {mu.shape} and {sigma.shape}"
            )
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise HemstitchError("the statistics hold NaN or infinity: compute them again from the features")
        rounding = ROUNDING * float(np.abs(sigma).max(initial=0))
        apart, least = float(np.abs(sigma - sigma.T).max(initial=0)), float(sigma.diagonal().min(initial=0))
        if apart > rounding:
            raise HemstitchError(
                f"`sigma` is no covariance: it is not symmetric (entries differ by {apart:.3g} across the diagonal): "
                "give the whole matrix, not a triangle or a factor of it"
            )
        if least < -rounding:
            raise HemstitchError(f"`sigma` is no covariance: it has variances below zero, down to {least:.3g}")
        return cls(None, mu, sigma)


@dataclass(frozen=True, eq=False)
class Accumulator:
    """Count, mean (F,) and scatter about the mean (F, F) of the rows so far, float64; a value that parts merge into.

    Merging is pairwise about each part's own mean (Chan, Golub and LeVeque 1983), so that a mean large beside
    the deviation costs no digits. Parts of several processes merge in any order.
    """

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def empty(cls, width: int) -> Accumulator:
        return cls(0, np.zeros(width), np.zeros((width, width)))

    def updated(self, part_NF: NDArray[Any]) -> Accumulator:
        """With the rows of a block."""
        if len(part_NF) == 0:
            return self
        x = part_NF.astype(np.float64)
        mean = x.mean(0)
        x -= mean
        rest = x.mean(0)  # what rounding left of the mean: far from zero it is not nothing
        x -= rest
        return self.merged(Accumulator(len(x), mean + rest, x.T @ x))

    def merged(self, other: Accumulator) -> Accumulator:
        """With another part. Raises `HemstitchError` if their widths differ."""
        if self.mean.shape != other.mean.shape:
            raise HemstitchError(f"parts of one set have one width, not {len(self.mean)} and {len(other.mean)}")
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        offset = other.mean - self.mean
        scatter = np.outer(offset * (self.count * other.count / count), offset)
        scatter += self.scatter
        scatter += other.scatter
        return Accumulator(count, self.mean + offset * (other.count / count), scatter)

    def moments(self) -> Moments:
        if self.count < 2:
            raise HemstitchError(f"a covariance needs at least 2 samples, not {self.count}")
        return Moments(self.count, self.mean, self.scatter / (self.count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|² + tr(C_a + C_b - 2 (C_a C_b)^½).

    With C = R Rᵀ the trace of the product's root is the sum of the singular values of R_aᵀ R_b: no complex square root,
    and no square root of rounding noise where a covariance is singular.
    """
    _check_widths(a, b)
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    offset = a.mean - b.mean
    return float(offset @ offset + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _check_widths(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise HemstitchError(
            f"a Fréchet distance compares features of one extractor, not of widths {len(a.mean)} and {len(b.mean)}"
        )


def _factor(covariance_FF: Array) -> Array:
    """R (F, K) with R Rᵀ = covariance, K its rank: Cholesky of the correlations, largest pivot first.

    Of the correlations, because the rounding of Cholesky is relative to each feature's own deviation: features of very
    different scale keep their digits (Higham 2002, th. 10.3 and 10.5), which eigenvectors would mix.
    """
    scale = np.sqrt(covariance_FF.diagonal().clip(0))
    scale[scale == 0] = 1
    correlation = covariance_FF / scale / scale[:, None]
    noise = COLLINEAR + len(scale) * np.finfo(np.float64).eps
    packed, pivots, rank, _ = dpstrf(correlation, tol=noise, lower=1, overwrite_a=1)
    factor = np.empty((len(scale), rank))
    factor[pivots - 1] = np.tril(packed[:, :rank])
    return factor * scale[:, None]


def frechet_score(features_NF: Rows, reference: Moments, resamples: int = 20) -> Score:
    """The distance of the samples to the reference; its error is by bootstrap over the samples, the reference given.

    Biased by size: the fewer the samples, the larger the distance (Bińkowski et al. 2018, sec. 4; Chong and Forsyth
    2020).
    """
    distance = frechet_distance(Moments.streamed(features_NF), reference)
    draws = bootstrap_distances(features_NF, reference, resamples)
    note = "bootstrap over the samples, reference given"
    return Score(distance, draws, note=note, resampled=len(features_NF), biased_by_size=True)


def bootstrap_distances(features_NF: Rows, reference: Moments, resamples: int = 20) -> Array:
    """(resamples,) distances of the samples drawn with replacement. Draws are fixed: equal for every set of N samples,
    so that differences between sets that share their seeds are paired.

    For their spread alone: sums of products are float32 within a block where N is well above F (see `_weighted`).
    """
    N, F = shape_of(features_NF, 2, "a bootstrap")
    mean = np.zeros(F)
    for start in range(0, N, BLOCK):
        mean += block(features_NF, start, start + BLOCK).sum(0, dtype=np.float64) / N
    _check_widths(Moments(N, mean, reference.covariance), reference)
    root = _factor(reference.covariance)
    distances = []
    for first in range(0, resamples, DRAWS_AT_ONCE):
        weights = [counts(N, r) for r in range(first, min(first + DRAWS_AT_ONCE, resamples))]
        for drawn in _weighted(features_NF, mean, weights):
            # root² of singular values is enough here: zeros come back as 1e-8, in every draw alike
            values = np.linalg.eigvalsh(root.T @ drawn.covariance @ root)
            offset = drawn.mean - reference.mean
            cross = np.sqrt(values.clip(0)).sum()
            traces = np.trace(drawn.covariance) + np.trace(reference.covariance)
            distances.append(offset @ offset + traces - 2 * cross)
    return np.array(distances, dtype=np.float64)


def _weighted(features_NF: Rows, mean_F: Array, weights: Sequence[NDArray[np.int64]]) -> list[Moments]:
    """Moments under each weighting, read in one pass, about the unweighted mean.

    With few samples for their width a covariance is singular, and the square roots of its zeros would show float32's
    rounding; then the products, which are few, are float64.
    """
    N, F = features_NF.shape
    dtype: type[np.floating[Any]] = np.float64 if N <= 4 * F else np.float32
    scatters = [np.zeros((F, F)) for _ in weights]
    sums = [np.zeros(F) for _ in weights]
    for start in range(0, N, BLOCK):
        x = (block(features_NF, start, start + BLOCK) - mean_F).astype(dtype)
        for scatter, total, all_weights in zip(scatters, sums, weights, strict=True):
            weight = all_weights[start : start + BLOCK]
            drawn = weight > 0
            part = x[drawn] * np.sqrt(weight[drawn], dtype=dtype)[:, None]
            scatter += part.T @ part
            total += weight @ x
    result = []
    for scatter, total in zip(scatters, sums, strict=True):
        offset = total / N
        scatter -= np.outer(offset, N * offset)
        scatter /= N - 1
        result.append(Moments(N, mean_F + offset, scatter))
    return result
