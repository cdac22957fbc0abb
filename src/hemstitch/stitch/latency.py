"""What a solver step of each member costs on this machine, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from .. import seeds
from ..denoiser import Denoiser, Guided
from .plan import Plan


def seconds_per_call(members: Mapping[str, Denoiser], batch: int, guided: bool, repeats: int = 15) -> dict[str, float]:
    """Median seconds of one prediction of `batch` samples, per member, warm. Members take turns, so that a slow spell
    of the machine falls on all of them."""
    asks = {}
    for name, denoiser in members.items():
        spec = denoiser.spec
        asked = Guided(denoiser, 1.5) if guided else denoiser
        x = seeds.normal(seeds.keys([(0, i) for i in range(batch)]), 0, spec.shape, denoiser.device)
        labels = torch.arange(batch, device=denoiser.device) % spec.num_classes if spec.num_classes else None
        t = torch.tensor([denoiser.process.t_max / 2], dtype=torch.float64).expand(batch)
        asks[name] = (asked, x, t, labels)
    times: dict[str, list[float]] = {name: [] for name in members}
    for repeat in range(repeats + 2):
        for name, (asked, x, t, labels) in asks.items():
            begin = time.perf_counter()
            with torch.no_grad():
                asked(x, t, labels)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            if repeat >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def ideal_seconds(plan: Plan, cost: Mapping[str, float]) -> float:
    """A plan's steps at their members' own cost: what sampling would take if stitching cost nothing."""
    return sum(count * cost[name] for name, count in plan.counts.items())
