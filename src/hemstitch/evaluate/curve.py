"""Speed against quality, measured: stitched plans beside the large model alone at fewer steps.

Shape suffixes: N samples, C channels, S size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bulk.settings import Quantise, to_pixels
from ..data.dataset import restored
from ..denoiser import Denoiser
from ..errors import HemstitchError
from ..sampling import sample
from ..stitch.adaptive import AdaptivePlan
from ..stitch.latency import ideal_seconds
from ..stitch.plan import Plan
from ..stitch.stitched import Stitched
from .extractors import Extractor
from .frechet import Moments, bootstrap_distances, frechet_distance
from .score import resampled_means


@dataclass(frozen=True)
class Point:
    """One measured plan.

    plan: readable. fraction: share of the small member in a plain small-first plan, else None. steps: solver steps.
    guidance: its scale. distance: Fréchet distance to the reference; distance_error: its standard error; gap_error:
    that of its difference from the distance of the baseline, the large model alone at every step and this guidance.
    Both by bootstrap over the samples, the same draws for all plans, whose sample i has the same seed and label.
    accuracy: share of samples that a classifier takes for their class, with its standard error; None without one.
    ms_per_image: median over batches. speedup: against the baseline, measured; speedup_ideal: from the members' own
    cost per step, as if stitching cost nothing; of an adaptive plan, at the mean of its samples' seams.
    """

    plan: str
    fraction: float | None
    steps: int
    guidance: float
    distance: float
    distance_error: float
    gap_error: float
    accuracy: float | None
    accuracy_error: float | None
    ms_per_image: float
    speedup: float
    speedup_ideal: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """A plan to measure, what to call it, the fraction if it is a plain small-first plan, and the guidance."""

    name: str
    fraction: float | None
    plan: Plan | AdaptivePlan
    guidance: float = 1.0

    @property
    def members(self) -> tuple[str, ...]:
        """Who may run."""
        plan = self.plan
        return (plan.first, plan.then) if isinstance(plan, AdaptivePlan) else tuple(plan.counts)


@dataclass(frozen=True)
class Setting:
    """What all points of a curve share.

    labels: (N,), None for unconditional members, with num. large: the member that is the baseline. reference: moments
    of its pooled features. cost: seconds per call of each member, where no plan uses it alone. decode: of latents.
    shown: so many samples of each plan are kept to be looked at.
    """

    members: Mapping[str, Denoiser]
    large: str
    labels: Tensor | None
    num: int
    batch: int
    sampler: str
    extractor: Extractor
    reference: Moments
    cost: Mapping[str, float]
    decode: Callable[[Tensor], Tensor] | None = None
    shown: int = 0

    @property
    def quantise(self) -> Quantise:
        """As `write_samples` does by default."""
        return "floor" if self.decode is None else "round"

    @property
    def rounds(self) -> int:
        return -(-self.num // self.batch)

    def images(self, model: Denoiser, guidance: float, start: int) -> tuple[Tensor, Tensor | None]:
        """A batch in -1..1, and its seams under an adaptive plan. Sample i has the seed (0, i) under every plan."""
        seeds = [(0, i) for i in range(start, min(self.num, start + self.batch))]
        labels = None if self.labels is None else self.labels[start : start + self.batch]
        for step in sample(model, labels, num=len(seeds), seeds=seeds, sampler=self.sampler, guidance=guidance):
            last = step
        if self.decode is not None:
            return self.decode(last.x).cpu(), last.seam
        return restored(last.x, model.spec.mean, model.spec.std).cpu(), last.seam


@dataclass
class _Taken:
    """What is kept of a candidate's samples."""

    seconds: list[float]
    pool: list[Tensor]
    right: list[Tensor]
    shown: list[Tensor]
    seams: list[Tensor]


class Finished(NamedTuple):
    """A candidate that all samples were drawn of. images: (n, C, S, S), the first ones."""

    point: Point
    images: Tensor


class Turn(NamedTuple):
    """A batch of one candidate. left: seconds to the end of all. seconds: per image. finished: if it was the last."""

    candidate: Candidate
    done: int
    total: int
    left: float
    seconds: float
    finished: Finished | None


def measure(setting: Setting, candidates: Sequence[Candidate]) -> Iterator[Turn]:
    """Sample and measure every candidate, a batch of each in turn, so that a slow spell of the machine falls on all.

    The first candidate of each guidance is its baseline: the large member alone. Only sampling, and decoding, is timed.
    """
    for guidance in {c.guidance for c in candidates}:
        first = next(c for c in candidates if c.guidance == guidance)
        if first.members != (setting.large,):
            raise HemstitchError(f"the first plan of each guidance is {setting.large} alone, not {first.plan}")
    models = [Stitched(setting.members, c.plan) for c in candidates]
    setting.images(models[0], candidates[0].guidance, 0)  # warm, lest the baseline alone pay for it
    taken = [_Taken([], [], [], [], []) for _ in candidates]
    baselines: dict[float, _Measured] = {}
    began, done, total = time.perf_counter(), 0, setting.rounds * len(candidates)
    for start in range(0, setting.num, setting.batch):
        is_last = start + setting.batch >= setting.num
        for candidate, model, mine in zip(candidates, models, taken, strict=True):
            begin = time.perf_counter()
            images, seams = setting.images(model, candidate.guidance, start)
            mine.seconds.append((time.perf_counter() - begin) / len(images))
            if seams is not None:
                mine.seams.append(seams)
            _take(setting, mine, images, start)
            done += 1
            finished = None
            if is_last:
                measured = _Measured.of(setting, candidate, mine)
                base = baselines.setdefault(candidate.guidance, measured)
                cost = _cost(setting, candidates, taken, candidate.guidance)
                shown = torch.stack(mine.shown) if mine.shown else images[:0]
                finished = Finished(measured.point(base, cost), shown)
            left = (time.perf_counter() - began) * (total - done) / done
            yield Turn(candidate, done, total, left, mine.seconds[-1], finished)


