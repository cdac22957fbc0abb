"""Members sampled side by side from the same seeds, compared and measured at every step.

Of trajectories only figures are kept, but for the foreseen images of one batch, on the host: models × steps × batch.

Shape suffixes: B batch, N samples, K steps, R rings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import HemstitchError
from ..sampling import Job, Look, prepare
from ..stitch.adaptive import AdaptivePlan
from ..stitch.plan import Plan
from ..stitch.stitched import Stitched
from .agreement import Band, Likeness, cosine, relative_distance
from .frequency import Spectra, radial_power
from .trajectory import Visit, visits

PLANNED = "the plan"


@dataclass(frozen=True)
class Samples:
    """Which samples: num of them, seeds (seed, 0) to (seed, num-1), their labels (None: unconditional), `batch` at a
    time."""

    num: int = 32
    labels: Sequence[int] | Tensor | None = None
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        if self.num < 1 or self.batch < 1:
            raise HemstitchError(f"at least 1 sample, 1 at a time; got {self.num} and {self.batch}")


@dataclass(frozen=True)
class Study:
    """What was found. K steps; curves over x_t have K+1 values, from x_T to the finished image.

    reference: the member that the others are held against. t, log_snr: (K,) of the steps, in the reference's process.
    latents: by model but the reference (the plan is one), the cosine similarity of its own x_t to the reference's own,
    (K+1,). x0, eps: by member but the reference, how alike its predictions about the reference's x_t are, (K,).
    spectra: by model, along its own trajectory. foreign: members trained under another noise process than the
    reference's; their trajectories are in the reference's, handed over at equal log-SNR.
    plan: of the model called "the plan", if there is one.
    """

    reference: str
    t: Tensor
    log_snr: Tensor
    latents: dict[str, Band]
    x0: dict[str, Likeness]
    eps: dict[str, Likeness]
    spectra: dict[str, Spectra]
    foreign: tuple[str, ...] = ()
    plan: Plan | AdaptivePlan | None = None

    @property
    def steps(self) -> int:
        return len(self.t)


@dataclass(frozen=True)
class Turn:
    """done, of total steps of all batches; the study with the last."""

    done: int
    total: int
    study: Study | None = None


def study(
    members: Mapping[str, Denoiser],
    samples: Samples | None = None,
    plan: Plan | AdaptivePlan | None = None,
    **look: Unpack[Look],
) -> Iterator[Turn]:
    """Sample every member alone, and the plan, from the same x_T and noise; compare with the last member.

    look: how to sample; steps are the plan's, else 50. Arguments are checked at once. Raises StitchError, naming what
    differs, where members cannot denoise one trajectory, HemstitchError where a trajectory stops being finite.
    """
    samples = samples or Samples()
    steps = look.get("steps")
    steps = (plan.steps if plan else 50) if steps is None else steps
    if steps < 1:
        raise HemstitchError(f"steps is at least 1, not {steps}")
    if samples.labels is not None and len(samples.labels) != samples.num:
        raise HemstitchError(f"{len(samples.labels)} labels for {samples.num} samples: give one label per sample")
    if not members:
        raise HemstitchError("give at least one model")
    if PLANNED in members:
        raise HemstitchError(f"call the member something else than {PLANNED!r}")
    reference = list(members)[-1]
    process = members[reference].process
    plans: dict[str, Plan | AdaptivePlan] = {name: Plan.explicit([name] * steps) for name in members}
    if plan is not None:
        plans[PLANNED] = plan
    models = {name: Stitched(members, order, process=process) for name, order in plans.items()}
    look["steps"] = steps
    return _walk(models, reference, samples, look, _jobs(models, samples, look, 0))


def _jobs(models: Mapping[str, Stitched], samples: Samples, look: Look, start: int) -> dict[str, Job]:
    rows = range(start, min(start + samples.batch, samples.num))
    labels = None if samples.labels is None else samples.labels[start : rows.stop]
    seeds = [(samples.seed, i) for i in rows]
    return {name: prepare(model, labels, seeds=seeds, **look) for name, model in models.items()}


def _walk(
    models: Mapping[str, Stitched], reference: str, samples: Samples, look: Look, jobs: dict[str, Job]
) -> Iterator[Turn]:
    """Batch after batch, all models a step at a time."""
    log = _Log()
    levels = jobs[reference].state.levels
    K = int(levels.count[0])
    total, done = -(-samples.num // samples.batch) * K, 0
    for start in range(0, samples.num, samples.batch):
        if start:
            jobs = _jobs(models, samples, look, start)
        foreseen: dict[str, list[Tensor]] = {name: [] for name in models}
        for together in zip(*map(visits, jobs.values()), strict=True):
            at = dict(zip(jobs, together, strict=True))
            for name, visit in at.items():
                _note(log, name, visit, at[reference])
                if visit.prediction is not None:
                    foreseen[name].append(visit.prediction.x0.cpu())
            if at[reference].prediction is not None:
                _note_answers(log, jobs[reference], reference, at[reference], list(models[reference].members))
                done += 1
                yield Turn(done, total)
        for name, visit in at.items():
            for step, x0 in enumerate(foreseen[name]):
                log.add(step, "power of gap", name, radial_power(visit.x.cpu() - x0))
    yield Turn(done, total, _concluded(log, models, reference, levels.t[0, :K]))


def _note(log: _Log, name: str, visit: Visit, reference: Visit) -> None:
    """One model's trajectory at one noise level, against the reference's own."""
    if not bool(torch.isfinite(visit.x).all()):
        raise HemstitchError(f"the samples of {name} are no longer finite numbers after {visit.index} steps")
    log.add(visit.index, "latents", name, cosine(visit.x, reference.x))
    log.add(visit.index, "power of x", name, radial_power(visit.x))
    if visit.prediction is not None:
        log.add(visit.index, "power of x0", name, radial_power(visit.prediction.x0))


def _note_answers(log: _Log, job: Job, reference: str, visit: Visit, members: Sequence[str]) -> None:
    """What the other members say about the reference's x_t, against what it says itself."""
    said = visit.prediction
    assert said is not None
    for index, name in enumerate(members):
        if name == reference:
            continue
        route = torch.full((len(visit.x),), index)
        with torch.no_grad():
            other = job.denoiser(visit.x, visit.t, job.labels, member=route)
        for kind, mine, theirs in (("x0", other.x0, said.x0), ("eps", other.eps, said.eps)):
            log.add(visit.index, f"cosine of {kind}", name, cosine(mine, theirs))
            log.add(visit.index, f"distance of {kind}", name, relative_distance(mine, theirs))


