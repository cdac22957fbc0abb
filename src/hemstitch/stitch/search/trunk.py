"""Many plans sampled together: what plans have in common at their start is computed once.

Samples of the same seeds under two plans are the same until the plans part, so a set of plans is a tree over steps, and
its cost is the number of its edges. Sampler states are values: a branch goes on from the state that it shares.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...denoiser import ENDLESS, Denoiser, Guided, Prediction
from ...errors import HemstitchError
from ...grid import timesteps
from ...process import Process
from ...samplers import Sampler, State
from ...sampling import Options, prepare
from ..plan import Plan
from ..stitched import Stitched
from .frontier import Option


@dataclass(frozen=True)
class Candidate:
    """A plan that may be sampled: the member of each step, and whether guidance applies there.

    How a plan was made does not tell candidates apart: its rule becomes "searched".
    """

    plan: Plan
    guided: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.guided) != self.plan.steps:
            raise HemstitchError(f"{self.plan.steps} steps have {len(self.guided)} marks of guidance")
        object.__setattr__(self, "plan", Plan(self.plan.assignment, rule="searched"))

    @cached_property
    def options(self) -> tuple[Option, ...]:
        return tuple(map(Option, self.plan.assignment, self.guided))


@dataclass(frozen=True)
class Ground:
    """How all plans are sampled, whatever the plan.

    members: names to denoisers. labels: (N,) int64, the class of sample i, or None. sampler, guidance,
    guidance_channels, grid: as in `sample`. seed: sample i has the seed (seed, i). batch: samples at a time.
    """

    members: Mapping[str, Denoiser]
    labels: Tensor | None
    sampler: Sampler
    guidance: float = 1.0
    guidance_channels: int | None = None
    guidance_interval: tuple[float, float] | None = None
    grid: str = "released"
    seed: int = 0
    batch: int = 64

    def guided(self, steps: int, process: Process) -> tuple[bool, ...]:
        """At which steps of a plan of so many the guidance applies, as asked."""
        if self.guidance == 1:
            return (False,) * steps
        if self.guidance_interval is None:
            return (True,) * steps
        low, high = self.guidance_interval
        log_snr_K = process.log_snr(timesteps(process, steps, self.grid)).clamp(-ENDLESS, ENDLESS)
        return tuple(bool(low <= v <= high) for v in log_snr_K.tolist())

    def rows(self, chunk: int) -> range:
        """The samples of a chunk, a batch of them."""
        return range(chunk * self.batch, (chunk + 1) * self.batch)

    def classes(self, chunk: int) -> Tensor | None:
        """Their labels."""
        rows = self.rows(chunk)
        return None if self.labels is None else self.labels[rows.start : rows.stop]

    def options(self, chunk: int, steps: int) -> Options:
        """What `sample` takes to sample them under any plan of so many steps."""
        return {
            "seeds": [(self.seed, i) for i in self.rows(chunk)],
            "steps": steps,
            "sampler": self.sampler,
            "guidance": self.guidance,
            "guidance_channels": self.guidance_channels,
            "guidance_interval": self.guidance_interval,
            "grid": self.grid,
        }

    def process(self, plan: Plan) -> Process:
        """The process that a plan is sampled in: that of the member which ends it, as `Stitched` does."""
        return self.members[plan.assignment[-1]].process

    def root(self, steps: int, last: str, rows: range) -> Root:
        """Where the samples `rows` of all plans of so many steps that end in `last` begin."""
        stitched = Stitched(self.members, Plan.steps_each({last: steps}))
        labels = None if self.labels is None else self.labels[rows.start : rows.stop]
        job = prepare(
            stitched,
            labels,
            seeds=[(self.seed, i) for i in rows],
            steps=steps,
            sampler=self.sampler,
            grid=self.grid,
        )
        guided = None
        if self.guidance != 1:
            guided = Guided(stitched, self.guidance, self.guidance_channels)
        return Root(stitched, guided, job.sampler, job.state, job.labels, {n: i for i, n in enumerate(self.members)})


class Root(NamedTuple):
    """A batch at x_T, and what moves it. numbers: of each member."""

    stitched: Stitched
    guided: Guided | None
    sampler: Sampler
    state: State
    labels: Tensor | None
    numbers: Mapping[str, int]

    @torch.no_grad()
    def step(self, state: State, option: Option) -> State:
        """One solver step, all evaluations of it, by this member."""
        return self.stepped(state, option)[0]

    @torch.no_grad()
    def stepped(self, state: State, option: Option) -> tuple[State, Prediction]:
        """The state after a solver step, and what was predicted at its start."""
        denoiser: Denoiser = self.stitched
        if option.guided:
            assert self.guided is not None  # no option is guided otherwise
            denoiser = self.guided
        member = torch.full((len(state.step),), self.numbers[option.member])
        here, first = int(state.step[0]), None
        while int(state.step[0]) == here:
            said = denoiser(state.x, state.t, self.labels, member=member)
            first = first or said
            state = self.sampler.step(state, said)
        assert first is not None
        return state, first


def sampled(ground: Ground, candidates: Sequence[Candidate], rows: range) -> Iterator[tuple[Candidate, Tensor]]:
    """Every candidate with the samples `rows` under it, (B, C, H, W), equal to what `generate` gives."""
    for group in _roots(ground, candidates):
        plan = group[0].plan
        root = ground.root(plan.steps, plan.assignment[-1], rows)
        yield from _branches(root, root.state, 0, group)


def _branches(root: Root, state: State, depth: int, group: Sequence[Candidate]) -> Iterator[tuple[Candidate, Tensor]]:
    """The candidates of a group that were one until this depth."""
    steps = group[0].plan.steps
    while depth < steps:
        parts = _parted(group, depth)
        if len(parts) > 1:
            for option, part in parts.items():
                yield from _branches(root, root.step(state, option), depth + 1, part)
            return
        state = root.step(state, next(iter(parts)))
        depth += 1
    for candidate in group:
        yield candidate, state.x


def _parted(group: Sequence[Candidate], depth: int) -> dict[Option, list[Candidate]]:
    parts: dict[Option, list[Candidate]] = {}
    for candidate in group:
        parts.setdefault(candidate.options[depth], []).append(candidate)
    return parts


def _roots(ground: Ground, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates of equal step counts and processes of the trajectory, which start alike."""
    groups: list[tuple[int, Process, list[Candidate]]] = []
    for candidate in candidates:
        steps, process = candidate.plan.steps, ground.process(candidate.plan)
        for other, theirs, group in groups:
            if other == steps and theirs == process:
                group.append(candidate)
                break
        else:
            groups.append((steps, process, [candidate]))
    return [group for _, _, group in groups]


def edges(ground: Ground, candidates: Sequence[Candidate]) -> Iterator[tuple[Option, int, int]]:
    """The steps that `sampled` takes: (option, its step, of how many), each shared one once."""
    for group in _roots(ground, candidates):
        steps = group[0].plan.steps
        seen = {c.options[: depth + 1] for c in group for depth in range(steps)}
        for prefix in seen:
            yield prefix[-1], len(prefix) - 1, steps
