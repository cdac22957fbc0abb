"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), by nearest neighbours.

Distances are computed in float32 a block at a time, and those too near to a radius for float32 to tell are computed
again in float64: the answers are float64's.

Shape suffixes: N samples, M reference images, F features, P and Q rows of a block, T candidates, H holders.
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
from .score import Rows, Score, block, halves, resampled_means, shape_of

Progress = Callable[[int, int], None]
BLOCK = 4096  # rows: a block of distances is 64 MB
PAIRS = 2048  # float64 differences held at once: 34 MB at 2048 features
# Candidates beyond twice the k nearest: the order of the first, float32 may mistake, and among the rows of a random
# half the k-th nearest is one of 2k + 13 others but once in 30,000 (k = 3) or 750 (k = 5).
SPARE = 14
GATHERED = 2**23  # candidates looked up at once, some 100 MB
HOLDERS = 16  # samples' balls remembered around a reference image: half of the samples lack them all once in 65,000
WEIGHTS = (15 / 16, -11 / 16, 5 / 16, -1 / 16)  # of balls of 1..4 samples: ± P(a binomial of 4 halves is q or more)
TIE = 1e-12  # relative: float64's rounding of one squared distance, summed in whatever order


@dataclass(frozen=True, eq=False)
class Manifold:
    """A set of features and the balls around them, to be compared with any number of other sets.

    rows: (N, F) float32 on the device. ks: neighbour counts. near: (N, T) indices of the nearest rows, the row itself
    among them; squared: (N, T) float64, their squared distances, ascending. The 0th is the row's own; a row that occurs
    more than k times has radius zero.
    """

    rows: Tensor
    ks: tuple[int, ...]
    near: Tensor
    squared: Tensor

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
        return cls(rows, ks, *_exactly(rows, _candidates(rows, min(2 * max(ks) + SPARE, N), progress or _silent)))

    def squared_radius(self, k: int) -> Tensor:
        """(N,) float64, squared distance of each row to its k-th neighbour, itself not counted."""
        if k not in self.ks:
            raise HemstitchError(f"this manifold has radii for {self.ks} neighbours, not {k}: ask for them in `ks`")
        return self.squared[:, k]


class Neighbours(NamedTuple):
    """Errors are over the samples, the reference given: of precision and density by bootstrap, of recall by random
    halves (`_recall`), of coverage by the balls that hold few samples (`_coverage`)."""

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
    held = _held(samples, reference, k, density_k, progress or _silent)
    bootstrap = "bootstrap over the samples, reference given"

    def mean(values_N: np.ndarray, per: int, k: int) -> Score:
        draws = resampled_means(values_N, resamples) / per
        return Score(float(values_N.mean() / per), draws, 1.0, f"k = {k}; {bootstrap}", len(values_N))

    return Neighbours(
        precision=mean(held.precise, 1, k),
        recall=_recall(samples, held, k, resamples),
        density=mean(held.inside, density_k, density_k),
        coverage=_coverage(held, density_k, resamples),
    )


