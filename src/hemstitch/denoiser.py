"""The one call contract: denoiser(x, t, cond) -> Prediction, one time per row.

`t` may live on the host: the sampling loop keeps it there, so that everything decided from it (which member, whether
guidance applies, whether the batch shares a timestep) costs no device synchronisation.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from .errors import HemstitchError
from .process import Process, per_row

if TYPE_CHECKING:
    from .stitch.adaptive import Watch


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about x_t.

    x0, eps: (B, C, H, W), tied by x_t = alpha x0 + sigma eps.
    variance: (B, C, H, W) or None: where the log-variance of a DDPM step lies between its bounds, 0 = beta-tilde,
        1 = beta (Nichol & Dhariwal 2021, eq. 15). It is kept as this fraction because the bounds belong to the
        sampler's step, not to the network.
    member: (B,) int64 on the host, which member of a stitch spoke, or None. Multistep samplers restart at a change.
    """

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None
    member: Tensor | None = None


@dataclass(frozen=True)
class Spec:
    """What goes in and out of a denoiser, apart from noise.

    channels, size: samples are (channels, size, size).
    num_classes: labels are 0..num_classes-1; 0 means unconditional.
    null_label: whether label `num_classes` exists and means "no label" (needed for guidance).
    space: the name of the data or latent space, "" when unknown. Two known, different names do not mix.
    mean, std: per channel, what samples were normalised by: sample = (original - mean) / std. Empty: they were not.
    """

    channels: int
    size: int
    num_classes: int = 0
    null_label: bool = False
    space: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size


