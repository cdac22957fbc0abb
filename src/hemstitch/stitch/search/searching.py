"""The search itself: probe, learn, propose, halve, and judge on samples that were not used to choose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ...errors import HemstitchError
from ...evaluate.score import Score, compared, gap_error
from ..plan import Plan
from . import evidence as single_steps
from .evidence import Evidence
from .frontier import Ending, Floats, Option, Rules, best, frontier
from .per_sample import PerSample, compare
from .probes import Kind, Priced, fewer_steps, is_plain, probes, smallest_fraction
from .store import Store
from .surrogate import Belief, Measured, Terms, learned
from .trunk import Candidate, Ground, edges

EXPLORE = 3  # rounds of proposals
KEPT = (5, 3)  # contenders for a budget that go on to more samples
SHARE_OF_EVIDENCE = 0.15  # of a time bound


@dataclass(frozen=True)
class Question:
    """What is searched for.

    budgets: shares of the largest member's time at all steps. steps: numbers of steps that a plan may have; the largest
    is a full trajectory. rules: what plans may look like; with `interval`, where guidance applies is searched, too.
    samples: in all, half to choose by, half to judge by. trajectories: for the evidence. seed: of everything. free:
    whether plans of any number of steps may be found, or only of `steps`. seconds: time bound, or None. per_sample:
    compare a seam for each sample with the best plain fraction's.
    """

    ground: Ground
    budgets: tuple[float, ...]
    steps: tuple[int, ...]
    rules: Rules
    samples: int
    trajectories: int = 32
    seed: int = 0
    free: bool = True
    seconds: float | None = None
    per_sample: bool = False

    @property
    def full(self) -> int:
        return max(self.steps)

    @property
    def chunks(self) -> int:
        return self.samples // self.ground.batch

    @property
    def judged(self) -> int:
        """Chunks that finalists are judged on."""
        return self.chunks - self.levels[-1]

    @property
    def levels(self) -> list[int]:
        """Chunks that plans are chosen by, from the first look to the last."""
        return sorted({max(1, self.chunks // part) for part in (8, 4, 2)})


class Turn(NamedTuple):
    """How far a search is. done, total: of this stage. left: seconds until the time bound, None without one."""

    stage: str
    done: int
    total: int
    left: float | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found for a budget, and what it was judged beside, on samples that chose none of them.

    fraction, fewer: the best plain fraction within the budget, and the largest member alone in as many steps as it
    allows; None where there is none. rejected: what had been chosen, where new samples spoke against it.
    """

    budget: float
    found: Candidate
    fraction: Candidate | None
    fewer: Candidate | None
    rejected: Candidate | None = None

    @property
    def finalists(self) -> list[Candidate]:
        finalists = (self.found, self.fraction, self.fewer, self.rejected)
        return [*dict.fromkeys(c for c in finalists if c is not None)]


