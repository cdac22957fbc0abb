"""AdaptivePlan: every sample finds its own seam, by how its x_0 estimate moves. Plan and state are values.

T-Stitch (PAPERS, 2.1) gives the same first steps of every sample to the small member. Here a row keeps the first member
until a signal that costs no further network call says that it is time.

Shape suffixes: B batch, C channels, H height, W width, K steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import StitchError
from ..files import read_json
from ..process import per_row
from .plan import MOST_STEPS, Plan

Signal = Literal["path", "change"]
Side = Literal["above", "below"]


@dataclass(frozen=True)
class AdaptivePlan:
    """A row begins with `first` and goes over to `then`, for good, at a step that it finds for itself.

    After step i >= 1 (counted from 0) of `first` the change of a row is the root mean square, over its C·H·W values, of
    the x_0 that it foresees there less the one that it foresaw a step before; guided, where guidance applies. Its path
    is the sum of its changes so far. The row's seam is the number of steps that `first` takes: i + 1 of the first i at
    which the signal has passed the threshold.

    first, then: names of members. steps: K. threshold: in the unit of the samples; infinite ones always or never hold.
    signal: "path" or "change". side: "above" switches where signal >= threshold, "below" where signal <= threshold
    (a path never falls: below, it decides at `earliest` or not at all).
    earliest, latest: bounds of the seam, 2 <= earliest <= latest <= K, since a change takes two estimates. At `latest`
    a row goes over whatever its signal; None is K: it may end with `first`.

    Samplers with several evaluations a step (Heun) are watched at the first one of each step. A row's seam depends on
    its own trajectory alone, so it is that of the row in any batch, unless its signal lies within the rounding of
    kernels of the threshold.
    """

    first: str
    then: str
    steps: int
    threshold: float
    signal: Signal = "path"
    side: Side = "above"
    earliest: int = 2
    latest: int | None = None

    def __post_init__(self) -> None:
        for name in (self.first, self.then):
            if not isinstance(name, str) or not name:
                raise StitchError(f"an adaptive plan names two members, first and then; got {name!r}")
        if self.first == self.then:
            raise StitchError(f"an adaptive plan goes from one member to another: {self.first} alone is a fixed plan")
        if not _is_number(self.threshold) or math.isnan(self.threshold):
            raise StitchError(f"a threshold is a number; got {self.threshold!r}")
        object.__setattr__(self, "threshold", float(self.threshold))
        check_choices(self.signal, self.side)
        check_window(self.steps, self.earliest, self.latest)

    @property
    def last_seam(self) -> int:
        """`latest`, or K where there is none."""
        return self.steps if self.latest is None else self.latest

    def fixed(self, seam: int) -> Plan:
        """What a row with this seam is sampled by: `first` for so many steps, then `then`."""
        return Plan.steps_each({self.first: seam, self.then: self.steps - seam})

    def watch(self, batch: int) -> Watch:
        """What a state of so many rows at x_T carries under this plan."""
        return Watch(
            seam=torch.full((batch,), self.last_seam),
            earliest=torch.full((batch,), self.earliest),
            latest=torch.full((batch,), self.last_seam),
            threshold=torch.full((batch,), self.threshold, dtype=torch.float64),
            above=torch.full((batch,), self.side == "above"),
            summed=torch.full((batch,), self.signal == "path"),
        )

    def to_json(self) -> str:
        """{"rule": "adaptive", and the fields}; an infinite threshold, which JSON has no number for, is "inf"."""
        data: dict[str, Any] = {"rule": "adaptive"} | {f.name: getattr(self, f.name) for f in fields(self)}
        if math.isinf(self.threshold):
            data["threshold"] = str(self.threshold)
        return json.dumps(data, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> AdaptivePlan:
        """The inverse of `to_json`; unknown or missing keys are refused."""
        return cls.from_data(read_json(text, "a plan"))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> AdaptivePlan:
        """From a JSON object already read."""
        keys = ["rule", *(f.name for f in fields(cls))]
        if set(data) != set(keys) or data["rule"] != "adaptive":
            got = ", ".join(sorted(map(str, data))) or "none"
            raise StitchError(f'an adaptive plan has "rule": "adaptive" and the keys {", ".join(keys[1:])}; got {got}')
        values = {key: value for key, value in data.items() if key != "rule"}
        if values["threshold"] in ("inf", "-inf"):
            values["threshold"] = float(values["threshold"])
        return cls(**values)

    def __str__(self) -> str:
        sign = "≥" if self.side == "above" else "≤"
        span = f"after {self.earliest} to {self.last_seam} of {self.steps} steps"
        never = " or never" if self.latest is None else ""
        return f"{self.first} → {self.then} where {self.signal} {sign} {self.threshold:.4g}, {span}{never}"


def plan_of_data(data: dict[str, Any]) -> Plan | AdaptivePlan:
    """A plan of either kind from a JSON object already read: an adaptive one says so by its rule."""
    return AdaptivePlan.from_data(data) if data.get("rule") == "adaptive" else Plan.from_data(data)


@dataclass(frozen=True)
class Watch:
    """What rows under adaptive plans carry in their `State`, and what decides their seams. A value.

    The rule is kept row by row, so that rows of different plans, or of none, may share a batch. All but x0 and path is
    on the host, and these are there only while some row is undecided.

    seam: (B,) int64, the step from which `then` runs: the row's own once it is decided, until then `latest`; -1 in rows
        under a fixed plan, which are not watched. earliest, latest: (B,) int64, its bounds.
    threshold: (B,) float64. above: (B,) bool, the side. summed: (B,) bool, whether the signal is the path.
    x0: (B, C, H, W), the estimate of each row's last step. path: (B,) float32, beside it, the sum of changes.
    """

    seam: Tensor
    earliest: Tensor
    latest: Tensor
    threshold: Tensor
    above: Tensor
    summed: Tensor
    x0: Tensor | None = None
    path: Tensor | None = None

    def after(self, step: Tensor, stage: Tensor, x0: Tensor) -> Watch:
        """The watch after a network evaluation of rows at these steps and stages, (B,) on the host, foreseeing x0.

        Waits for the device only where a row that is undecided may be decided by this step.
        """
        undecided = self._undecided(step)
        if not bool(undecided.any()):
            return self._idle()
        watched = stage == 0
        if not bool(watched.any()):
            return self
        if self.x0 is None or self.path is None:
            return replace(self, x0=x0, path=torch.zeros(len(x0), device=x0.device))
        change = rms_change(x0, self.x0)
        if not bool((watched & (step > 0)).all()):
            change = torch.where(per_row(watched & (step > 0), change).bool(), change, 0.0)
            x0 = torch.where(per_row(watched, x0).bool(), x0, self.x0)
        path, seam = self.path + change, self.seam
        deciding = undecided & watched & (step + 1 >= self.earliest)
        if bool(deciding.any()):
            change_B, path_B = torch.stack([change, path]).cpu().double()
            signal = torch.where(self.summed, path_B, change_B)
            passed = torch.where(self.above, signal >= self.threshold, signal <= self.threshold)
            seam = torch.where(deciding & passed, step + 1, seam)
        following = replace(self, seam=seam, x0=x0, path=path)
        return following if bool(following._undecided(step + 1).any()) else following._idle()

    def rows(self, index: Tensor) -> Watch:
        """The chosen rows, (b,) int64 on the host."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Watch(**{name: value[index.to(value.device, non_blocking=True)] for name, value in chosen.items()})

    @staticmethod
    def join(watches: Sequence[Watch | None], sizes: Sequence[int]) -> Watch | None:
        """One watch of several batches of these sizes; None where none of them is watched."""
        if all(w is None for w in watches):
            return None
        every = [_unwatched(B) if w is None else w for w, B in zip(watches, sizes, strict=True)]
        known = next((w for w in every if w.x0 is not None and w.path is not None), None)
        if known is not None and known.x0 is not None and known.path is not None:
            x0, path = known.x0, known.path
            every = [
                w if w.x0 is not None else replace(w, x0=x0.new_zeros(B, *x0.shape[1:]), path=path.new_zeros(B))
                for w, B in zip(every, sizes, strict=True)
            ]
        names = [f.name for f in fields(Watch) if getattr(every[0], f.name) is not None]
        return Watch(**{name: torch.cat([getattr(w, name) for w in every]) for name in names})

    def _undecided(self, step: Tensor) -> Tensor:
        """(B,) bool: rows whose seam what step `step` foresees may move."""
        return (self.seam == self.latest) & (step + 1 < self.latest)

    def _idle(self) -> Watch:
        """Nothing is left to decide: only the seams are still needed."""
        return self if self.x0 is None else replace(self, x0=None, path=None)