def _take(setting: Setting, mine: _Taken, images: Tensor, start: int) -> None:
    pixels = to_pixels(images, setting.quantise).expand(-1, 3, -1, -1)
    found = setting.extractor(pixels)
    mine.pool.append(found["pool"])
    if setting.extractor.name == "classifier" and setting.labels is not None:
        mine.right.append(found["logits"].argmax(1) == setting.labels[start : start + len(images)])
    mine.shown += list(images[: max(0, setting.shown - len(mine.shown))])


def _cost(
    setting: Setting, candidates: Sequence[Candidate], taken: Sequence[_Taken], guidance: float
) -> dict[str, float]:
    """Seconds per image and step of each member, from the plans that use it alone, in the same run; else what a call of
    it was measured to cost before."""
    cost: dict[str, float] = {}
    for candidate, mine in zip(candidates, taken, strict=True):
        names = candidate.members
        if candidate.guidance == guidance and len(names) == 1 and names[0] not in cost:
            cost[names[0]] = statistics.median(mine.seconds) / candidate.plan.steps
    return {name: seconds / setting.batch for name, seconds in setting.cost.items()} | cost


@dataclass(frozen=True)
class _Measured:
    """A candidate's distances and seconds per image, from which points are made."""

    candidate: Candidate
    distance: float
    resampled: NDArray[np.float64]
    accuracy: float | None
    accuracy_error: float | None
    seconds: float
    mean_seam: float | None

    @classmethod
    def of(cls, setting: Setting, candidate: Candidate, mine: _Taken) -> _Measured:
        features = torch.cat(mine.pool)
        right = torch.cat(mine.right).numpy() if mine.right else None
        return cls(
            candidate,
            frechet_distance(Moments.of(features), setting.reference),
            bootstrap_distances(features, setting.reference),
            None if right is None else float(right.mean()),
            None if right is None else float(resampled_means(right, 100).std(ddof=1)),
            statistics.median(mine.seconds),
            float(torch.cat(mine.seams).double().mean()) if mine.seams else None,
        )

    def point(self, baseline: _Measured, cost: Mapping[str, float]) -> Point:
        """This candidate beside the baseline."""
        seam = self.mean_seam
        return Point(
            plan=self.candidate.name if seam is None else f"{self.candidate.name}; seam {seam:.2f} on average",
            fraction=self.candidate.fraction,
            steps=self.candidate.plan.steps,
            guidance=self.candidate.guidance,
            distance=self.distance,
            distance_error=float(self.resampled.std(ddof=1)),
            gap_error=float((self.resampled - baseline.resampled).std(ddof=1)),
            accuracy=self.accuracy,
            accuracy_error=self.accuracy_error,
            ms_per_image=1000 * self.seconds,
            speedup=baseline.seconds / self.seconds,
            speedup_ideal=baseline.ideal_seconds(cost) / self.ideal_seconds(cost),
        )

    def ideal_seconds(self, cost: Mapping[str, float]) -> float:
        """What a sample would take on average if stitching cost nothing."""
        plan = self.candidate.plan
        if not isinstance(plan, AdaptivePlan):
            return ideal_seconds(plan, cost)
        assert self.mean_seam is not None  # an adaptive plan's samples have seams
        return self.mean_seam * cost[plan.first] + (plan.steps - self.mean_seam) * cost[plan.then]


def candidates_of(
    plans: Sequence[tuple[float | None, Plan | AdaptivePlan]],
    large: str,
    cost: Mapping[str, float],
    guidances: Sequence[float],
) -> list[Candidate]:
    """For each guidance the large member alone, the plans, then the large member alone in the time of each of them (in
    half the steps if none is faster). What an adaptive plan takes is not known before it is measured: it has none.

    plans: each with its fraction, if it is a plain small-first plan. cost: seconds per call of each member.
    """
    found = []
    for guidance in guidances:
        full = Plan.steps_each({large: plans[0][1].steps})
        stitched = [Candidate(str(plan), fraction, plan, guidance) for fraction, plan in plans]
        mine = [c for c in stitched if c.members == (large,) and c.plan.steps == full.steps][:1]
        mine = mine or [Candidate(str(full), 0.0, full, guidance)]
        mine += [c for c in stitched if c.plan != mine[0].plan]
        alone: list[Candidate] = []
        fixed = [c.plan for c in mine[1:] if isinstance(c.plan, Plan)]
        times = [round(ideal_seconds(plan, cost) / cost[large]) for plan in fixed]
        for steps in [max(2, n) for n in times if n < full.steps] or [full.steps // 2]:
            if 0 < steps < full.steps and all(steps != other.plan.steps for other in alone):
                plan = Plan.steps_each({large: steps})
                alone.append(Candidate(f"{large} alone, {steps} steps", None, plan, guidance))
        found += mine + alone
    return found
