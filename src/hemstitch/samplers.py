"""Samplers as values: `init` makes a state, a pure `step(state, prediction) -> state` advances it.

Every step of every sampler here is a linear combination of x, the prediction's x_0 and eps, what it remembers and
noise, with coefficients per row. The coefficients are computed on the host in float64 from host-known step numbers and
copied over without waiting; rows of one batch may be at different steps of different grids.

Shape suffixes: B batch, C channels, H height, W width, K steps (levels have K+1 entries, the last one clean).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from . import seeds
from .denoiser import Prediction
from .errors import HemstitchError
from .process import Process, per_row, posterior
from .stitch.adaptive import Watch


@dataclass(frozen=True)
class Levels:
    """The noise levels that rows visit, float64 on the host, (B or 1, K+1) each; the last level is clean.

    t: times, alpha, sigma: their coefficients. count: (B or 1,) steps K of each row (rows with fewer are padded).
    straight: (B or 1,) whether the row's process is the linear interpolant, whose natural clock is t, not sigma/alpha.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    count: Tensor
    straight: Tensor

    @classmethod
    def of(cls, process: Process, times: Tensor) -> Levels:
        """The levels of a grid of K falling times, with the clean level after them."""
        alpha, sigma = process.alpha_sigma(times)
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return cls(
            t=torch.cat([times.double(), zero])[None],
            alpha=torch.cat([alpha, one])[None],
            sigma=torch.cat([sigma, zero])[None],
            count=torch.tensor([len(times)]),
            straight=torch.tensor([process.is_flow]),
        )

    def at(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t, alpha, sigma) of each row at its own step; (1,) when all rows share levels and step."""
        if len(self.t) == 1:
            return self.t[0, step], self.alpha[0, step], self.sigma[0, step]
        rows = torch.arange(len(self.t))
        return self.t[rows, step], self.alpha[rows, step], self.sigma[rows, step]

    def rows(self, index: Tensor) -> Levels:
        if len(self.t) == 1:
            return self
        return Levels(*(getattr(self, f)[index] for f in ("t", "alpha", "sigma", "count", "straight")))

    def expand(self, batch: int, width: int) -> Levels:
        def wide(levels: Tensor) -> Tensor:
            padding = levels[:, -1:].expand(-1, width - levels.shape[1])
            return torch.cat([levels, padding], 1).expand(batch, -1)

        return Levels(
            wide(self.t),
            wide(self.alpha),
            wide(self.sigma),
            self.count.expand(batch),
            self.straight.expand(batch),
        )


@dataclass(frozen=True)
class State:
    """A batch of samples on their way, as a value: pause it, move it, split it, join it with others.

    x: (B, C, H, W), where the network is to be asked next. step: (B,) solver steps done, on the host.
    levels: the noise levels visited. keys: (B, 2) noise keys (seed, index), on the host.
    stage: (B,) on the host, the evaluation within the step (Heun has two). memory: what the sampler carries.
    member: (B,) on the host, who made the remembered prediction, or None.
    watch: what rows under an adaptive plan carry (`Watch`), or None.
    """

    x: Tensor
    step: Tensor
    levels: Levels
    keys: Tensor
    stage: Tensor
    memory: tuple[Tensor, ...] = ()
    member: Tensor | None = None
    watch: Watch | None = None

    @property
    def one_step(self) -> bool:
        """Whether all rows are at the same stage of the same step of the same levels."""
        return len(self.levels.t) == 1 and bool(
            (self.step == self.step[0]).all() and (self.stage == self.stage[0]).all()
        )

    @property
    def position(self) -> Tensor:
        """The solver steps of the rows, (B,), or (1,) when the batch shares one."""
        return self.step[:1] if self.one_step else self.step

    @property
    def t(self) -> Tensor:
        """(B,) float64 on the host: the times at which the network is to be asked next."""
        t = self.levels.at(self.position + self.stage[: len(self.position)])[0]
        return t.expand(len(self.step))

    @property
    def done(self) -> Tensor:
        """(B,) bool on the host: rows that are finished."""
        return self.step >= self.levels.count

    def rows(self, index: Sequence[int] | Tensor) -> State:
        """The chosen rows as a state of their own."""
        chosen = torch.as_tensor(index, dtype=torch.int64)
        on_device = chosen.to(self.x.device, non_blocking=True)
        return State(
            x=self.x[on_device],
            step=self.step[chosen],
            levels=self.levels.rows(chosen),
            keys=self.keys[chosen],
            stage=self.stage[chosen],
            memory=tuple(m[on_device] for m in self.memory),
            member=None if self.member is None else self.member[chosen],
            watch=None if self.watch is None else self.watch.rows(chosen),
        )

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """One batch of several; the rows keep their own steps, levels and keys."""
        width = max(s.levels.t.shape[1] for s in states)
        wide = [s.levels.expand(len(s.step), width) for s in states]
        fields = ("t", "alpha", "sigma", "count", "straight")
        remembering = max(len(s.memory) for s in states)
        members = [torch.full_like(s.step, -1) if s.member is None else s.member for s in states]
        return State(
            x=torch.cat([s.x for s in states]),
            step=torch.cat([s.step for s in states]),
            levels=Levels(*(torch.cat([getattr(w, f) for w in wide]) for f in fields)),
            keys=torch.cat([s.keys for s in states]),
            stage=torch.cat([s.stage for s in states]),
            memory=tuple(
                torch.cat([s.memory[i] if s.memory else torch.zeros_like(s.x) for s in states])
                for i in range(remembering)
            ),
            member=None if all(s.member is None for s in states) else torch.cat(members),
            watch=Watch.join([s.watch for s in states], [len(s.step) for s in states]),
        )

    def noise(self) -> Tensor:
        """Standard normals of this step, keyed by (seed, index, step)."""
        x = self.x
        return seeds.normal(self.keys, self.step + 1, x.shape[1:], x.device, x.dtype)

    def combine(self, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """Σ coefficient · tensor, the coefficients (B,) or (1,) float64 on the host, copied over in one piece."""
        rows = max(len(c) for c, _ in terms)
        packed = torch.stack([torch.broadcast_to(c, (rows,)) for c, _ in terms])
        moved = packed.to(self.x.dtype).to(self.x.device, non_blocking=True)
        total = None
        for coefficient, (_, tensor) in zip(moved, terms, strict=True):
            term = coefficient.reshape(-1, *([1] * (tensor.ndim - 1))) * tensor
            total = term if total is None else total + term
        assert total is not None
        return total


class Sampler(Protocol):
    """One way down the noise levels.

    order: the order of convergence of its deterministic form. evaluations: network calls per step (the last step may
    take fewer).
    """

    order: ClassVar[int]
    evaluations: ClassVar[int]

    def step(self, state: State, prediction: Prediction, noise: Tensor | None = None) -> State:
        """The state after one more network evaluation. `noise` replaces the keyed noise where the step uses any."""
        ...


def init(x: Tensor, levels: Levels, keys: Tensor | None = None) -> State:
    """The state at x_T. x: (B, C, H, W) in the process's own scale; unit normals are right for every process here."""
    batch = len(x)
    zeros = torch.zeros(batch, dtype=torch.int64)
    if keys is None:
        keys = seeds.keys([(0, i) for i in range(batch)])
    return State(x=x, step=zeros, levels=levels, keys=keys, stage=zeros)


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling (Ho et al. 2020, alg. 2), for any alpha and sigma.

    variance: "learned" interpolates log-variances by the network's fraction (Nichol & Dhariwal 2021, eq. 15); "small"
    is beta-tilde, "large" is beta; "auto" is learned where the network gives it, else small.
    """

    variance: Literal["auto", "learned", "small", "large"] = "auto"
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.variance not in ("auto", "learned", "small", "large"):
            raise HemstitchError(f"DDPM's variance is auto, learned, small or large, not {self.variance!r}")

    def step(self, state: State, prediction: Prediction, noise: Tensor | None = None) -> State:
        here = state.position
        _, alpha, sigma = state.levels.at(here)
        _, alpha_next, sigma_next = state.levels.at(here + 1)
        q = posterior(alpha, sigma, alpha_next, sigma_next)
        mean = state.combine((q.of_x, state.x), (q.of_x0, prediction.x0))
        if self.variance == "learned" and prediction.variance is None:
            raise HemstitchError("this model has no learned variance: use DDPM(variance='small' or 'large')")
        last = sigma_next == 0
        if not bool(last.all()):
            noise = state.noise() if noise is None else noise
            moving = (~last).double()
            if self.variance in ("auto", "learned") and prediction.variance is not None:
                small = per_row(torch.where(last, 0, q.log_small), mean)
                large = per_row(torch.where(last, 0, q.log_large), mean)
                log_variance = prediction.variance * large + (1 - prediction.variance) * small
                mean = mean + per_row(moving, mean) * torch.exp(log_variance / 2) * noise
            else:
                log_fixed = q.log_large if self.variance == "large" else q.log_small
                mean = mean + state.combine((torch.where(last, 0, torch.exp(log_fixed / 2)), noise))
        return replace(state, x=mean, step=state.step + 1)


@dataclass(frozen=True)
class DDIM:
    """Song, Meng & Ermon (2021), eq. 12. eta = 0 is deterministic, eta = 1 has DDPM's posterior variance.

    At eta = 0 this is also Euler's method on the probability-flow ODE, in sigma/alpha for the variance-preserving
    processes (their eq. 14) and in t for the flow process: x' = alpha' x_0 + sigma' eps either way.
    """

    eta: float = 0.0
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise HemstitchError(f"eta lies in 0..1, not {self.eta}")

    def step(self, state: State, prediction: Prediction, noise: Tensor | None = None) -> State:
        here = state.position
        _, alpha, sigma = state.levels.at(here)
        _, alpha_next, sigma_next = state.levels.at(here + 1)
        if self.eta == 0:
            x = state.combine((alpha_next, prediction.x0), (sigma_next, prediction.eps))
            return replace(state, x=x, step=state.step + 1)
        spread = self.eta * torch.exp(posterior(alpha, sigma, alpha_next, sigma_next).log_small / 2)
        along = torch.sqrt((sigma_next**2 - spread**2).clamp(min=0))
        noise = state.noise() if noise is None else noise
        x = state.combine((alpha_next, prediction.x0), (along, prediction.eps), (spread, noise))
        return replace(state, x=x, step=state.step + 1)


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M) (Lu et al. 2022b, alg. 2): second order, one evaluation a step, remembering the last x_0.

    The first step, the step to the clean level and the first step after a change of member are first order: across a
    seam the remembered x_0 is another network's, and extrapolating from it would cost the order.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 1

    def step(self, state: State, prediction: Prediction, noise: Tensor | None = None) -> State:
        here = state.position
        _, alpha, sigma = state.levels.at(here)
        _, alpha_next, sigma_next = state.levels.at(here + 1)
        _, alpha_last, sigma_last = state.levels.at((here - 1).clamp(min=0))
        half = _half_log_snr(alpha, sigma)
        h = _half_log_snr(alpha_next, sigma_next) - half
        h_last = half - _half_log_snr(alpha_last, sigma_last)
        ready = (here > 0) & (sigma_next > 0) & torch.isfinite(h_last)
        if state.member is not None and prediction.member is not None:
            same = state.member == prediction.member
            ready = ready & (same[:1] if bool((same == same[0]).all()) else same)  # (B,) where rows differ
        toward = -alpha_next * torch.expm1(-h)
        # D = x_0 + h / (2 h_last) (x_0 - x_0 of the last step): eq. 16, r = h_last / h
        slope = torch.where(ready, toward * h / (2 * h_last), 0.0)
        remembered = state.memory[0] if state.memory else prediction.x0
        x = state.combine((sigma_next / sigma, state.x), (toward + slope, prediction.x0), (-slope, remembered))
        return replace(state, x=x, step=state.step + 1, memory=(prediction.x0,), member=prediction.member)


@dataclass(frozen=True)
class Heun:
    """Heun's method on the probability-flow ODE (Karras et al. 2022, alg. 1 without churn): second order.

    Two evaluations a step, both under the step's own member; the last step, to the clean level, is one of Euler's. The
    integration variable is sigma/alpha for variance-preserving processes and t for the flow process. A first step from
    a level of nearly no signal, as the cosine schedule's last (sigma/alpha of 2e4), is too long for it: give it a grid
    that begins at a log-SNR of some -8, or take another sampler.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def step(self, state: State, prediction: Prediction, noise: Tensor | None = None) -> State:
        here = state.position
        stage = state.stage[: len(here)]
        t, alpha, sigma = state.levels.at(here)
        t_next, alpha_next, sigma_next = state.levels.at(here + 1)
        straight = state.levels.straight
        # second stage: x + half the change of slope, the slope being eps against sigma/alpha, or eps - x_0 against t
        half = torch.where(straight, t_next - t, alpha_next * (sigma_next / alpha_next - sigma / alpha)) / 2
        of_eps = torch.where(stage == 1, half, 0.0)
        of_x0 = torch.where((stage == 1) & straight, -half, 0.0)
        first = stage == 0
        zero = torch.zeros_like(alpha)
        x0_last, eps_last = state.memory if state.memory else (prediction.x0, prediction.eps)
        x = state.combine(
            (torch.where(first, zero, 1.0), state.x),
            (torch.where(first, alpha_next, of_x0), prediction.x0),
            (torch.where(first, sigma_next, of_eps), prediction.eps),
            (torch.where(first, zero, -of_x0), x0_last),
            (torch.where(first, zero, -of_eps), eps_last),
        )
        finished = (~first | (sigma_next == 0)).expand(len(state.step)).long()
        return replace(
            state,
            x=x,
            step=state.step + finished,
            stage=1 - finished,
            memory=(prediction.x0, prediction.eps),
        )


def _half_log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    return torch.log(alpha) - torch.log(sigma)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPM(),
    "ddim": DDIM(),
    "dpmpp_2m": DPMpp2M(),
    "heun": Heun(),
    "euler": DDIM(),
}


def sampler_of(sampler: str | Sampler, eta: float = 0.0) -> Sampler:
    """A sampler by name or itself; eta makes DDIM stochastic."""
    if not isinstance(sampler, str):
        return sampler
    if sampler not in SAMPLERS:
        raise HemstitchError(f"sampler is one of {', '.join(SAMPLERS)}, not {sampler!r}")
    if eta and sampler != "ddim":
        raise HemstitchError(f"eta belongs to sampler='ddim', not to {sampler!r}")
    return DDIM(eta=eta) if eta else SAMPLERS[sampler]