@dataclass
class Search:
    """A search under way. `run` yields its turns; then `answers`, `belief`, `evidence` and the store are the result."""

    question: Question
    priced: Priced
    store: Store
    spent: float = 0.0  # seconds, in earlier sittings
    began: float = field(default_factory=time.perf_counter)
    kinds: dict[Candidate, Kind] = field(default_factory=dict)
    level: dict[Candidate, int] = field(default_factory=dict)  # chunks that a candidate was sampled on, from the first
    answers: list[Answer] = field(default_factory=list)
    judged: range = range(0)  # chunks
    notes: list[str] = field(default_factory=list)
    walked: tuple[float, float] = (0.0, 0.0)  # seconds of sampling: measured, and as priced
    scoring: float = 0.0  # seconds for the distance of a candidate, as the last ones took
    evidence: Evidence | None = None
    trials: list[PerSample] = field(default_factory=list)

    @cached_property
    def options(self) -> list[Option]:
        """Every way to do a step: both guided and not wherever guidance has an interval, whichever process's steps it
        meets."""
        names, ground = self.priced.names, self.question.ground
        guided = {ground.guidance != 1}
        if self.question.rules.interval or (ground.guidance != 1 and ground.guidance_interval is not None):
            guided = {True, False}
        return [Option(name, flag) for flag in sorted(guided, reverse=True) for name in names]

    @cached_property
    def usual(self) -> tuple[Option, ...]:
        return self.priced.full.options

    @property
    def terms(self) -> Terms:
        assert self.evidence is not None
        return Terms(self.evidence, self.usual)

    # Time

    @property
    def left(self) -> float:
        """Seconds until the time bound."""
        if self.question.seconds is None:
            return float("inf")
        return self.question.seconds - (time.perf_counter() - self.began)

    def seconds_for(self, candidates: Sequence[Candidate], chunks: range) -> float:
        """What sampling candidates is expected to take, of what is not there yet, and scoring them."""
        measured, priced = self.walked
        slack = measured / priced if priced else 1.5  # pictures and features take their time, too
        sampling = sum(self._priced(self.store.missing(candidates, chunk)) for chunk in chunks)
        return slack * sampling + self.scoring * len(candidates)

    def _priced(self, candidates: Sequence[Candidate]) -> float:
        costs, times = self.priced.costs, self.priced.evaluations
        total = 0.0
        for option, step, steps in edges(self.question.ground, candidates):
            total += costs.ms(*option) * (times if step < steps - 1 else 1)
        return total / 1000

    # Measuring

    def sampled(self, candidates: Sequence[Candidate], chunks: range, stage: str) -> Iterator[Turn]:
        wanted = [*dict.fromkeys([self.priced.full, *candidates])]
        for done, chunk in enumerate(chunks, 1):
            began, price = time.perf_counter(), self._priced(self.store.missing(wanted, chunk))
            self.store.sample(wanted, chunk)
            if price:
                self.walked = self.walked[0] + time.perf_counter() - began, self.walked[1] + price
            yield Turn(stage, done, len(chunks))
        if chunks.start == 0:
            for candidate in wanted:
                self.level[candidate] = max(self.level.get(candidate, 0), chunks.stop)

    def gap(self, candidate: Candidate, chunks: range) -> Measured:
        """The distance beyond the largest member's on the same samples."""
        ours, theirs = self.store.score(candidate, chunks), self.store.score(self.priced.full, chunks)
        return Measured(candidate, ours.value - theirs.value, gap_error(ours, theirs))

    @property
    def belief(self) -> Belief:
        """As of now, from everything that was measured to choose by."""
        others = {c.plan.steps for c in self.level} | set(self.question.steps)
        new = [c for c, level in self.level.items() if not self.store.scored(c, range(level))]
        began = time.perf_counter()
        seen = [self.gap(c, range(level)) for c, level in self.level.items() if c != self.priced.full]
        if new:
            self.scoring = (time.perf_counter() - began) / len(new)
        return learned(self.terms, sorted(others - {self.question.full}), seen)

    # The stages

    def run(self) -> Iterator[Turn]:
        """Everything, from the evidence to the answers."""
        for turn in self._stages():
            yield turn if self.question.seconds is None else turn._replace(left=max(0.0, self.left))

    def _stages(self) -> Iterator[Turn]:
        question, levels = self.question, self.question.levels
        if question.seconds is not None:
            self._check_time()
        yield from self._evidence()
        self.kinds = probes(self.priced, question.budgets, question.steps)
        for ending in self._proposed(learned(self.terms, self._other_steps, []), 0):
            self.kinds.setdefault(ending, "found")
        yield from self._probe(levels[0])
        for round_ in range(EXPLORE):
            new = [c for c in self._proposed(self.belief, round_ + 1) if c not in self.level]
            self.kinds |= dict.fromkeys(new, "found")
            if new and self._affordable(new, range(levels[0]), "proposals"):
                yield from self.sampled(new, range(levels[0]), f"proposals, round {round_ + 1} of {EXPLORE}")
        for level, kept in zip(levels[1:], KEPT, strict=False):
            contenders = self._contenders(self.belief, kept)
            if not self._affordable(contenders, range(level), f"{level * question.ground.batch} samples"):
                break
            yield from self.sampled(contenders, range(level), f"{len(contenders)} contenders, more samples")
        self._choose()
        yield from self._judge(range(levels[-1], question.chunks))
        if question.per_sample:
            yield from self._per_sample(range(levels[-1]))

    @property
    def _other_steps(self) -> list[int]:
        fewer = {c.plan.steps for c in self.kinds}
        return sorted((fewer | set(self.question.steps)) - {self.question.full})

    def _check_time(self) -> None:
        """Raise unless one candidate can be measured in the time that there is."""
        question = self.question
        least = [self.priced.full, *self._needed]
        needed = 0.0
        if self.evidence is None:
            ask = sum(self.priced.costs.ms(*option) for option in self.options) * question.full * 2 / 1000
            needed = ask * min(question.trajectories, question.ground.batch) / question.ground.batch
        judged = question.levels[-1]
        needed += self.seconds_for(least, range(1)) + self.seconds_for(least, range(judged, judged + 1))
        if needed > self.left:
            raise HemstitchError(
                f"{question.seconds:g} s are too short: evidence and {len(least)} plans on {question.ground.batch} "
                f"samples each take about {needed:.0f} s. Give more time, fewer steps or a smaller batch"
            )

    @cached_property
    def _needed(self) -> list[Candidate]:
        """What every answer has beside it."""
        fewest = Plan.steps_each({self.priced.names[0]: min(self.question.steps)})
        found = [self.priced.candidate(fewest)]
        for budget in self.question.budgets:
            plans = [smallest_fraction(self.priced, self.priced.names[0], budget), fewer_steps(self.priced, budget)]
            found += [self.priced.candidate(plan) for plan in plans if plan is not None]
        return found

    def _evidence(self) -> Iterator[Turn]:
        question = self.question
        if self.evidence is None:
            bound = self.left * SHARE_OF_EVIDENCE
            began = time.perf_counter()
            growing = single_steps.measured(
                question.ground, question.full, self.options, self.usual, question.trajectories
            )
            for found in growing:
                self.evidence = found
                yield Turn("evidence", found.samples, question.trajectories)
                if time.perf_counter() - began > bound:
                    self.notes.append(f"for want of time the evidence is of {found.samples} trajectories only")
                    break

    def _probe(self, level: int) -> Iterator[Turn]:
        wanted = [*self.kinds]
        if self.seconds_for(wanted, range(level)) > self.left / 2:
            level = 1
        if self.seconds_for(wanted, range(level)) > self.left / 2:
            kept = {self.priced.full, *self._needed}
            wanted = [c for c in wanted if c in kept]
            self.notes.append("for want of time only the plans that every answer needs were probed")
        yield from self.sampled(wanted, range(level), f"{len(wanted)} plans, a first look")

    def _affordable(self, candidates: Sequence[Candidate], chunks: range, what: str) -> bool:
        """Whether there is time to sample these and still judge what was found."""
        judged = self.question.levels[-1]
        reserve = self.seconds_for([self.priced.full, *self._needed], range(judged, judged + 1)) * 1.5
        if self.seconds_for(candidates, chunks) + reserve <= self.left:
            return True
        self.notes.append(f"for want of time left out: {what}")
        return False

    def _proposed(self, belief: Belief, round_: int) -> list[Candidate]:
        """The best plan of each budget, as believed, and as it may be (one draw a round)."""
        found: dict[Candidate, None] = {}
        means: list[Floats | None] = [None]
        if round_:
            key = np.array([self.question.seed, round_], dtype=np.uint64)
            means.append(belief.drawn(np.random.Generator(np.random.Philox(key=key))))
        for mean in means:
            fronts = self.fronts(belief, mean)
            for budget in self.question.budgets:
                candidate = self.chosen(fronts, budget)
                if candidate is not None:
                    found[candidate] = None
        return list(found)

    def fronts(self, belief: Belief, mean: Floats | None = None) -> dict[int, tuple[float, list[Ending]]]:
        """For each number of steps the offset and the exact frontier of the additive objective."""
        fronts = {}
        for steps in self.question.steps:
            values, offset = belief.values(steps, mean)
            fronts[steps] = (
                offset,
                frontier(values, self._ms(steps), self.options, self.question.rules, self._may(steps)),
            )
        return fronts

    def chosen(self, fronts: dict[int, tuple[float, list[Ending]]], budget: float) -> Candidate | None:
        """The best of the frontiers within a budget."""
        limit = budget * self.priced.ms(self.priced.full)
        found = [
            (offset + ending.value, steps, ending)
            for steps, (offset, endings) in fronts.items()
            if (ending := best(endings, limit)) is not None
        ]
        if not found:
            return None
        _, _, ending = min(found, key=lambda f: f[:2])
        return self.candidate(ending)

    def candidate(self, ending: Ending) -> Candidate:
        options = [self.options[o] for o in ending.options]
        plan = Plan(tuple(option.member for option in options))
        return Candidate(plan, tuple(option.guided for option in options))

    def _ms(self, steps: int) -> Floats:
        """(S, O) milliseconds of each option at each step; the last takes one evaluation."""
        times = np.full(steps, float(self.priced.evaluations))
        times[-1] = 1
        return times[:, None] * np.array([self.priced.costs.ms(*option) for option in self.options])

    def _may(self, steps: int) -> np.ndarray | None:
        """Which options a step has: guidance where it was asked for, unless that is searched."""
        if self.question.rules.interval:
            return None
        guided = self.priced.guided(steps, self.priced.largest)
        return np.array([[option.guided == flag for option in self.options] for flag in guided])

    def _within(self, budget: float) -> list[Candidate]:
        """What was measured and costs no more."""
        return [c for c in self.level if self.priced.share(c) <= budget + 1e-9]

    def _allowed(self, candidate: Candidate) -> bool:
        """Whether a plan is one of those asked for, and not only there to be compared with or learned from."""
        rules, options = self.question.rules, candidate.options
        runs = len([*groupby(option.member for option in options)])
        stretches = sum(flag for flag, _ in groupby(option.guided for option in options))
        return (
            (self.question.free or candidate.plan.steps in self.question.steps)
            and (rules.seams is None or runs - 1 <= rules.seams)
            and (not rules.interval or stretches <= 1)
        )

    def _contenders(self, belief: Belief, kept: int) -> list[Candidate]:
        """For each budget the plans expected to be best, the best plain fractions and fewer steps among them."""
        found: dict[Candidate, None] = {}
        for budget in self.question.budgets:
            ranked = sorted(self._within(budget), key=belief.expected)
            plain = [c for c in ranked if self._plain(c)][: 2 if kept > 3 else 1]
            fewer = [c for c in ranked if self.kinds[c] == "fewer steps"][:1]
            allowed = [c for c in ranked if self._allowed(c)]
            found |= dict.fromkeys([*allowed[:kept], *plain, *fewer])
        return list(found)

    def _plain(self, candidate: Candidate) -> bool:
        usual = self.priced.guided(candidate.plan.steps, candidate.plan.assignment[-1])
        full = candidate.plan.steps == self.question.full and candidate.guided == usual
        return full and is_plain(candidate, self.priced.names)

    def _choose(self) -> None:
        belief = self.belief
        for budget in self.question.budgets:
            ranked = sorted(self._within(budget), key=belief.expected)
            allowed = [c for c in ranked if self._allowed(c)]
            if not allowed:
                raise HemstitchError(
                    f"no plan within a budget of {budget:.4g} is of {self.question.steps} steps with at most "
                    f"{self.question.rules.seams} changes of member: allow more of them, fewer steps or more time"
                )
            plain = [c for c in ranked if self._plain(c)]
            fewer = [c for c in ranked if self.kinds[c] == "fewer steps"]
            self.answers.append(Answer(budget, allowed[0], next(iter(plain), None), next(iter(fewer), None)))

    def _judge(self, chunks: range) -> Iterator[Turn]:
        """All finalists on new samples, as many as there is time for."""
        finalists = [*dict.fromkeys(c for answer in self.answers for c in answer.finalists)]
        while len(chunks) > 1 and self.seconds_for([self.priced.full, *finalists], chunks) > self.left:
            chunks = range(chunks.start, chunks.stop - 1)
        if chunks.stop < self.question.chunks:
            self.notes.append(f"for want of time the verdict is of {len(chunks) * self.question.ground.batch} samples")
        self.judged = chunks
        yield from self.sampled(finalists, chunks, f"{len(finalists)} finalists, new samples")
        self.answers = [self._settled(answer) for answer in self.answers]

    def _settled(self, answer: Answer) -> Answer:
        """Where the plan chosen does worse on the new samples than what it is held against, the best of those."""
        mine = self.verdict_score(answer.found)
        better = [
            c for c in answer.finalists if self._allowed(c) and compared(mine, self.verdict_score(c)).said == "higher"
        ]
        if not better:
            return answer
        best_of = min(better, key=lambda c: self.verdict_score(c).value)
        return replace(answer, found=best_of, rejected=answer.found)

    def _per_sample(self, chosen_by: range) -> Iterator[Turn]:
        """Adaptive plans at the mean cost of each answer's plain fraction, if it is of two members with a seam."""
        fixed = [*dict.fromkeys(a.fraction for a in self.answers if a.fraction is not None)]
        fixed = [c for c in fixed if len(c.plan.counts) == 2 and c.plan.counts[c.plan.assignment[0]] >= 2]
        if not fixed:
            self.notes.append("no plain fraction has a seam to be chosen by sample")
        for done, candidate in enumerate(fixed, 1):
            seconds = 4 * len(chosen_by) + len(self.judged)
            if self._priced([candidate]) * seconds * 1.5 > self.left:
                self.notes.append("for want of time left out: a seam for each sample")
                return
            yield from self.sampled([candidate], chosen_by, "a seam for each sample")
            self.trials.append(compare(self.store, self.priced, candidate, chosen_by, self.judged))
            yield Turn("a seam for each sample", done, len(fixed))

    # What came out

    def verdict_score(self, candidate: Candidate) -> Score:
        """On the samples that chose nothing."""
        return self.store.score(candidate, self.judged)
