"""Which times training draws: a distribution over the process, cut to the intervals that a plan leaves a member.

Every draw is a function of its row's key. Shape suffixes: B batch, T train timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .. import seeds
from ..errors import HemstitchError
from ..grid import timesteps
from ..process import Process
from ..stitch.plan import Plan

Interval = tuple[float, float]

FLOW_EDGE = 1e-4  # the flow process is trained this far from both ends


@dataclass(frozen=True)
class Times:
    """How training times are drawn.

    sampling: "uniform", or "lognormal": log(σ/α) ~ N(mean, std²) (Karras et al. 2022, table 1; on the flow process that
        is the logit-normal of Esser et al. 2024).
    intervals: half-open [low, high) of times in the process's own count, drawn from as if the rest had no density;
        empty is all of it.
    """

    process: Process
    sampling: Literal["uniform", "lognormal"] = "uniform"
    mean: float = -1.2
    std: float = 1.2
    intervals: tuple[Interval, ...] = ()

    def __post_init__(self) -> None:
        end = self.process.t_max if self.process.is_flow else self.process.timesteps
        for low, high in self.intervals:
            if not 0 <= low < high <= end:
                raise HemstitchError(f"an interval of times lies in 0..{end:g}, its low end first; got [{low}, {high})")
        ordered = sorted(self.intervals)
        if any(b[0] < a[1] for a, b in pairwise(ordered)):
            raise HemstitchError(f"intervals of times do not overlap; got {self.intervals}")
        if not self.process.is_flow and self.intervals and not float(_pmf(self).sum()) > 0:
            raise HemstitchError(f"no timestep lies in {self.intervals}")

    def draw(self, key_B2: Tensor, device: torch.device) -> Tensor:
        """(B,) times: int64 timesteps of a discrete process, float64 of the flow process."""
        if self.process.is_flow:
            return self._draw_flow(seeds.uniform(key_B2, seeds.TRAIN_TIME, device))
        if self.sampling == "uniform" and not self.intervals:
            return seeds.integers(key_B2, seeds.TRAIN_TIME, self.process.timesteps, device)
        u_B = seeds.uniform(key_B2, seeds.TRAIN_TIME, device)
        return torch.searchsorted(_cdf(self, device), u_B, right=True).clamp(max=self.process.timesteps - 1)

    def _draw_flow(self, u_B: Tensor) -> Tensor:
        ends, shift = _flow_masses(self, u_B.device)
        place_B = u_B * ends[-1]
        which_B = torch.searchsorted(ends, place_B, right=True).clamp(max=len(ends) - 1)
        t_B = self._flow_quantile(place_B + shift[which_B])
        return t_B.clamp(0, 1) * (1 - 2 * FLOW_EDGE) + FLOW_EDGE

    def flow_cdf(self, t: Tensor) -> Tensor:
        return t if self.sampling == "uniform" else torch.special.ndtr((torch.logit(t) - self.mean) / self.std)

    def _flow_quantile(self, u_B: Tensor) -> Tensor:
        if self.sampling == "uniform":
            return u_B
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u_B))


def plan_intervals(plan: Plan, member: str, process: Process, grid: str = "released") -> tuple[Interval, ...]:
    """The times that a plan gives a member: step i answers for those from its own down to the next step's.

    The first step answers for what is noisier, the last for what is left. Fine-tuning each member on its own times is
    T-Stitch, table 6.
    """
    if member not in plan.assignment:
        raise HemstitchError(f"the plan has no step for {member!r}; its members are {', '.join(plan.counts)}")
    times = [float(t) for t in timesteps(process, plan.steps, grid)]
    one = 0.0 if process.is_flow else 1.0  # a timestep t fills [t, t + 1)
    top = process.t_max if process.is_flow else float(process.timesteps)
    edges = [top, *(t + one for t in times[1:]), 0.0]
    found: list[Interval] = []
    for i, name in enumerate(plan.assignment):
        if name == member and edges[i + 1] < edges[i]:
            joined = found and found[-1][0] == edges[i]
            high = found.pop()[1] if joined else edges[i]
            found.append((edges[i + 1], high))
    return tuple(reversed(found))


@lru_cache(maxsize=64)
def _flow_masses(times: Times, device: torch.device) -> tuple[Tensor, Tensor]:
    """The intervals' masses laid in a row: where each ends, and what turns a place there into one of the whole."""
    bounds = torch.tensor(times.intervals or ((0.0, 1.0),), dtype=torch.float64)
    below, above = (times.flow_cdf(edge) for edge in bounds.unbind(1))
    ends = (above - below).cumsum(0)
    if not float(ends[-1]) > 0:
        raise HemstitchError(f"log-normal times have no mass in {times.intervals}: move train.time_mean")
    return ends.to(device), (below - (ends - (above - below))).to(device)


@lru_cache(maxsize=64)
def _cdf(times: Times, device: torch.device) -> Tensor:
    """(T,) float64, 1 at its end."""
    pmf_T = _pmf(times)
    return (pmf_T.cumsum(0) / pmf_T.sum()).to(device)


def _pmf(times: Times) -> Tensor:
    """(T,) float64, not normalised: each timestep has the mass around it, the ends what lies beyond."""
    process, T = times.process, times.process.timesteps
    if times.sampling == "uniform":
        pmf_T = torch.ones(T, dtype=torch.float64)
    else:
        log_sigma_T = -process.log_snr(torch.arange(T)) / 2
        between = (log_sigma_T[1:] + log_sigma_T[:-1]) / 2
        below = torch.special.ndtr((between - times.mean) / times.std)
        pmf_T = torch.diff(below, prepend=torch.zeros(1).double(), append=torch.ones(1).double())
    if times.intervals:
        t_T = torch.arange(T)
        inside_T = torch.zeros(T, dtype=torch.bool)
        for low, high in times.intervals:
            inside_T |= (t_T >= low) & (t_T < high)
        pmf_T = pmf_T * inside_T
    return pmf_T
