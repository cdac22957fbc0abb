"""Inference timestep grids: which K times of a process a sampler visits, noisiest first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import HemstitchError
from .process import Process


def released(process: Process, steps: int) -> Tensor:
    """The respacing of the released DiT code: K of T steps at a fractional stride, both ends kept.

    The stride is accumulated in floating point and rounded half to even, as there: some grids depend on it.
    """
    if process.is_flow:
        return trailing(process, steps)
    if steps == 1:
        raise HemstitchError("released respacing of 1 step keeps t = 0 only; use grid='trailing' for a single step")
    stride = (process.timesteps - 1) / (steps - 1)
    kept, position = [], 0.0
    for _ in range(steps):
        kept.append(round(position))
        position += stride
    return torch.tensor(kept[::-1], dtype=torch.float64)


def leading(process: Process, steps: int) -> Tensor:
    """Multiples of ⌊T/K⌋ from 0 (diffusers' "leading")."""
    if process.is_flow:
        raise HemstitchError("a leading grid visits t = 0, where the flow process has no noise left; use 'trailing'")
    return (torch.arange(steps, dtype=torch.float64) * (process.timesteps // steps)).flip(0)


def trailing(process: Process, steps: int) -> Tensor:
    """From the last timestep down at stride T/K (diffusers' "trailing"; Lin et al. 2024, table 2).

    Here and in `linspace` numpy computes the times, so that ties round as they do in diffusers.
    """
    if process.is_flow:
        return 1 - torch.arange(steps, dtype=torch.float64) / steps
    T = process.timesteps
    return torch.from_numpy(np.round(np.arange(T, 0, -T / steps))[:steps] - 1)


def linspace(process: Process, steps: int) -> Tensor:
    """K evenly spaced timesteps, both ends kept (diffusers' "linspace"); a single one is the last."""
    if process.is_flow or steps == 1:
        return trailing(process, steps)
    return torch.from_numpy(np.linspace(0, process.timesteps - 1, steps).round()[::-1].copy())


def logsnr(process: Process, steps: int) -> Tensor:
    """Uniform in log-SNR, both ends kept; times are fractional (DPM-Solver's uniform-lambda grid)."""
    low, high = process.log_snr_range
    return process.time_of(torch.linspace(low, high, steps, dtype=torch.float64))


GRIDS: dict[str, Callable[[Process, int], Tensor]] = {
    "released": released,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "logsnr": logsnr,
}


def timesteps(process: Process, steps: int, grid: str | Sequence[float] | Tensor = "released") -> Tensor:
    """The (K,) float64 times that a sampler visits, strictly falling.

    grid: a name of `GRIDS`, or the times themselves.
    """
    if steps < 1:
        raise HemstitchError(f"steps is at least 1, not {steps}")
    if not isinstance(grid, str):
        times = torch.as_tensor(grid, dtype=torch.float64).reshape(-1).cpu()
        if len(times) != steps:
            raise HemstitchError(f"the grid has {len(times)} times and steps is {steps}: give as many of each")
    elif grid not in GRIDS:
        raise HemstitchError(f"grid is one of {', '.join(GRIDS)} or a list of times, not {grid!r}")
    else:
        if not process.is_flow and grid != "logsnr" and steps > process.timesteps:
            raise HemstitchError(f"{steps} steps of a process that has {process.timesteps}: ask for fewer")
        times = GRIDS[grid](process, steps)
    low, high = float(times.min()), float(times.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise HemstitchError("grid times are finite numbers")
    if low < 0 or high > process.t_max or (process.is_flow and low == 0):
        above = "above 0, up to" if process.is_flow else "within 0 and"
        raise HemstitchError(f"grid times lie {above} {process.t_max:g}; these reach from {low:g} to {high:g}")
    rising = (times[1:] >= times[:-1]).nonzero()
    if len(rising):
        i = int(rising[0])
        raise HemstitchError(
            f"grid times fall strictly from noise to data; time {i} is {times[i]:g} and the next {times[i + 1]:g}"
        )
    return times
