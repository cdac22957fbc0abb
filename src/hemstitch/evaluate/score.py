"""A score with its standard error, the resamples behind the error, and how rows of features are read.

Shape suffixes: N samples, F features, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import HemstitchError

Array = NDArray[np.float64]
Verdict = Literal["no difference", "lower", "higher"]
NORMAL_95 = 1.96  # 95 % of a normal distribution lies within so many deviations


class Rows(Protocol):
    """(N, F) features: an array, a memory map, a tensor, or whatever reads slices and int64 indices of its rows."""

    @property
    def shape(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's value and what tells its standard error.

    value: of the whole set. draws: (R,) values of resamples, fixed by the size of the set that is resampled, so that
    two sets of equal size are resampled alike. scale: from the draws' spread to the value's (1, or less where the draws
    are of a part of the set). note: what a reader must know. resampled: rows of the set that was resampled, 0 if
    unknown; scores of equal `resampled` are compared as pairs.
    """

    value: float
    draws: Array
    scale: float = 1.0
    note: str = ""
    resampled: int = 0

    @property
    def error(self) -> float:
        """Standard error of the value; NaN without at least 2 draws."""
        return _deviation(self.scale * self.draws)

    @property
    def interval(self) -> tuple[float, float]:
        """The value ± 1.96 standard errors."""
        return self.value - NORMAL_95 * self.error, self.value + NORMAL_95 * self.error


def gap_error(a: Score, b: Score) -> float:
    """Standard error of a.value - b.value.

    Scores whose resamples are the same rows are paired, draw by draw, and what both sets share (seeds, labels) cancels;
    where they share nothing the covariance is zero but for noise. Otherwise the two errors add in quadrature.
    """
    if a.resampled and a.resampled == b.resampled and len(a.draws) == len(b.draws):
        return _deviation(a.scale * a.draws - b.scale * b.draws)
    return math.hypot(a.error, b.error)


def verdict(a: Score, b: Score) -> Verdict:
    """Whether a's value is lower or higher than b's by more than 1.96 errors of their difference."""
    error = gap_error(a, b)
    if math.isnan(error):
        raise HemstitchError("a verdict needs the errors of both scores: compute them with at least 2 resamples")
    if abs(a.value - b.value) <= NORMAL_95 * error:
        return "no difference"
    return "lower" if a.value < b.value else "higher"


def _deviation(draws_R: Array) -> float:
    return float(draws_R.std(ddof=1)) if len(draws_R) > 1 else math.nan


def counts(N: int, resample: int) -> NDArray[np.int64]:
    """(N,) how often each row is drawn when N are drawn with replacement: a function of N and the resample's number."""
    generator = np.random.Generator(np.random.Philox(key=np.array([N, resample], dtype=np.uint64)))
    return np.bincount(generator.integers(N, size=N), minlength=N)


def resampled_means(values_N: NDArray[Any], resamples: int) -> Array:
    """(R,) means of one value per row over the resamples."""
    N = len(values_N)
    values = values_N.astype(np.float64)
    return np.array([counts(N, r) @ values / N for r in range(resamples)], dtype=np.float64)


def block(rows: Rows, start: int, stop: int) -> NDArray[Any]:
    """Rows start..stop as float32 or float64. Raises `HemstitchError` at NaN or infinity."""
    return _floats(rows[start:stop])


def gathered(rows: Rows, index: NDArray[np.int64]) -> NDArray[Any]:
    """The indexed rows as float32 or float64. Raises `HemstitchError` at NaN or infinity."""
    return _floats(rows[index])


def _floats(part: Any) -> NDArray[Any]:
    if isinstance(part, Tensor):
        part = part.detach().cpu()
        part = part if part.dtype in (torch.float32, torch.float64) else part.float()
    x = np.asarray(part)
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    if not np.isfinite(x).all():
        raise HemstitchError("features hold NaN or infinity: the samples or the extractor are broken")
    return x


def shape_of(rows: Rows, least: int, what: str, name: str = "features") -> tuple[int, int]:
    """(N, F) of the rows. Raises `HemstitchError` if they are not two-dimensional or fewer than `least`."""
    shape = tuple(int(n) for n in rows.shape)
    if len(shape) != 2 or shape[1] < 1 or shape[0] < least:
        noun = "sample" if least == 1 else "samples"
        raise HemstitchError(f"{what} needs at least {least} {noun} as (N, F) {name}, not {shape}")
    return shape[0], shape[1]


def same_width(rows: Rows, reference: Rows, least: int, what: str) -> tuple[int, int, int]:
    """(N, M, F) of samples and reference. Raises `HemstitchError` if too few, or if their widths differ."""
    N, F = shape_of(rows, least, what)
    M, other = shape_of(reference, least, what, "reference features")
    if other != F:
        raise HemstitchError(
            f"{what} compares features of one extractor: the samples have {F} per image, the reference {other}"
        )
    return N, M, F
