"""Speed against quality, measured: stitched plans beside the large model alone at fewer steps.

Shape suffixes: N samples, C channels, S size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..denoiser import Denoiser
from ..sampling import generate
from ..stitch.latency import ideal_seconds
from ..stitch.plan import Plan
from ..stitch.stitched import Stitched
from .features import Extractor
from .frechet import Moments, bootstrap_distances, frechet_distance


@dataclass(frozen=True)
class Point:
    """One measured plan.

    plan: readable. fraction: share of the small member in a plain small-first plan, else None. steps: solver steps.
    distance: Fréchet distance to the reference; distance_error: its standard error; gap_error: that of its difference
    from the baseline's distance. Both by bootstrap over the samples, the same draws for all plans, whose sample i has
    the same seed and label. accuracy: share of samples that the classifier takes for their class. ms_per_image: median
    over batches. speedup: against the baseline, measured; speedup_ideal: from the members'
    own cost per step, as if stitching cost nothing.
    """

    plan: str
    fraction: float | None
    steps: int
    distance: float
    distance_error: float
    gap_error: float
    accuracy: float
    ms_per_image: float
    speedup: float
    speedup_ideal: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """A plan to measure, what to call it, and the fraction if it is a plain small-first plan."""

    name: str
    fraction: float | None
    plan: Plan


@dataclass(frozen=True)
class Setting:
    """What all points of a curve share. labels: (N,). cost: seconds per call of each member at this batch size."""

    members: Mapping[str, Denoiser]
    labels: Tensor
    batch: int
    sampler: str
    guidance: float
    extractor: Extractor
    reference: Moments
    cost: Mapping[str, float]

    @property
    def rounds(self) -> int:
        return -(-len(self.labels) // self.batch)


class Sampled(NamedTuple):
    """One timed batch. candidate: its index. images: (B, C, S, S). seconds: per image."""

    candidate: int
    images: Tensor
    seconds: float


def rounds(setting: Setting, candidates: Sequence[Candidate]) -> Iterator[Sampled]:
    """Sample every candidate's images, a batch of each in turn, so that a slow spell of the machine falls on all.

    Sample i has the seed (0, i) under every plan.
    """
    models = [Stitched(setting.members, c.plan) for c in candidates]
    for start in range(0, len(setting.labels), setting.batch):
        labels = setting.labels[start : start + setting.batch]
        seeds = [(0, start + i) for i in range(len(labels))]
        for i, model in enumerate(models):
            begin = time.perf_counter()
            images = generate(model, labels, seeds=seeds, sampler=setting.sampler, guidance=setting.guidance).cpu()
            yield Sampled(i, images, (time.perf_counter() - begin) / len(labels))


@dataclass(frozen=True)
class Measured:
    """A candidate's features, bootstrap distances and seconds per image, from which points are made."""

    candidate: Candidate
    distance: float
    resampled: NDArray[np.float64]
    accuracy: float
    seconds: float

    @classmethod
    def of(cls, setting: Setting, candidate: Candidate, images: Tensor, seconds: Sequence[float]) -> Measured:
        features = setting.extractor.features(images)
        predicted = setting.extractor.net.head(features).argmax(1)
        return cls(
            candidate,
            frechet_distance(Moments.of(features), setting.reference),
            bootstrap_distances(features, setting.reference),
            float((predicted == setting.labels).double().mean()),
            statistics.median(seconds),
        )

    def point(self, baseline: Measured, cost: Mapping[str, float]) -> Point:
        """This candidate beside the baseline."""
        return Point(
            plan=self.candidate.name,
            fraction=self.candidate.fraction,
            steps=self.candidate.plan.steps,
            distance=self.distance,
            distance_error=float(self.resampled.std(ddof=1)),
            gap_error=float((self.resampled - baseline.resampled).std(ddof=1)),
            accuracy=self.accuracy,
            ms_per_image=1000 * self.seconds,
            speedup=baseline.seconds / self.seconds,
            speedup_ideal=ideal_seconds(baseline.candidate.plan, cost) / ideal_seconds(self.candidate.plan, cost),
        )