class Denoiser(ABC):
    """A network, an ensemble or a formula under a noise process. Implementations are final classes that wrap."""

    process: Process
    spec: Spec

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, member: Tensor | None = None) -> Prediction:
        """Predict x_0 and eps for each row.

        x: (B, C, H, W) noisy samples of `process`. t: (B,) times, host or device. cond: (B,) int64 labels or None.
        member: (B,) int64 on the host, the member to ask per row, from `route`; ignored by what is not stitched.
        """

    def route(self, step: Tensor, t: Tensor, watch: Watch | None = None) -> Tensor | None:
        """Which member speaks at each row's solver step, (B,) int64 on the host, or None for a single network.

        watch: that of the state, where the plan is adaptive.
        """
        return None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where samples are expected."""


ENDLESS = 1e6  # stands for an infinite log-SNR, pure noise or none, in a guidance interval


def shared(values_B: Tensor) -> bool:
    """Whether a batch shares one value, known without asking a device."""
    if len(values_B) == 1 or values_B.stride(0) == 0:
        return True
    return values_B.device.type == "cpu" and bool((values_B == values_B[0]).all())


@final
class NetDenoiser(Denoiser):
    """A plain network `net(x, t, y) -> Tensor` under its process."""

    def __init__(self, net: nn.Module, process: Process, spec: Spec) -> None:
        self.net = net
        self.process = process
        self.spec = spec

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, member: Tensor | None = None) -> Prediction:
        time_B = self.process.network_time(t)
        if shared(time_B):  # one row of time for the whole batch: the network computes what hangs on t once
            time_B = time_B[:1].to(x.device, non_blocking=True).expand(len(x))
        output = self.net(x, time_B.to(x.device, non_blocking=True), cond)
        output = output.to(x.dtype)
        C = x.shape[1]
        variance = (output[:, C:] + 1) / 2 if self.process.learned_variance else None
        x0, eps = self.process.x0_eps(output[:, :C], x, t)
        return Prediction(x0, eps, variance)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> NetDenoiser:
        """Move the network; samples are expected where it is."""
        self.net.to(device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def __repr__(self) -> str:
        return f"NetDenoiser({type(self.net).__name__}, {self.process}, {self.spec})"


@final
class Guided(Denoiser):
    """Classifier-free guidance (Ho & Salimans 2022): eps = eps_null + w (eps_cond - eps_null).

    scale: w, one number or one per row, (B,) on the host. Rows with w = 1 do not pay for the null label.
    channels: guide the first so many channels only; the others, and the variance, are those of the labelled rows. The
        released DiT guides 3 of 4.
    interval: (low, high) log-SNR within which guidance applies (Kynkäänniemi et al. 2024); outside w = 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        channels: int | None = None,
        interval: tuple[float, float] | None = None,
    ) -> None:
        if not denoiser.spec.num_classes:
            raise HemstitchError("guidance needs labels to guide by, and this model is unconditional: use guidance=1")
        if not denoiser.spec.null_label:
            raise HemstitchError(
                "guidance needs the null label, and this model was trained without label dropout: use guidance=1"
            )
        if channels is not None and not 1 <= channels <= denoiser.spec.channels:
            raise HemstitchError(f"guidance_channels lies in 1..{denoiser.spec.channels}, not {channels}")
        if interval is not None and interval[0] >= interval[1]:
            raise HemstitchError(f"guidance_interval is (low, high) log-SNR with low < high, not {interval}")
        self.denoiser = denoiser
        self.process = denoiser.process
        self.spec = denoiser.spec
        self.scale = torch.as_tensor(scale, dtype=torch.float64, device="cpu").reshape(-1)
        self.channels = channels
        self.interval = interval

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def route(self, step: Tensor, t: Tensor, watch: Watch | None = None) -> Tensor | None:
        return self.denoiser.route(step, t) if watch is None else self.denoiser.route(step, t, watch)

    def scales(self, t: Tensor) -> Tensor:
        """(B,) float64 on the host: the guidance scale of each row at its time."""
        if len(self.scale) not in (1, len(t)):
            raise HemstitchError(f"one guidance scale per row: {len(self.scale)} scales for {len(t)} rows")
        scale_B = self.scale.expand(len(t))
        if self.interval is None:
            return scale_B
        log_snr_B = self.process.log_snr(t).cpu().clamp(-ENDLESS, ENDLESS)
        inside_B = (log_snr_B >= self.interval[0]) & (log_snr_B <= self.interval[1])
        return torch.where(inside_B, scale_B, torch.ones_like(scale_B))

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, member: Tensor | None = None) -> Prediction:
        if cond is None:
            raise HemstitchError("guidance needs labels: pass cond (labels=), or use guidance=1")
        scale_B = self.scales(t)
        guided = (scale_B != 1).nonzero().squeeze(1)
        if len(guided) == 0:
            return self.denoiser(x, t, cond, member=member)
        B, everyone = len(x), len(guided) == len(x)

        def again(rows: Tensor) -> Tensor:
            return rows if everyone else rows[guided.to(rows.device, non_blocking=True)]

        null = torch.full((len(guided),), self.spec.num_classes, dtype=cond.dtype, device=cond.device)
        both = self.denoiser(
            torch.cat([x, again(x)]),
            torch.cat([t, again(t)]),
            torch.cat([cond, null]),
            member=None if member is None else torch.cat([member, again(member)]),
        )
        weight = per_row(scale_B[guided], x)
        return Prediction(
            x0=self._guide(both.x0, B, weight, again),
            eps=self._guide(both.eps, B, weight, again),
            variance=None if both.variance is None else both.variance[:B],
            member=None if both.member is None else both.member[:B],
        )

    def _guide(self, both: Tensor, B: int, weight: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor:
        labelled, null = both[:B], both[B:]
        channels = self.channels or labelled.shape[1]
        chosen = again(labelled)
        guided = null[:, :channels] + weight * (chosen[:, :channels] - null[:, :channels])
        if channels < labelled.shape[1]:
            guided = torch.cat([guided, chosen[:, channels:]], 1)
        if len(guided) == B:
            return guided
        everything = labelled.clone()
        index = again(torch.arange(B)).to(labelled.device, non_blocking=True)
        everything[index] = guided
        return everything
