"""Solver steps of diffusers' schedulers: which calls of the network make one, and which call this is.

A scheduler may call the network several times for one solver step (Heun, KDPM2, PNDM, DPM-Solver singlestep), and at
equal timesteps. A seam between two networks lies between solver steps, never within one. Nothing here counts calls: the
place of a call is read from the timestep that the pipeline passes, a view of the schedule, or from the scheduler.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import StitchError


@dataclass(frozen=True)
class Schedule:
    """The calls of one run of a pipeline.

    timesteps: the scheduler's own tensor, kept so that a new run is told by another one. begin, end: places in it of
    the first call and behind the last. starts: the places where a solver step begins, the first of them `begin`.
    """

    timesteps: Tensor
    begin: int
    end: int
    starts: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.starts)

    @property
    def times(self) -> list[float]:
        """The timestep that each solver step starts from. Waits for the device."""
        values = self.timesteps.tolist()
        return [values[start] for start in self.starts]

    def step_of(self, place: int) -> int:
        """The solver step that the call at this place belongs to."""
        return bisect_right(self.starts, place) - 1


def schedule_of(scheduler: Any, begin: int = 0, end: int | None = None, timesteps: Tensor | None = None) -> Schedule:
    """The calls from place `begin` of a scheduler's timesteps (or of those given) on, up to `end`."""
    timesteps = scheduler.timesteps if timesteps is None else timesteps
    last = len(timesteps) if end is None else min(end, len(timesteps))
    if not 0 <= begin < last:
        raise StitchError(f"a run begins at one of the {last} timesteps of its scheduler, not at number {begin}")
    return Schedule(timesteps, begin, last, tuple(_starts(scheduler, begin, last)))


def place_of(scheduler: Any, t: Any) -> int | None:
    """The place in the scheduler's timesteps of the call with this timestep (a number or a tensor), None if unknown.

    A view of the schedule says it exactly, also where timesteps repeat, and without asking the device; for another
    tensor the scheduler's own index does. Before its first step it has none: then it is where the run begins, if `t` is
    that timestep in some guise (Flux divides by 1000, Lumina counts upwards). Schedulers without an index (DDIM, DDPM,
    PNDM) have it told by the value. For these last two the device is waited for.
    """
    timesteps = scheduler.timesteps
    place = view_of(timesteps, t)
    if place is not None:
        return place
    if not hasattr(scheduler, "step_index"):
        return _nearest(timesteps, t)
    if scheduler.step_index is not None:
        return int(scheduler.step_index)
    begin = int(getattr(scheduler, "begin_index", None) or 0)
    T = int(scheduler.config.get("num_train_timesteps", 1000))
    given, there = (float(x.max()) if isinstance(x, Tensor) else float(x) for x in (t, timesteps[begin]))
    guises = (there, there / T, 1 - there / T)
    return begin if any(abs(given - guise) <= 1e-2 * max(abs(guise), 0.1) for guise in guises) else None


def view_of(timesteps: Tensor, t: Any) -> int | None:
    """The place of `t` in the schedule that it is a view of; None if it is not one."""
    if not isinstance(t, Tensor) or t.dtype != timesteps.dtype or t.device != timesteps.device or t.numel() == 0:
        return None
    if t.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return (t.storage_offset() - timesteps.storage_offset()) // max(timesteps.stride(0), 1)


def _starts(scheduler: Any, begin: int, end: int) -> list[int]:
    places = range(begin, end)
    if type(scheduler).__name__ == "PNDMScheduler":
        # goes by a counter of its own, from 0 wherever the pipeline begins
        runge_kutta = 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)
        return [place for place in places if _begins_pndm(place - begin, runge_kutta)]
    orders = getattr(scheduler, "order_list", None)  # of DPM-Solver singlestep; cut in the middle it begins at order 1
    if orders:
        return [place for place in places if place == begin or orders[place] == 1]
    if getattr(scheduler, "order", 1) == 2:  # two calls a step, from where the pipeline begins
        return [place for place in places if (place - begin) % 2 == 0]
    return list(places)


def _begins_pndm(counter: int, runge_kutta: int) -> bool:
    """Whether PNDM's call of this number begins a solver step: four Runge-Kutta calls each, then one each; without
    Runge-Kutta steps the second call makes the first step again."""
    if counter < runge_kutta:
        return counter % 4 == 0
    return not (counter == 1 and runge_kutta == 0)


def _nearest(timesteps: Tensor, t: Any) -> int | None:
    """The place of the timestep of this value, the first of equal ones; None if there is none."""
    times = timesteps.cpu()
    if isinstance(t, Tensor):
        times, t = times.to(t.dtype), float(t.max())  # as a pipeline in half precision rounds them
    gaps = (times.double() - float(t)).abs()
    best = int(gaps.argmin())
    return best if float(gaps[best]) <= 1e-3 * max(1.0, abs(float(t))) else None
