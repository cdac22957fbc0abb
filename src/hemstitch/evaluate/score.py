"""A score with its standard error, the resamples behind the error, and how rows of features are read.

Shape suffixes: N samples, F features, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from ..errors import HemstitchError

Array = NDArray[np.float64]
Verdict = Literal["no difference", "lower", "higher", "no verdict"]
NORMAL_95 = 1.96  # 95 % of a normal distribution lies within so many deviations
MIXED = -1  # `resampled` of repeats of several sizes


class Rows(Protocol):
    """(N, F) features: an array, a memory map, a tensor, or whatever reads slices and int64 indices of its rows."""

    @property
    def shape(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's value and what tells its standard error.

    value: of the whole set. draws: (R,) values of resamples, or other numbers that spread as they do, fixed by the size
    of the set that is resampled, so that two sets of equal size are resampled alike. scale: from the draws' spread to
    the value's (1, or less where the draws are of a part of the set). note: what a reader must know. resampled: rows of
    the set that was resampled, 0 if unknown; scores of equal `resampled` are compared as pairs. biased_by_size: whether
    the expected value depends on `resampled`, so that scores of unequal sizes do not compare. degrees: 0, or of freedom
    of the spread where the draws are values of independent repeats (`repeated`).
    """

    value: float
    draws: Array
    scale: float = 1.0
    note: str = ""
    resampled: int = 0
    biased_by_size: bool = False
    degrees: int = 0

    @property
    def error(self) -> float:
        """Standard error of the value; NaN without at least 2 draws."""
        return _deviation(self.scale * self.draws)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval: 1.96 standard errors, of repeats as many as Student's distribution says."""
        return _quantile(self.degrees) * self.error

    @property
    def interval(self) -> tuple[float, float]:
        """The value ± half_width: 95 %."""
        return self.value - self.half_width, self.value + self.half_width


class Compared(NamedTuple):
    """gap: the first value less the second. half_width: of the gap's 95 % interval. said: what may be said of it."""

    gap: float
    half_width: float
    said: Verdict


def repeated(scores: Sequence[Score]) -> Score:
    """The mean of independent repeats of one metric, its error by their spread; a single score stays as it is.

    Repeats of unequal sizes have `resampled` MIXED. Raises `HemstitchError` for none.
    """
    if not scores:
        raise HemstitchError("a mean of repeats needs at least one score")
    if len(scores) == 1:
        return scores[0]
    n, values = len(scores), np.array([score.value for score in scores])
    sizes = {score.resampled for score in scores}
    return Score(
        float(values.mean()),
        values,
        n**-0.5,
        f"mean of {n} repeats; interval by their spread",
        sizes.pop() if len(sizes) == 1 else MIXED if 0 not in sizes else 0,
        any(score.biased_by_size for score in scores),
        n - 1,
    )


def gap_error(a: Score, b: Score) -> float:
    """Standard error of a.value - b.value.

    Scores whose resamples are the same rows are paired, draw by draw, and what both sets share (seeds, labels) cancels;
    where they share nothing the covariance is zero but for noise. Otherwise, and of repeats, the two errors add in
    quadrature.
    """
    resamples = not (a.degrees or b.degrees) and len(a.draws) == len(b.draws)
    if resamples and a.resampled and a.resampled == b.resampled:
        return _deviation(a.scale * a.draws - b.scale * b.draws)
    return math.hypot(a.error, b.error)


def compared(a: Score, b: Score) -> Compared:
    """a less b, with the 95 % interval of the difference, and whether a is lower or higher by more than that.

    The interval is ± 1.96 errors of the difference; with repeats it is Welch's (1947): Student's, of the degrees of
    freedom that the two errors have together, a bootstrap's being taken as known. "no verdict": the metric is biased by
    size and the sizes are known to differ, so that a difference of size would pass for one of quality. Raises
    `HemstitchError` for scores without errors.
    """
    gap, half = a.value - b.value, _quantile(_degrees(a, b)) * gap_error(a, b)
    if math.isnan(half):
        raise HemstitchError("a verdict needs the errors of both scores: compute them with at least 2 resamples")
    if _sizes_differ(a, b) and (a.biased_by_size or b.biased_by_size):
        return Compared(gap, half, "no verdict")
    if abs(gap) <= half:
        return Compared(gap, half, "no difference")
    return Compared(gap, half, "lower" if gap < 0 else "higher")


def verdict(a: Score, b: Score) -> Verdict:
    """What may be said of a against b: `compared`."""
    return compared(a, b).said


def _sizes_differ(a: Score, b: Score) -> bool:
    if not (a.resampled and b.resampled):
        return False
    return a.resampled != b.resampled or a.resampled == MIXED


def _degrees(a: Score, b: Score) -> float:
    """Welch and Satterthwaite's: (a² + b²)² / Σ error⁴ / degrees. 0 where neither is of repeats."""
    total = math.hypot(a.error, b.error)
    parts = [(score.error / total) ** 4 / score.degrees for score in (a, b) if score.degrees and total > 0]
    return 1 / sum(parts) if sum(parts) > 0 else 0.0


def _quantile(degrees: float) -> float:
    """So many deviations each side of the mean hold 95 %: Student's, or with 0 degrees a normal distribution's."""
    return float(student.ppf(0.975, degrees)) if degrees else NORMAL_95


def _deviation(draws_R: Array) -> float:
    return float(draws_R.std(ddof=1)) if len(draws_R) > 1 else math.nan


def counts(N: int, resample: int) -> NDArray[np.int64]:
    """(N,) how often each row is drawn when N are drawn with replacement: a function of N and the resample's number."""
    return np.bincount(_generator(N, resample).integers(N, size=N), minlength=N)


def halves(N: int, resample: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two random halves of N // 2, without a row in common: a function of N and the resample's number."""
    order = _generator(N, resample).permutation(N)
    return order[: N // 2], order[N // 2 : N // 2 * 2]


def _generator(N: int, resample: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([N, resample], dtype=np.uint64)))


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
