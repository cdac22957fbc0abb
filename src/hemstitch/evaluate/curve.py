"""Speed against quality, measured: stitched plans beside the large model alone at fewer steps.

Shape suffixes: N samples, C channels, S size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..sampling import generate
from ..stitch.latency import ideal_seconds
from ..stitch.plan import Plan
from ..stitch.stitched import Stitched
from .features import Extractor
from .frechet import Moments, frechet_distance


@dataclass(frozen=True)
class Point:
    """One measured plan.

    plan: readable. fraction: share of the small member in a plain small-first plan, else None. steps: solver steps.
    distance: Fréchet distance to the reference. accuracy: share of samples that the classifier takes for their class.
    ms_per_image: median over batches. speedup: against the large member alone at full steps, measured; speedup_ideal:
    the same from the members' own cost per call.
    """

    plan: str
    fraction: float | None
    steps: int
    distance: float
    accuracy: float
    ms_per_image: float
    speedup: float
    speedup_ideal: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
    baseline: Plan


@dataclass(frozen=True)
class Timed:
    """samples: (N, C, S, S). seconds: per batch."""

    samples: Tensor
    seconds: list[float]


def sampled(setting: Setting, plan: Plan) -> Timed:
    """Every label's sample under a plan; sample i has the seed (0, i) in all plans."""
    model = Stitched(setting.members, plan)
    samples, seconds = [], []
    for start in range(0, len(setting.labels), setting.batch):
        labels = setting.labels[start : start + setting.batch]
        begin = time.perf_counter()
        images = generate(
            model,
            labels,
            seeds=[(0, start + i) for i in range(len(labels))],
            sampler=setting.sampler,
            guidance=setting.guidance,
        )
        seconds.append((time.perf_counter() - begin) / len(labels))
        samples.append(images.cpu())
    return Timed(torch.cat(samples), seconds)


def curve(setting: Setting, plans: Sequence[tuple[str, float | None, Plan]]) -> Iterator[tuple[Point, Tensor]]:
    """Measure (name, fraction, plan) after another, the baseline first; yields each point with its samples."""
    baseline = None
    for name, fraction, plan in plans:
        timed = sampled(setting, plan)
        per_image = statistics.median(timed.seconds)
        baseline = per_image if baseline is None else baseline
        features = setting.extractor.features(timed.samples)
        predicted = setting.extractor.net.head(features).argmax(1)
        point = Point(
            plan=name,
            fraction=fraction,
            steps=plan.steps,
            distance=frechet_distance(Moments.of(features), setting.reference),
            accuracy=float((predicted == setting.labels).double().mean()),
            ms_per_image=1000 * per_image,
            speedup=baseline / per_image,
            speedup_ideal=ideal_seconds(setting.baseline, setting.cost) / ideal_seconds(plan, setting.cost),
        )
        yield point, timed.samples
