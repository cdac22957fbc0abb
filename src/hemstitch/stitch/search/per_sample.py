"""A seam for each sample instead of one for all, compared at about the same mean seam, and so cost.

The thresholds of several signals are calibrated on the samples that plans are chosen by, so that the mean seam is that
of a fixed plan; the best of them is judged beside the fixed plan on samples that chose nothing.

Shape suffixes: N samples, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...evaluate.score import Compared, Score, compared
from ...sampling import sample
from ..adaptive import AdaptivePlan, Side, Signal
from ..calibration import Signals, calibrated, signals
from ..plan import Plan
from ..stitched import Stitched
from .probes import Priced
from .store import Store
from .trunk import Candidate, Ground

RULES: tuple[tuple[Signal, Side], ...] = (("path", "above"), ("change", "above"), ("change", "below"))
REACH = 0.25  # of the steps: how far a sample's seam may lie from the mean


@dataclass(frozen=True, eq=False)
class PerSample:
    """A fixed plan and the best adaptive plan of the same mean seam, on the same samples.

    mean_seam: steps of the first member that samples judged came to. cost: of the adaptive plan over the fixed one's,
    by the members' own cost at that mean. tried: (signal, side) to the distance on the samples chosen by.
    """

    fixed: Candidate
    plan: AdaptivePlan
    mean_seam: float
    cost: float
    tried: dict[str, float]
    score: Score
    fixed_score: Score

    @property
    def gap(self) -> Compared:
        """The adaptive plan's distance less the fixed one's."""
        return compared(self.score, self.fixed_score)

    def __str__(self) -> str:
        seam = self.fixed.plan.counts[self.plan.first]
        said = {"lower": "better", "higher": "worse"}.get(self.gap.said, self.gap.said)
        if abs(self.cost - 1) > 0.02:
            said += f", at {self.cost:.2f} times the cost"
        return (
            f"A seam for each sample ({self.plan}; mean {self.mean_seam:.1f} steps) against {seam} for all: "
            f"{self.score.value:.3g} against {self.fixed_score.value:.3g}, {self.gap.gap:+.3g} ± "
            f"{self.gap.half_width:.2g}: {said}"
        )

    def to_data(self) -> dict[str, Any]:
        return {
            "fixed": self.fixed.plan.to_json(),
            "plan": self.plan.to_json(),
            "mean_seam": self.mean_seam,
            "cost": self.cost,
            "tried": self.tried,
            "distance": self.score.value,
            "fixed_distance": self.fixed_score.value,
            "gap": self.gap.gap,
            "gap_half_width": self.gap.half_width,
        }


def rows_of(store: Store, plan: AdaptivePlan | Plan, chunks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """((N, F) rows of the judge, (N,) seams) of the samples of these chunks under a plan."""
    ground, found, seams = store.ground, [], []
    for chunk in chunks:
        model = Stitched(ground.members, plan)
        *_, last = sample(model, ground.classes(chunk), **ground.options(chunk, plan.steps))
        found.append(store.judge.rows(last.x, store.beside.get(chunk)))
        seams.append(torch.full((len(last.x),), plan.steps) if last.seam is None else last.seam)
    return torch.cat(found), torch.cat(seams)


def recorded(ground: Ground, first: str, then: str, steps: int, chunks: Sequence[int]) -> Signals:
    """Both signals of the first member, sampled alone in the process of the second."""
    plan = AdaptivePlan(first, then, steps, float("inf"))
    model = Stitched(ground.members, plan)
    parts = [signals(model, ground.classes(chunk), **ground.options(chunk, steps)) for chunk in chunks]
    return Signals(torch.cat([p.change for p in parts]), torch.cat([p.path for p in parts]))


def compare(
    store: Store, priced: Priced, fixed: Candidate, chosen_by: Sequence[int], judged_by: Sequence[int]
) -> PerSample:
    """The best adaptive plan at the mean seam of a fixed one (as calibrated), both sampled on the chunks to judge by.

    fixed: a plain fraction of two members whose seam is at least 2, sampled on `judged_by` already.
    """
    first, then = fixed.plan.counts
    steps, seam = fixed.plan.steps, fixed.plan.counts[first]
    seen = recorded(store.ground, first, then, steps, chosen_by)
    reach = max(1, round(REACH * steps))
    earliest, latest = max(2, seam - reach), min(steps, seam + reach)
    tried: dict[str, float] = {}
    best: tuple[float, AdaptivePlan] | None = None
    for signal, side in RULES:
        threshold = calibrated(seen.of(signal), seam, side, earliest, latest).threshold
        plan = AdaptivePlan(first, then, steps, threshold, signal, side, earliest, latest)
        distance = store.judge.score(rows_of(store, plan, chosen_by)[0]).value
        tried[f"{signal} {side}"] = distance
        if best is None or distance < best[0]:
            best = distance, plan
    assert best is not None
    rows_NF, seams_N = rows_of(store, best[1], judged_by)
    judged, mean = range(judged_by[0], judged_by[-1] + 1), float(seams_N.double().mean())
    ends = [priced.ms(priced.candidate(best[1].fixed(count))) for count in (math.floor(mean), math.ceil(mean))]
    cost = (ends[0] + (ends[1] - ends[0]) * (mean - math.floor(mean))) / priced.ms(fixed)
    return PerSample(fixed, best[1], mean, cost, tried, store.judge.score(rows_NF), store.score(fixed, judged))
