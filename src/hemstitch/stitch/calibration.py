"""The threshold of an adaptive plan, from its signals along trajectories of the first member alone.

Until its seam a sample is the same under every threshold, so what a threshold does to the seams of samples is known
exactly from one run of the first member over them; the other member is never called.

Shape suffixes: N samples, K solver steps, W steps after which a seam may be decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from ..denoiser import Denoiser, Guided
from ..errors import HemstitchError, StitchError
from ..sampling import Options, advance, prepare
from .adaptive import AdaptivePlan, Side, Signal, check_choices, check_window, rms_change
from .plan import Plan
from .stitched import Stitched


@dataclass(frozen=True)
class Signals:
    """Both signals of N samples after each of K steps, (N, K) float64 on the host.

    change: of the first step, which has no estimate before it, 0. path: its running sum, in float32 as it is sampled.
    """

    change: Tensor
    path: Tensor

    def of(self, signal: Signal) -> Tensor:
        """(N, K): the one that a plan goes by."""
        check_choices(signal, "above")
        return self.path if signal == "path" else self.change


@dataclass(frozen=True)
class Calibration:
    """A threshold, and the mean seam that it has over the samples it was chosen on, in steps."""

    threshold: float
    mean_seam: float


def signals(model: Denoiser, labels: Sequence[int] | Tensor | None = None, **options: Unpack[Options]) -> Signals:
    """Sample, and record both signals after every step. Arguments are those of `sample`, all samples in one batch.

    model: a stitch under an adaptive plan, of which the first member alone is sampled, in the process of the stitch;
        any other model is sampled as it is.
    """
    job = prepare(_first_alone(model), labels, **options)
    state, last = job.state, None
    change_K: list[Tensor] = []
    path_K: list[Tensor] = []
    while not bool(state.done.all()):
        is_first = int(state.stage[0]) == 0
        state, said = advance(job, state)
        if is_first:
            change = rms_change(said.x0, said.x0 if last is None else last)
            change_K.append(change)
            path_K.append(path_K[-1] + change if path_K else change)
            last = said.x0
    return Signals(torch.stack(change_K, 1).cpu().double(), torch.stack(path_K, 1).cpu().double())


def _first_alone(model: Denoiser) -> Denoiser:
    """An adaptive stitch's trajectory with no seam."""
    if isinstance(model, Guided):
        return Guided(_first_alone(model.denoiser), model.scale, model.channels, model.interval)
    if not isinstance(model, Stitched) or not isinstance(model.plan, AdaptivePlan):
        return model
    plan = Plan.steps_each({model.plan.first: model.plan.steps})
    return Stitched(model.members, plan, process=model.process)


def seams(
    signals_NK: Tensor, threshold: float, side: Side = "above", earliest: int = 2, latest: int | None = None
) -> Tensor:
    """(N,) int64: the seam that a plan with this threshold gives to samples of these signals of its first member."""
    ordered_NW, sign = _running(signals_NK, side, earliest, latest)
    return earliest + (ordered_NW < sign * threshold).sum(1)


def calibrated(
    signals_NK: Tensor, mean_seam: float, side: Side = "above", earliest: int = 2, latest: int | None = None
) -> Calibration:
    """The threshold whose mean seam over samples of these signals is nearest to the one asked for, in steps.

    signals_NK: (N, K) of one signal, as `Signals.of` gives. The mean seam changes only where the threshold crosses a
    value that some sample's signal has not reached before: the search over these values is exact. The threshold lies
    midway between two of them, so that rounding decides nothing; it is infinite where all or no signals must pass. Of
    two means equally near the smaller is taken.

    Raises StitchError for a mean outside of earliest..latest and for signals that are not finite.
    """
    ordered_NW, sign = _running(signals_NK, side, earliest, latest)
    N, W = ordered_NW.shape
    if not earliest <= mean_seam <= earliest + W:
        raise StitchError(
            f"the mean seam lies between earliest and latest, {earliest}..{earliest + W}; not {mean_seam}"
        )
    values = ordered_NW.flatten().sort().values
    # a threshold above c of the values, and not above the next one, makes the seams' sum N · earliest + c
    apart = (values[1:] > values[:-1]).nonzero().squeeze(1) + 1
    possible = torch.cat([torch.tensor([0]), apart, torch.tensor([N * W])])
    gap = (possible.double() - N * (mean_seam - earliest)).abs()
    c = int(possible[int(gap.argmin())])
    if c == 0:
        threshold = -math.inf
    elif c == N * W:
        threshold = math.inf
    else:
        threshold = float(values[c - 1] + values[c]) / 2
    return Calibration(sign * threshold, earliest + c / N)


def _running(signals_NK: Tensor, side: Side, earliest: int, latest: int | None) -> tuple[Tensor, int]:
    """(N, W) running maxima of the signals over the steps that may decide, turned over where the side is below."""
    check_choices("path", side)
    if signals_NK.ndim != 2 or not len(signals_NK):
        raise HemstitchError(f"signals are (N, K), of at least one sample; got {tuple(signals_NK.shape)}")
    K = signals_NK.shape[1]
    check_window(K, earliest, latest)
    if not bool(torch.isfinite(signals_NK).all()):
        raise StitchError("a signal is not finite: less guidance, more steps, or another sampler")
    sign = 1 if side == "above" else -1
    window = signals_NK[:, earliest - 1 : (K if latest is None else latest) - 1].double()
    return torch.cummax(sign * window, 1).values if window.shape[1] else window, sign
