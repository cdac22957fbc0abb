"""What a search found: the plan, what it was judged beside, and how all of it was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...denoiser import ENDLESS
from ...evaluate.score import Compared, Score, compared
from ...files import write_text
from ...grid import timesteps
from ..plan import Plan
from .cost import Costs
from .evidence import Evidence
from .frontier import Floats
from .per_sample import PerSample
from .probes import Kind, Priced
from .searching import Answer, Search
from .surrogate import Belief
from .trunk import Candidate

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """A distance with half of its 95 % interval. gap: less that of the largest member at all steps, with its own."""

    distance: float
    half_width: float
    gap: float
    gap_half_width: float
    samples: int


@dataclass(frozen=True)
class Point:
    """A plan that was sampled.

    kind: why. guidance_interval: log-SNR within which guidance applies, None for that asked of the search. share: of
    the largest member's time at all steps; ms_per_image: at the batch size searched for; both from the members' own
    cost. expected_gap: by what was learned from all plans together. chosen_by: what it was ranked by. judged: on
    new samples, if it was a finalist.
    """

    plan: Plan
    kind: Kind
    guidance_interval: Interval | None
    share: float
    ms_per_image: float
    expected_gap: float
    chosen_by: Measure
    judged: Measure | None

    def to_data(self) -> dict[str, Any]:
        return {**asdict(self), "plan": json.loads(self.plan.to_json())}


@dataclass(frozen=True)
class Ahead:
    """The frontier as believed: the plan expected to be best at this share of the time, and its gap."""

    share: float
    expected_gap: float
    plan: Plan

    def to_data(self) -> dict[str, Any]:
        return {"share": self.share, "expected_gap": self.expected_gap, "plan": json.loads(self.plan.to_json())}


@dataclass(frozen=True)
class Result:
    """The answer for one budget. found, fraction and fewer as in `Answer`; verdict in words."""

    budget: float
    found: Point
    fraction: Point | None
    fewer: Point | None
    verdict: str


@dataclass(frozen=True, eq=False)
class Found:
    """A search's result; `plan` and `guidance_interval` are the first budget's.

    results: one for each budget. points: every plan that was sampled, by share. frontier: as believed, by share. unit:
    of distances. learned: (steps, options) terms of `evidence.options`, what a step by each adds to the distance.
    seconds: what the search took, in all sittings; images: how many samples the largest member would have made in that
    time. settings: what was asked. per_sample: adaptive plans beside fixed ones, where asked for. belief, priced: in
    memory only, for `expected_gap`.
    """

    results: tuple[Result, ...]
    points: tuple[Point, ...]
    frontier: tuple[Ahead, ...]
    unit: str
    costs: Costs
    evidence: Evidence
    learned: Floats
    notes: tuple[str, ...]
    seconds: float
    images: float
    settings: dict[str, Any]
    provenance: dict[str, str]
    per_sample: tuple[PerSample, ...]
    belief: Belief
    priced: Priced

    @property
    def plan(self) -> Plan:
        return self.results[0].found.plan

    @property
    def guidance_interval(self) -> Interval | None:
        return self.results[0].found.guidance_interval

    @property
    def verdict(self) -> str:
        return "\n\n".join([*(result.verdict for result in self.results), *map(str, self.per_sample)])

    def expected_gap(self, plan: Plan, guided: Sequence[bool] | None = None) -> float:
        """The distance that any plan of these members is expected to have beyond the largest member's.

        guided: one mark per step; by default guidance is where it was asked for.
        """
        marks = self.priced.guided(plan.steps, plan.assignment[-1]) if guided is None else tuple(guided)
        return self.belief.additive(Candidate(plan, marks))

    def to_data(self) -> dict[str, Any]:
        return {
            "results": [
                {
                    "budget": r.budget,
                    "found": r.found.to_data(),
                    "fraction": r.fraction and r.fraction.to_data(),
                    "fewer_steps": r.fewer and r.fewer.to_data(),
                    "verdict": r.verdict,
                }
                for r in self.results
            ],
            "points": [point.to_data() for point in self.points],
            "frontier": [ahead.to_data() for ahead in self.frontier],
            "unit": self.unit,
            "costs": self.costs.to_data(),
            "evidence": self.evidence.to_data(),
            "per_sample": [trial.to_data() for trial in self.per_sample],
            "learned": self.learned.tolist(),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "images_of_the_largest": self.images,
            "settings": self.settings,
            "provenance": self.provenance,
        }

    def save(self, path: str | Path) -> None:
        """The plan of the first budget as JSON, for `Plan.from_json` and `hemstitch sample --plan`."""
        write_text(Path(path), self.plan.to_json())

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{table(self)}"


def found_of(search: Search, settings: dict[str, Any], provenance: dict[str, str], seconds: float) -> Found:
    """The result of a search that has run."""
    assert search.evidence is not None
    belief = search.belief
    points = {c: _point(search, belief, c) for c in search.level}
    fronts = search.fronts(belief)
    ahead = sorted(
        (
            Ahead(search.priced.share(candidate), offset + ending.value, candidate.plan)
            for offset, endings in fronts.values()
            for ending in endings
            for candidate in [search.candidate(ending)]
        ),
        key=lambda a: (a.share, a.expected_gap),
    )
    frontier: list[Ahead] = []
    for one in ahead:
        if not frontier or one.expected_gap < frontier[-1].expected_gap:
            frontier.append(one)
    per_image = search.priced.ms(search.priced.full) / search.question.ground.batch / 1000
    return Found(
        tuple(_result(search, answer, points) for answer in search.answers),
        tuple(sorted(points.values(), key=lambda p: (p.share, p.expected_gap))),
        tuple(frontier),
        search.store.judge.unit,
        search.priced.costs,
        search.evidence,
        belief.values(search.question.full)[0],
        tuple(search.notes),
        seconds,
        seconds / per_image,
        settings,
        provenance,
        tuple(search.trials),
        belief,
        search.priced,
    )


def _measure(score: Score, against: Score) -> Measure:
    gap = compared(score, against)
    return Measure(score.value, score.half_width, gap.gap, gap.half_width, score.resampled)


def _point(search: Search, belief: Belief, candidate: Candidate) -> Point:
    full, store = search.priced.full, search.store
    chunks = range(search.level[candidate])
    finalists = {c for answer in search.answers for c in answer.finalists} | {full}
    judged = None
    if candidate in finalists:
        judged = _measure(search.verdict_score(candidate), search.verdict_score(full))
    expected = belief.expected(candidate) if candidate != full else 0.0
    return Point(
        candidate.plan,
        search.kinds[candidate],
        interval_of(search, candidate),
        search.priced.share(candidate),
        search.priced.ms(candidate) / search.question.ground.batch,
        expected,
        _measure(store.score(candidate, chunks), store.score(full, chunks)),
        judged,
    )


def interval_of(search: Search, candidate: Candidate) -> Interval | None:
    """The log-SNR interval that guides these steps and no others; None if it is what was asked for.

    Its ends lie half-way between the steps', so that rounding moves no step across.
    """
    ground = search.question.ground
    if candidate.guided == ground.guided(candidate.plan.steps, ground.process(candidate.plan)):
        return None
    process = ground.process(candidate.plan)
    log_snr = process.log_snr(timesteps(process, candidate.plan.steps, ground.grid)).tolist()
    finite = [v for v in log_snr if math.isfinite(v)]  # a flow process begins at pure noise
    log_snr = [min(max(v, finite[0] - 2), finite[-1] + 2) for v in log_snr]
    on = [i for i, flag in enumerate(candidate.guided) if flag]
    if not on:
        return (log_snr[-1] + 1, log_snr[-1] + 2)
    low = (log_snr[on[0]] + log_snr[on[0] - 1]) / 2 if on[0] else -ENDLESS
    high = (log_snr[on[-1]] + log_snr[on[-1] + 1]) / 2 if on[-1] + 1 < len(log_snr) else ENDLESS
    return (low, high)


def _result(search: Search, answer: Answer, points: dict[Candidate, Point]) -> Result:
    def point(candidate: Candidate | None) -> Point | None:
        return None if candidate is None else points[candidate]

    found = points[answer.found]
    return Result(answer.budget, found, point(answer.fraction), point(answer.fewer), _verdict(search, answer, found))


def _span(interval: Interval) -> str:
    """An interval of log-SNR in words."""
    low, high = interval
    if low <= -ENDLESS:
        return f"up to log-SNR {high:.3g}"
    return f"from log-SNR {low:.3g} on" if high >= ENDLESS else f"within log-SNR {low:.3g} to {high:.3g}"


_SAID = {"no difference": "no difference", "lower": "better", "higher": "worse", "no verdict": "no verdict"}


def _gap(gap: Compared) -> str:
    return f"{gap.gap:+.3g} ± {gap.half_width:.2g}: {_SAID[gap.said]}"


def _verdict(search: Search, answer: Answer, found: Point) -> str:
    """One paragraph: what was found, beside what anyone would try, with intervals."""
    full, large = search.priced.full, search.priced.largest
    mine, all_large = search.verdict_score(answer.found), search.verdict_score(full)
    per_image = search.priced.ms(full) / search.question.ground.batch
    said = (
        f"Within {100 * answer.budget:.3g} % of the time of {large} at {full.plan.steps} steps "
        f"({found.ms_per_image:.3g} of {per_image:.3g} ms per image): {found.plan}"
    )
    if found.guidance_interval is not None:
        said += f", guided {_span(found.guidance_interval)}"
    first = "that chose nothing" if answer.rejected is None else "that no plan was proposed by"
    said += (
        f". On {mine.resampled} samples {first}, its {search.store.judge.unit} is {mine.value:.3g} ± "
        f"{mine.half_width:.2g}; of {large} at all steps it is {all_large.value:.3g} "
        f"({_gap(compared(mine, all_large))}). "
    )
    if answer.rejected is not None:
        other = search.verdict_score(answer.rejected)
        said += (
            f"It was taken for what the search had chosen, {answer.rejected.plan}, which did worse on these samples "
            f"({other.value:.3g}). "
        )
    elif answer.fraction == answer.found:
        said += "It is a plain fraction: nothing that was tried is expected to be better. "
    if answer.fraction is not None and answer.fraction != answer.found:
        other = search.verdict_score(answer.fraction)
        gap = compared(mine, other)
        said += f"Of the best plain fraction, {answer.fraction.plan}, it is {other.value:.3g} ({_gap(gap)}). "
        if gap.said == "no difference":
            said += "A plain fraction is as good, as far as these samples tell. "
    if answer.fraction is None:
        said += "No plain fraction fits the budget. "
    if answer.fewer is not None and answer.fewer != answer.found:
        other = search.verdict_score(answer.fewer)
        said += (
            f"Of {large} alone in that time, {answer.fewer.plan.steps} steps, it is {other.value:.3g} "
            f"({_gap(compared(mine, other))})."
        )
    return said.strip()


def table(found: Found) -> str:
    """Every plan that was sampled, for a terminal."""
    lines = [
        f"{'':11} {'share':>6} {'ms/image':>8} {'distance':>9} {'±':>6} {'gap':>8} {'±':>6} {'samples':>7} "
        f"{'expected':>8}  plan"
    ]
    for point in found.points:
        shown = point.judged or point.chosen_by
        lines.append(
            f"{point.kind:11} {point.share:>6.3f} {point.ms_per_image:>8.3f} {shown.distance:>9.3f} "
            f"{shown.half_width:>6.3f} {shown.gap:>+8.3f} {shown.gap_half_width:>6.3f} {shown.samples:>7} "
            f"{point.expected_gap:>+8.3f}  {'* ' if point.judged else ''}{point.plan}"
        )
    notes = "* a finalist: measured on samples that chose nothing. gap, expected: less the largest member's distance"
    return "\n".join([*lines, notes])
