"""The sampling loop: a generator that yields every step, and `generate`, which runs it to the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from . import seeds as keyed
from .denoiser import Denoiser, Guided, Prediction
from .errors import HemstitchError
from .grid import timesteps
from .samplers import Levels, Sampler, State, init, sampler_of
from .seeds import Seed
from .stitch.adaptive import AdaptivePlan
from .stitch.stitched import Stitched


@dataclass(frozen=True)
class Step:
    """What a sampling loop shows after each solver step.

    index: 0 .. K-1. t: the time it started from. member: who spoke (None for a single model); "small+large" where an
    adaptive plan asked both. x: (B, C, H, W), the samples after the step. x0: the images as currently foreseen.
    seam: under an adaptive plan (B,) int64 on the host, how many steps its first member takes in each row, as far as
        decided: a row that may still change over says the most that it can be. After the last step it is what was.
    """

    index: int
    t: float
    member: str | None
    x: Tensor
    x0: Tensor
    seam: Tensor | None = None


@dataclass(frozen=True)
class Job:
    """A checked sampling request: the denoiser with guidance, the sampler, the state at x_T and the labels."""

    denoiser: Denoiser
    sampler: Sampler
    state: State
    labels: Tensor | None


class Look(TypedDict, total=False):
    """How to sample, whatever the samples.

    steps: solver steps (a plan's own, else 50). sampler: a name of `SAMPLERS` or a sampler. eta: of DDIM.
    guidance: classifier-free scale, one number or one per sample; guidance_channels and guidance_interval (log-SNR) as
        in `Guided`. grid: a name of `GRIDS` or the times themselves.
    """

    steps: int | None
    sampler: str | Sampler
    guidance: float | Sequence[float] | Tensor
    guidance_channels: int | None
    guidance_interval: tuple[float, float] | None
    grid: str | Sequence[float] | Tensor
    eta: float


class Options(Look, total=False):
    """What `sample` and `generate` take beside the model and the labels: a `Look`, and which samples.

    num: how many samples, for an unconditional model. seeds: one per sample, an integer or (seed, index); by default
    (0, 0), (0, 1), … noise: x_T, (B, C, H, W), instead of the seeds' own.
    """

    num: int | None
    seeds: Sequence[Seed] | Tensor | None
    noise: Tensor | None


def prepare(
    model: Denoiser,
    labels: Sequence[int] | Tensor | None = None,
    *,
    num: int | None = None,
    steps: int | None = None,
    sampler: str | Sampler = "ddim",
    guidance: float | Sequence[float] | Tensor = 1.0,
    guidance_channels: int | None = None,
    guidance_interval: tuple[float, float] | None = None,
    seeds: Sequence[Seed] | Tensor | None = None,
    noise: Tensor | None = None,
    grid: str | Sequence[float] | Tensor = "released",
    eta: float = 0.0,
) -> Job:
    """Check every argument of `sample` and lay out the first state. See `Options` for what they mean."""
    spec = model.spec
    inner = model.denoiser if isinstance(model, Guided) else model
    plan = inner.plan if isinstance(inner, Stitched) else None
    if steps is None:
        steps = plan.steps if plan else 50
    if plan is not None and plan.steps != steps:
        raise HemstitchError(
            f"the plan is for {plan.steps} steps and steps is {steps}: make the plan for the steps that you sample with"
        )
    batch = _batch_size(labels, num, seeds, noise)
    if seeds is None:
        seeds = [(0, i) for i in range(batch)]
    key_B2 = keyed.keys(seeds)
    label_B = check_labels(labels, spec.num_classes, batch)
    device = model.device
    if noise is None:
        x = keyed.normal(key_B2, 0, spec.shape, device)
    else:
        if tuple(noise.shape[1:]) != spec.shape:
            raise HemstitchError(f"noise is (B, {spec.channels}, {spec.size}, {spec.size}), not {tuple(noise.shape)}")
        x = noise.to(device)
    scales = torch.as_tensor(guidance, dtype=torch.float64).reshape(-1)
    if not bool(torch.isfinite(scales).all()):
        raise HemstitchError(f"guidance is a finite number, or one per sample; got {guidance}")
    denoiser = model
    if bool((scales != 1).any()):
        denoiser = Guided(model, scales, guidance_channels, guidance_interval)
        denoiser.scales(torch.zeros(batch))  # one scale, or one per row
    times = timesteps(model.process, steps, grid)
    state = init(x, Levels.of(model.process, times), key_B2)
    if isinstance(plan, AdaptivePlan):
        state = replace(state, watch=plan.watch(batch))
    return Job(denoiser, sampler_of(sampler, eta), state, None if label_B is None else label_B.to(device))


def check_labels(labels: Sequence[int] | Tensor | None, num_classes: int, batch: int) -> Tensor | None:
    """(B,) int64 labels, or None for an unconditional model."""
    if labels is None:
        if num_classes:
            raise HemstitchError(
                f"this model has {num_classes} classes: pass labels=, one of 0..{num_classes - 1} each"
            )
        return None
    if not num_classes:
        raise HemstitchError("this model is unconditional: pass num= instead of labels=")
    label_B = torch.as_tensor(labels).reshape(-1)
    if len(label_B) and label_B.is_floating_point():
        raise HemstitchError(f"labels are whole numbers; got {label_B.dtype}")
    label_B = label_B.long()
    if len(label_B) != batch:
        raise HemstitchError(f"{len(label_B)} labels for {batch} seeds: give one label per sample")
    if batch and not (int(label_B.min()) >= 0 and int(label_B.max()) < num_classes):
        wrong = sorted({int(v) for v in label_B if not 0 <= v < num_classes})
        raise HemstitchError(f"labels lie in 0..{num_classes - 1}; got {', '.join(map(str, wrong[:5]))}")
    return label_B


def _batch_size(
    labels: Sequence[int] | Tensor | None,
    num: int | None,
    seeds: Sequence[Seed] | Tensor | None,
    noise: Tensor | None,
) -> int:
    sizes = {
        name: size
        for name, size in (
            ("num", num),
            ("seeds", None if seeds is None else len(seeds)),
            ("noise", None if noise is None else len(noise)),
            ("labels", None if labels is None else len(labels)),
        )
        if size is not None
    }
    if not sizes:
        raise HemstitchError("say how many samples: labels=, seeds=, noise= or num=")
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{size} {name}" if name != "num" else f"num={size}" for name, size in sizes.items())
        raise HemstitchError(f"these must agree on the number of samples: {said}")
    size = next(iter(sizes.values()))
    if size < 1:
        raise HemstitchError("at least one sample")
    return size


def sample(model: Denoiser, labels: Sequence[int] | Tensor | None = None, **options: Unpack[Options]) -> Iterator[Step]:
    """Sample, yielding every solver step, so that a caller can preview, count or stop. Arguments are checked at once.

    labels: one class per sample, or None with `num` for an unconditional model. The other arguments are `Options`.
    """
    return run(prepare(model, labels, **options))


def run(job: Job) -> Iterator[Step]:
    """The loop itself: ask the network, step, show. All rows are at one step, that of the job's state."""
    state = job.state
    inner = job.denoiser.denoiser if isinstance(job.denoiser, Guided) else job.denoiser
    names = list(inner.members) if isinstance(inner, Stitched) else []
    for index in range(int(state.step[0]), int(state.levels.count[0])):
        t = float(state.t[0])
        while int(state.step[0]) == index:
            state, prediction = advance(job, state)
        spoke, seam = prediction.member, None
        if state.watch is not None:
            seam = state.watch.seam
        elif spoke is not None:
            spoke = spoke[:1]  # a fixed plan asks one member
        yield Step(index, t, _called(names, spoke), state.x, prediction.x0, seam)


def advance(job: Job, state: State) -> tuple[State, Prediction]:
    """One network evaluation: the state after it, and what was predicted. Rows may be at different steps.

    state: the job's own, or what became of it; if rows were left out or joined, so must the job's labels and scales be.
    """
    at, watch, denoiser = state.t, state.watch, job.denoiser
    with torch.no_grad():
        route = denoiser.route(state.step, at) if watch is None else denoiser.route(state.step, at, watch)
        prediction = denoiser(state.x, at, job.labels, member=route)
        following = job.sampler.step(state, prediction)
        if watch is not None:
            following = replace(following, watch=watch.after(state.step, state.stage, prediction.x0))
    return following, prediction


def _called(names: Sequence[str], member: Tensor | None) -> str | None:
    """The members of a batch, in the order in which the stitch has them."""
    if not names or member is None:
        return None
    return "+".join(names[i] for i in sorted(set(member.tolist())))


def generate(model: Denoiser, labels: Sequence[int] | Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """The (B, C, H, W) samples at the end of `sample`, in the scale that the model was trained on.

    float32, or the dtype of `noise` where that is given.
    """
    for step in sample(model, labels, **options):
        last = step
    return last.x.clone()
