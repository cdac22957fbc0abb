"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), by nearest neighbours.

Distances are computed in float32 a block at a time, and those too near to a radius for float32 to tell are computed
again in float64: the answers are float64's.

Shape suffixes: N samples, M reference images, F features, P and Q rows of a block, T candidates, K neighbour counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import HemstitchError
from .score import Rows, Score, block, resampled_means, shape_of

Progress = Callable[[int, int], None]
BLOCK = 4096  # rows: a block of distances is 64 MB
PAIRS = 2048  # float64 differences held at once: 34 MB at 2048 features
SLACK = 4  # candidates beyond the k nearest, whose order float32 may mistake
TIE = 1e-12  # relative: float64's rounding of one squared distance, summed in whatever order


@dataclass(frozen=True, eq=False)
class Manifold:
    """A set of features and the balls around them, to be compared with any number of other sets.

    rows: (N, F) float32 on the device. ks: neighbour counts. squared_radii: (N, K) float64, squared distance of each
    row to its k-th neighbour, itself not counted; a row that occurs more than k times has radius zero.
    """

    rows: Tensor
    ks: tuple[int, ...]
    squared_radii: Tensor

    @classmethod
    def of(
        cls,
        features_NF: Rows,
        ks: tuple[int, ...] = (3, 5),
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Manifold:
        """progress: called with blocks done and blocks in all. Raises `HemstitchError` for fewer than max(ks) + 1
        rows, NaN or infinity. Features are taken as float32."""
        if not ks or min(ks) < 1:
            raise HemstitchError(f"neighbour counts are 1 or more, not {ks}")
        N, F = shape_of(features_NF, max(ks) + 1, f"a radius to the {max(ks)}th neighbour")
        rows = torch.empty(N, F, device=device)
        for start in range(0, N, BLOCK):
            part = block(features_NF, start, start + BLOCK).astype(np.float32)
            rows[start : start + BLOCK] = torch.from_numpy(part).to(device)
        candidates_NT = _candidates(rows, min(max(ks) + 1 + SLACK, N), progress or _silent)
        return cls(rows, ks, _exact_radii(rows, candidates_NT, ks))

    def squared_radius(self, k: int) -> Tensor:
        """(N,) float64."""
        if k not in self.ks:
            raise HemstitchError(f"this manifold has radii for {self.ks} neighbours, not {k}: ask for them in `ks`")
        return self.squared_radii[:, self.ks.index(k)]


class Neighbours(NamedTuple):
    """precision and density: errors by bootstrap over the samples. recall and coverage: over the reference images,
    given the samples."""

    precision: Score
    recall: Score
    density: Score
    coverage: Score


def neighbours(
    samples: Manifold,
    reference: Manifold,
    k: int = 3,
    density_k: int = 5,
    resamples: int = 100,
    progress: Progress | None = None,
) -> Neighbours:
    """Four shares, each block of distances serving all of them.

    precision: of samples within the k-th neighbour's distance of some reference image; recall: the reverse
    (Kynkäänniemi et al. 2019, eqs. 1 and 2; k = 3 as ADM's evaluator). density: reference balls, of radius to the
    `density_k`-th neighbour, that a sample lies in, over density_k; coverage: balls that hold a sample (Naeem et al.
    2020, sec. 3). A sample on the border is within a ball of the first two and, as published, outside one of the
    other two; borders are equal within 1e-12.
    """
    _check_pair(samples, reference)
    precise, inside, recalled, covered = _held(samples, reference, k, density_k, progress or _silent)
    N, M = len(precise), len(recalled)
    by_sample, by_reference = "bootstrap over the samples", "bootstrap over the reference images, given the samples"

    def score(values: np.ndarray, per: float, note: str, count: int) -> Score:
        return Score(float(values.mean() / per), resampled_means(values, resamples) / per, 1.0, note, count)

    return Neighbours(
        precision=score(precise, 1, f"k = {k}; {by_sample}", N),
        recall=score(recalled, 1, f"k = {k}; {by_reference}", M),
        density=score(inside, density_k, f"k = {density_k}; {by_sample}", N),
        coverage=score(covered, 1, f"k = {density_k}; {by_reference}", M),
    )


def _check_pair(samples: Manifold, reference: Manifold) -> None:
    if samples.rows.shape[1] != reference.rows.shape[1]:
        raise HemstitchError(
            "precision and recall compare features of one extractor: "
            f"the samples have {samples.rows.shape[1]} per image, the reference {reference.rows.shape[1]}"
        )
    if samples.rows.device != reference.rows.device:
        raise HemstitchError(
            f"both manifolds belong on one device, not on {samples.rows.device} and {reference.rows.device}"
        )


def _held(
    samples: Manifold, reference: Manifold, k: int, density_k: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per sample: in any ball, in how many. Per reference image: in any sample's ball, any sample in its own."""
    x, y = samples.rows, reference.rows
    sample_radii, radii, wider = (
        samples.squared_radius(k),
        reference.squared_radius(k),
        reference.squared_radius(density_k),
    )
    N, M, centre = len(x), len(y), y.mean(0)
    precise, recalled, covered = (torch.zeros(n, dtype=torch.bool, device=x.device) for n in (N, M, M))
    inside = torch.zeros(N, dtype=torch.long, device=x.device)
    columns = range(0, M, BLOCK)
    total = len(range(0, N, BLOCK)) * len(columns)
    with _full_precision():
        for i in range(0, N, BLOCK):
            p = slice(i, i + BLOCK)
            for j in columns:
                q = slice(j, j + BLOCK)
                pairs = _Pairs(x[p], y[q], centre)
                in_ball, in_wider, in_sample = pairs.within(
                    (radii[q], False), (wider[q], True), (sample_radii[p, None], False)
                )
                precise[p] |= in_ball.any(1)
                inside[p] += in_wider.sum(1)
                recalled[q] |= in_sample.any(0)
                covered[q] |= in_wider.any(0)
                progress(i // BLOCK * len(columns) + j // BLOCK + 1, total)
    return precise.cpu().numpy(), inside.cpu().numpy(), recalled.cpu().numpy(), covered.cpu().numpy()


class _Pairs:
    """Squared distances of two blocks in float32, and float64's answer to what is within a radius.

    From centred features, |x|² + |y|² - 2 x·y errs by a few √F roundings of |x|² + |y|².
    """

    def __init__(self, x_PF: Tensor, y_QF: Tensor, centre_F: Tensor) -> None:
        self.x, self.y = x_PF, y_QF
        x, y = x_PF - centre_F, y_QF - centre_F
        self.x_norm, self.y_norm = x.square().sum(1), y.square().sum(1)
        self.squared_PQ = torch.addmm(self.x_norm[:, None] + self.y_norm, x, y.T, alpha=-2)

    def within(self, *borders: tuple[Tensor, bool]) -> list[Tensor]:
        """(P, Q) whether each distance is within each border: (squared radius, float64 and broadcastable; strictly)."""
        rounding = 4 * torch.finfo(torch.float32).eps * self.x.shape[1] ** 0.5
        x_noise, y_noise = rounding * self.x_norm[:, None], rounding * self.y_norm
        masks, unsure = [], torch.zeros_like(self.squared_PQ, dtype=torch.bool)
        for radius, _ in borders:
            gap = self.squared_PQ - radius.float()
            masks.append(gap <= 0)
            unsure |= gap.abs_().sub_(x_noise) <= y_noise
        at = unsure.nonzero()
        for pairs in torch.split(at, PAIRS):
            p, q = pairs.unbind(1)
            exact = _exact(self.x[p], self.y[q])
            for mask, (radius, strict) in zip(masks, borders, strict=True):
                border = radius.expand(self.squared_PQ.shape)[p, q]
                mask[p, q] = exact < border * (1 - TIE) if strict else exact <= border * (1 + TIE)
        return masks


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances along the last dimension, from float64 differences: exactly zero for equal rows."""
    return (a.double() - b.double()).square_().sum(-1)


def _candidates(rows_NF: Tensor, T: int, progress: Progress) -> Tensor:
    """(N, T) indices of the nearest rows by float32, the row itself among them; each block serves both its sides."""
    N, centre = len(rows_NF), rows_NF.mean(0)
    nearest = torch.full((N, T), torch.inf, device=rows_NF.device)
    index = torch.zeros((N, T), dtype=torch.long, device=rows_NF.device)

    def keep(p: slice, distances_PQ: Tensor, first: int) -> None:
        values, columns = distances_PQ.topk(min(T, distances_PQ.shape[1]), dim=1, largest=False)
        nearest[p], chosen = torch.cat([nearest[p], values], 1).topk(T, dim=1, largest=False)
        index[p] = torch.cat([index[p], columns + first], 1).gather(1, chosen)

    starts = range(0, N, BLOCK)
    done, total = 0, len(starts) * (len(starts) + 1) // 2
    with _full_precision():
        for i in starts:
            for j in range(i, N, BLOCK):
                p, q = slice(i, i + BLOCK), slice(j, j + BLOCK)
                squared_PQ = _Pairs(rows_NF[p], rows_NF[q], centre).squared_PQ
                if i == j:
                    squared_PQ.fill_diagonal_(-torch.inf)  # rounding must not lose the row itself
                else:
                    keep(q, squared_PQ.T, i)
                keep(p, squared_PQ, j)
                done += 1
                progress(done, total)
    return index


def _exact_radii(rows_NF: Tensor, candidates_NT: Tensor, ks: tuple[int, ...]) -> Tensor:
    """(N, K) float64 squared distances to the k-th candidates, in float64's order; the 0th is the row itself."""
    parts = []
    some = max(1, PAIRS // candidates_NT.shape[1])
    for rows, near in zip(torch.split(rows_NF, some), torch.split(candidates_NT, some), strict=True):
        parts.append(_exact(rows[:, None], rows_NF[near]).sort(dim=1).values[:, list(ks)])
    return torch.cat(parts)


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products as float32: TF32 and bfloat16, if a caller allows them, err more than `_Pairs` does."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _silent(done: int, total: int) -> None:
    pass
