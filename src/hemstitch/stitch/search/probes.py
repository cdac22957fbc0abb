"""The plans that a search begins with, and those that it always answers beside its own.

Plain fractions (T-Stitch) and the largest member alone at fewer steps are what a reader would try by hand; the others
(small last, sandwich, interleaved) show the belief what each part of the trajectory is worth.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..orders import ordered
from ..plan import Plan
from .cost import Costs
from .trunk import Candidate

Kind = Literal["largest", "alone", "fraction", "fewer steps", "probe", "found"]
TENTHS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Priced:
    """What plans cost: milliseconds of a batch, and as a share of the largest member's at all steps.

    names: members by rising cost. steps: of a full trajectory. guided: at which steps, by their number and the last
    member. evaluations: the sampler's.
    """

    costs: Costs
    names: tuple[str, ...]
    steps: int
    guided: Callable[[int, str], tuple[bool, ...]]
    evaluations: int

    @property
    def largest(self) -> str:
        return self.names[-1]

    def candidate(self, plan: Plan) -> Candidate:
        """A plan with guidance where it was asked for."""
        return Candidate(plan, self.guided(plan.steps, plan.assignment[-1]))

    def ms(self, candidate: Candidate) -> float:
        return self.costs.of(candidate.plan, candidate.guided, self.evaluations)

    @property
    def full(self) -> Candidate:
        return self.candidate(Plan.steps_each({self.largest: self.steps}))

    def share(self, candidate: Candidate) -> float:
        return self.ms(candidate) / self._full_ms

    @cached_property
    def _full_ms(self) -> float:
        return self.ms(self.full)

    def fits(self, plan: Plan, budget: float) -> bool:
        return self.share(self.candidate(plan)) <= budget + 1e-9


def probes(priced: Priced, budgets: Sequence[float], counts: Sequence[int]) -> dict[Candidate, Kind]:
    """Everything that is measured before the search has learned anything; the first is the largest member alone.

    counts: numbers of steps that plans may have.
    """
    found: dict[Candidate, Kind] = {}
    for kind, plan in _plans(priced, budgets, counts):
        found.setdefault(priced.candidate(plan), kind)
    return found


def _plans(priced: Priced, budgets: Sequence[float], counts: Sequence[int]) -> Iterator[tuple[Kind, Plan]]:
    K, names, large = priced.steps, priced.names, priced.largest
    small = names[0]
    yield "largest", priced.full.plan
    for name in names[:-1]:
        yield "alone", Plan.steps_each({name: K})
    for budget in budgets:
        for name in names[:-1]:
            fraction = smallest_fraction(priced, name, budget)
            if fraction is not None:
                yield "fraction", fraction
        fewer = fewer_steps(priced, budget)
        if fewer is not None:
            yield "fewer steps", fewer
    if min(counts) < K:
        yield "fewer steps", Plan.steps_each({large: min(counts)})
        yield "alone", Plan.steps_each({small: min(counts)})
    for name in names[:-1]:
        for tenth in TENTHS if name == small else TENTHS[1::2]:
            yield "fraction", _first(name, round(tenth * K), large, K)
    for count in (max(1, K // 10), K // 3):
        yield "probe", Plan.explicit([large] * (K - count) + [small] * count)
    early, late = K // 2, max(1, K // 10)
    yield "probe", Plan.explicit([small] * early + [large] * (K - early - late) + [small] * late)
    yield "probe", ordered("interleaved", small, large, K)
    if len(names) > 2:
        third = K // len(names)
        each = dict.fromkeys(names[:-1], third) | {large: K - third * (len(names) - 1)}
        yield "fraction", Plan.steps_each(each)


def _first(small: str, count: int, large: str, steps: int) -> Plan:
    return Plan.steps_each({small: count, large: steps - count})


def smallest_fraction(priced: Priced, small: str, budget: float) -> Plan | None:
    """The plain fraction that leaves most steps to the largest member within a budget; None if there is none."""

    def within(count: int) -> bool:
        return priced.fits(_first(small, count, priced.largest, priced.steps), budget)

    counts = range(priced.steps + 1)  # the more of them are small's, the cheaper
    count = bisect_left(counts, True, key=within)
    return _first(small, count, priced.largest, priced.steps) if count in counts else None


def fewer_steps(priced: Priced, budget: float) -> Plan | None:
    """The largest member alone at as many steps as a budget allows; None if it does not allow two."""

    def beyond(steps: int) -> bool:
        return not priced.fits(Plan.steps_each({priced.largest: steps}), budget)

    steps = bisect_left(range(priced.steps + 1), True, lo=2, key=beyond) - 1
    return Plan.steps_each({priced.largest: steps}) if steps >= 2 else None


def is_plain(candidate: Candidate, names: Sequence[str]) -> bool:
    """Whether members follow one another by rising cost, each for a share of the steps, as in T-Stitch."""
    order = [names.index(name) for name in candidate.plan.assignment]
    return order == sorted(order)