def _recall(samples: Manifold, held: _Held, k: int, resamples: int) -> Score:
    """Share of reference images that lie in a sample's ball, its error by random halves of the samples.

    Radii are those among the half's own rows, so that the two halves are independent sets of N/2 samples, and the
    spread of their difference tells the variance V of N/2 without bias. Twice the samples make balls half as large:
    what two images vary together falls by half, and what each varies by itself, D, stays. So that of N is (V + D) / 2.
    """
    N, M = len(held.precise), len(held.recalled)
    draws, apart = np.empty(resamples), 0.0
    some = max(1, GATHERED // (N * samples.near.shape[1]))
    for start in range(0, resamples, some):
        part = range(start, min(start + some, resamples))
        a, b = (_recalled_by(np.stack([halves(N, r)[i] for r in part]), samples, held, k) for i in (0, 1))
        draws[start : start + some] = (a.double().mean(1) - b.double().mean(1)).cpu().numpy()
        apart += float((a != b).double().mean(1).sum()) / M
    together = float(np.square(draws).sum())
    scale = 0.5 * np.sqrt(1 + min(1.0, apart / together)) if together > 0 else 0.5
    note = f"k = {k}; error by halves of the samples, reference given"
    return Score(float(held.recalled.mean()), draws, float(scale), note, N, biased_by_size=True)


def _recalled_by(halves_RP: np.ndarray, samples: Manifold, held: _Held, k: int) -> Tensor:
    """(R, M) whether each reference image is in the ball of a sample of the half, as candidates and holders tell.

    A row that has fewer than k candidates in the half has the radius of its last.
    """
    N, T = samples.near.shape
    kept = torch.zeros(len(halves_RP), N, dtype=torch.bool, device=samples.near.device)
    kept.scatter_(1, torch.from_numpy(halves_RP).to(kept.device), True)
    nearer = kept[:, samples.near].cumsum(2, dtype=torch.int16) <= k  # counting the row itself
    last = nearer.sum(2).clamp(max=T - 1)
    radii = samples.squared.float().take_along_dim(last.T, 1).T
    return (kept[:, held.holders] & (held.squared <= radii[:, held.holders])).any(1)


def _coverage(held: _Held, k: int, resamples: int) -> Score:
    """Share of balls that hold a sample, its error from the balls that hold few.

    J_q: over all sets of q samples, the sum of squares of how many balls hold those samples and no others. Were their
    number Poisson's, J_1 - J_2 + J_3 - … would estimate the variance of the number of balls covered without bias (J_1
    alone is the jackknife's, too large). As in Good and Toulmin's (1956) estimate of unseen species the terms grow
    noisy, and have the weights of Efron and Thisted (1976), WEIGHTS; what a fixed number takes away is taken off. The
    bootstrap, under which an empty ball stays empty and another loses its samples too easily, errs by a third either
    way. The draws are the resampled means of the balls that a sample holds alone, scaled to that variance.
    """
    N, M = len(held.precise), len(held.counts)
    alone = np.bincount(held.keys[0, held.counts == 1], minlength=N).astype(np.float64)
    fixed = float(alone.sum()) ** 2 / N
    variance, singly = -fixed, float(np.square(alone).sum())
    for q, weight in enumerate(WEIGHTS, 1):
        balls = np.unique(held.keys[:, held.counts == q], axis=1, return_counts=True)[1]
        variance += weight * float(np.square(balls).sum())
    variance = max(variance, singly / 4)
    scale = float(np.sqrt(variance / (singly - fixed))) if singly > fixed else 1.0
    draws = resampled_means(alone * (N / M), resamples)
    note = f"k = {k}; error by the balls of few samples, reference given"
    return Score(float((held.counts > 0).mean()), draws, scale, note, N, biased_by_size=True)


def _keys(N: int) -> Tensor:
    """(3, N) float32 integers that tell a sample, the 0th being its index, and whose sums tell a set of up to 4."""
    random = np.random.Generator(np.random.Philox(key=N)).integers(2**22, size=(2, N))
    return torch.from_numpy(np.concatenate([np.arange(N)[None], random]).astype(np.float32))


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


class _Held(NamedTuple):
    """Which points lie in which balls.

    Per sample, (N,): precise, whether in any reference ball (k); inside, in how many of the wider (density_k). Per
    reference image, (M,): recalled, whether in any sample's ball; counts, samples in its own, wider ball; keys, (3, M),
    sums of their `_keys`. holders, squared: (H, M) samples in whose balls it is deepest, as a share of the balls to the
    last candidates, and the squared distances to them, infinite where it is in none.
    """

    precise: np.ndarray
    inside: np.ndarray
    recalled: np.ndarray
    counts: np.ndarray
    keys: np.ndarray
    holders: Tensor
    squared: Tensor


def _held(samples: Manifold, reference: Manifold, k: int, density_k: int, progress: Progress) -> _Held:
    x, y = samples.rows, reference.rows
    sample_radii, radii, wider = (
        samples.squared_radius(k),
        reference.squared_radius(k),
        reference.squared_radius(density_k),
    )
    N, M, centre = len(x), len(y), y.mean(0)
    precise, recalled = (torch.zeros(n, dtype=torch.bool, device=x.device) for n in (N, M))
    inside, counts = (torch.zeros(n, dtype=torch.long, device=x.device) for n in (N, M))
    keys, of_samples = torch.zeros((3, M), dtype=torch.long, device=x.device), _keys(N).to(x.device)
    holders = _Holders.none(samples, M)
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
                counts[q] += in_wider.sum(0)
                keys[:, q] += (of_samples[:, p] @ in_wider.float()).long()
                holders.keep(q, pairs.squared_PQ, i)
                progress(i // BLOCK * len(columns) + j // BLOCK + 1, total)
    return _Held(
        precise.cpu().numpy(),
        inside.cpu().numpy(),
        recalled.cpu().numpy(),
        counts.cpu().numpy(),
        keys.cpu().numpy(),
        holders.index,
        holders.squared(),
    )


@dataclass(frozen=True, eq=False)
class _Holders:
    """Samples in whose balls each reference image is deepest.

    reach: (N,) squared radius of a sample's ball to its last candidate. share, index: (H, M) squared distance over
    reach, and the sample.
    """

    reach: Tensor
    share: Tensor
    index: Tensor

    @classmethod
    def none(cls, samples: Manifold, M: int) -> _Holders:
        reach = samples.squared[:, -1].float().clamp(min=torch.finfo(torch.float32).tiny)
        share = torch.full((HOLDERS, M), torch.inf, device=reach.device)
        return cls(reach, share, torch.zeros((HOLDERS, M), dtype=torch.long, device=reach.device))

    def keep(self, q: slice, squared_PQ: Tensor, first: int) -> None:
        """A block's, which is overwritten."""
        share_PQ = squared_PQ.clamp_(min=0).div_(self.reach[first : first + len(squared_PQ), None])
        values, rows = share_PQ.topk(min(HOLDERS, len(share_PQ)), dim=0, largest=False)
        self.share[:, q], chosen = torch.cat([self.share[:, q], values]).topk(HOLDERS, dim=0, largest=False)
        self.index[:, q] = torch.cat([self.index[:, q], rows + first]).gather(0, chosen)

    def squared(self) -> Tensor:
        """(H, M) squared distances, infinite beyond the reach."""
        return torch.where(self.share <= 1, self.share * self.reach[self.index], torch.inf)


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


def _exactly(rows_NF: Tensor, candidates_NT: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates in float64's order, and (N, T) float64 their squared distances."""
    N, T = candidates_NT.shape
    near, squared = torch.empty_like(candidates_NT), torch.empty(N, T, dtype=torch.float64, device=rows_NF.device)
    some = max(1, PAIRS // T)
    for start in range(0, N, some):
        part = slice(start, start + some)
        squared[part], order = _exact(rows_NF[part, None], rows_NF[candidates_NT[part]]).sort(dim=1)
        near[part] = candidates_NT[part].gather(1, order)
    return near, squared


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