def _concluded(log: _Log, models: Mapping[str, Stitched], reference: str, t_K: Tensor) -> Study:
    process, size = models[reference].process, models[reference].spec.size
    members = models[reference].members
    others = [name for name in members if name != reference]

    def likeness(kind: str) -> dict[str, Likeness]:
        parts = ("cosine", "distance")
        return {n: Likeness(*(Band.of(log.of(f"{part} of {kind}", n)) for part in parts)) for n in others}

    def spectra(name: str) -> Spectra:
        x, x0, gap = (log.of(f"power of {what}", name).mean(1) for what in ("x", "x0", "gap"))
        return Spectra(x, x0, gap, size)

    return Study(
        reference=reference,
        t=t_K,
        log_snr=process.log_snr(t_K),
        latents={name: Band.of(log.of("latents", name)) for name in models if name != reference},
        x0=likeness("x0"),
        eps=likeness("eps"),
        spectra={name: spectra(name) for name in models},
        foreign=tuple(name for name, member in members.items() if not member.process.same_noise(process)),
        plan=models[PLANNED].plan if PLANNED in models else None,
    )


class _Log:
    """Figures of samples, by what they are of, step after step; batches are joined."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[int, list[Tensor]]] = {}

    def add(self, step: int, what: str, name: str, value_B: Tensor) -> None:
        self._values.setdefault((what, name), {}).setdefault(step, []).append(value_B)

    def of(self, what: str, name: str) -> Tensor:
        """(steps, N, …)"""
        steps = self._values[what, name]
        return torch.stack([torch.cat(steps[step]) for step in sorted(steps)])
