"""Stitched: several denoisers in one trajectory, as one denoiser.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from ..denoiser import Denoiser, Prediction, Spec
from ..errors import StitchError
from ..grid import timesteps
from ..process import Process, handed_back, per_row
from .adaptive import AdaptivePlan, Watch
from .plan import Plan


@final
class Stitched(Denoiser):
    """Members under a plan: each row of a batch goes to the member that its solver step belongs to.

    Members may differ in size, architecture, prediction type and noise process; across processes the state is handed
    over at equal log-SNR, rescaled, and the prediction handed back. They must agree on channels, size, classes and
    space: what differs is named when the stitch is built.

    members: names to denoisers. plan: which one runs at which step, or an `AdaptivePlan`, by which every row finds that
    out for itself. process: the process in which the trajectory is sampled; by default that of the plan's last member,
    which finishes the image. grid: the times of the plan's steps, needed only by callers that ask by time alone
    (`sample` routes by step); an adaptive plan cannot be asked so.
    """

    def __init__(
        self,
        members: Mapping[str, Denoiser],
        plan: Plan | AdaptivePlan,
        *,
        process: Process | None = None,
        grid: str | Sequence[float] | Tensor = "released",
    ) -> None:
        order = [plan.first, plan.then] if isinstance(plan, AdaptivePlan) else plan.assignment
        unknown = [name for name in dict.fromkeys(order) if name not in members]
        if unknown:
            raise StitchError(f"the plan names {', '.join(unknown)}; the members are {', '.join(members) or 'none'}")
        self.members = dict(members)
        self.plan = plan
        self.spec = _common_spec(self.members)
        self.process = process or self.members[order[-1]].process
        self._grid = grid
        self._denoisers = list(self.members.values())
        index = {name: i for i, name in enumerate(self.members)}
        self._member_K = torch.tensor([index[name] for name in order])
        devices = {str(d.device) for d in self._denoisers}
        if len(devices) > 1:
            raise StitchError(f"members lie on different devices ({', '.join(sorted(devices))}): move them to one")

    @property
    def device(self) -> torch.device:
        return self._denoisers[0].device

    def route(self, step: Tensor, t: Tensor, watch: Watch | None = None) -> Tensor:
        """(B,) member indices at solver steps (B,), on the host. watch: the state's, where the plan is adaptive."""
        if not isinstance(self.plan, AdaptivePlan):
            return self._member_K[step]
        if watch is None:
            raise StitchError(
                "an adaptive plan is routed by what the state carries: use sample() or generate(), or begin with "
                "prepare(), move with advance(), and pass state.watch"
            )
        return self._member_K[(step >= watch.seam).long()]

    def member_at(self, t: Tensor) -> Tensor:
        """(B,) member indices at times (B,): a time belongs to the step with the nearest grid time at or above it."""
        if isinstance(self.plan, AdaptivePlan):
            raise StitchError(
                "under an adaptive plan the time alone does not tell the member, which each trajectory chooses: use "
                "sample() or generate(), or a fixed Plan"
            )
        falling_K = timesteps(self.process, self.plan.steps, self._grid)
        rising_K = -falling_K
        step = torch.searchsorted(rising_K, -t.double().cpu() + 1e-9, right=True) - 1
        return self._member_K[step.clamp(0, self.plan.steps - 1)]

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, member: Tensor | None = None) -> Prediction:
        if member is None:
            member = self.member_at(t)
        first = int(member[0])
        if bool((member == first).all()):
            said = self._ask(self._denoisers[first], x, t, cond)
            return Prediction(said.x0, said.eps, said.variance, member)
        x0, eps = torch.empty_like(x), torch.empty_like(x)
        variance = torch.zeros_like(x) if any(d.process.learned_variance for d in self._denoisers) else None
        for i, denoiser in enumerate(self._denoisers):
            rows = (member == i).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            on_device = rows.to(x.device, non_blocking=True)
            t_rows = t[rows.to(t.device, non_blocking=True)]
            labels = None if cond is None else cond[rows.to(cond.device, non_blocking=True)]
            said = self._ask(denoiser, x[on_device], t_rows, labels)
            x0[on_device], eps[on_device] = said.x0, said.eps
            if variance is not None and said.variance is not None:
                variance[on_device] = said.variance
        return Prediction(x0, eps, variance, member)

    def _ask(self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Tensor | None) -> Prediction:
        """Ask one member about rows of the trajectory, in its own process, and answer in the trajectory's.

        Where the member's process ends before the trajectory's, it is asked at its own end (`handed_back`).
        """
        theirs, ours = denoiser.process, self.process
        if theirs.same_noise(ours):
            return denoiser(x, t, cond)
        t_theirs = theirs.time_of(ours.log_snr(t))
        alpha, sigma = ours.alpha_sigma(t)
        alpha_theirs, sigma_theirs = theirs.alpha_sigma(t_theirs)
        rescale = torch.sqrt((alpha_theirs**2 + sigma_theirs**2) / (alpha**2 + sigma**2))
        said = denoiser(per_row(rescale, x) * x, t_theirs, cond)
        return Prediction(*handed_back(ours, theirs, t, x, said.x0, said.eps))


def _common_spec(members: Mapping[str, Denoiser]) -> Spec:
    (first_name, first), *others = members.items()
    null_label = first.spec.null_label
    space = first.spec.space
    scale = first.spec.mean, first.spec.std
    for name, other in others:
        differing = [
            f"{field}: {first_name} has {getattr(first.spec, field)!r}, {name} has {getattr(other.spec, field)!r}"
            for field in ("channels", "size", "num_classes")
            if getattr(first.spec, field) != getattr(other.spec, field)
        ]
        if space and other.spec.space and space != other.spec.space:
            differing.append(f"space: {first_name} has {space!r}, {name} has {other.spec.space!r}")
        if scale[0] and other.spec.mean and scale != (other.spec.mean, other.spec.std):
            differing.append(f"mean and std that samples were normalised by: {first_name} and {name} have others")
        if differing:
            raise StitchError("these members cannot denoise one trajectory. " + "; ".join(differing))
        space = space or other.spec.space
        scale = scale if scale[0] else (other.spec.mean, other.spec.std)
        null_label = null_label and other.spec.null_label
    return Spec(first.spec.channels, first.spec.size, first.spec.num_classes, null_label, space, *scale)