def _unwatched(batch: int) -> Watch:
    none, no = torch.full((batch,), -1), torch.zeros(batch, dtype=torch.bool)
    return Watch(none, none, none, torch.zeros(batch, dtype=torch.float64), no, no)


def rms_change(x0: Tensor, last: Tensor) -> Tensor:
    """(B,) float32: the root mean square of x0 - last, both (B, C, H, W), over each row."""
    return (x0 - last).float().square().flatten(1).mean(1).sqrt()


def check_choices(signal: str, side: str) -> None:
    """Raise a StitchError unless there are such a signal and such a side."""
    for what, value, known in (("signal", signal, get_args(Signal)), ("side", side, get_args(Side))):
        if value not in known:
            raise StitchError(f"{what} is {' or '.join(known)}, not {value!r}")


def check_window(steps: int, earliest: int, latest: int | None) -> None:
    """Raise a StitchError unless 2 <= earliest <= latest <= steps, whole numbers; latest None is steps."""
    last = steps if latest is None else latest
    if any(type(value) is not int for value in (steps, earliest, last)):
        raise StitchError(f"steps, earliest and latest are whole numbers; got {steps!r}, {earliest!r}, {latest!r}")
    if steps > MOST_STEPS:
        raise StitchError(f"a plan has {MOST_STEPS:,} steps at most, not {steps:,}")
    if not 2 <= earliest <= last <= steps:
        raise StitchError(
            f"an adaptive seam lies in 2 <= earliest <= latest <= steps, since a change takes two estimates; got "
            f"earliest {earliest}, latest {latest}, steps {steps}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
