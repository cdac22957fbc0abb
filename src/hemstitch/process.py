"""The noise process and parameterisation that a network was trained under.

Every process here is x_t = alpha_t x_0 + sigma_t eps with eps ~ N(0, I). Discrete processes (linear, cosine,
scaled_linear) are variance preserving, alpha² + sigma² = 1, and count t = 0 .. T-1; the flow process is the linear
interpolant x_t = (1 - t) x_0 + t eps on t in [0, 1]. What two processes share is the log-SNR
lambda = log(alpha² / sigma²): at equal lambda the states differ by a scale only, which is how a trajectory is
handed from one process to another.

Shape suffixes: B batch, T train timesteps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .errors import HemstitchError

Schedule = Literal["linear", "cosine", "scaled_linear", "flow"]
PredictionType = Literal["eps", "v", "x0", "flow"]

SCHEDULES = ("linear", "cosine", "scaled_linear", "flow")
PREDICTIONS = ("eps", "v", "x0", "flow")

# Where the flow process is cut on a log-SNR grid, and where an eps network meets alpha = 0 (DDPM's own end is -10.1).
FLOW_LOG_SNR = 12.0


@dataclass(frozen=True)
class Process:
    """How images become noise, and what the network predicts about them.

    schedule: "linear" (betas 1e-4..0.02, scaled by 1000/T; Ho et al. 2020), "cosine" (Nichol & Dhariwal 2021, eq. 17,
        betas capped at 0.999), "scaled_linear" (square roots linear, 0.00085..0.012; latent diffusion) or "flow".
    prediction: what the network outputs: "eps", "x0", "v" = alpha eps - sigma x_0 (Salimans & Ho 2022), or
        "flow" = eps - x_0 (the velocity dx/dt of the linear interpolant).
    learned_variance: the network outputs 2C channels, the second half placing the log-variance between its two bounds
        (Nichol & Dhariwal 2021, eq. 15). Networks that output 2C channels without it have the second half ignored.
    timesteps: T. The flow process feeds T·t to the network.
    betas: first and last beta where they are not the schedule's own.
    reverse_time: the network counts time from noise (0) to data (1), unscaled, and predicts x_0 - eps (SiT). Flow only.
    """

    schedule: Schedule = "linear"
    prediction: PredictionType = "eps"
    learned_variance: bool = False
    timesteps: int = 1000
    betas: tuple[float, float] | None = None
    reverse_time: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise HemstitchError(f"schedule is one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.prediction not in PREDICTIONS:
            raise HemstitchError(f"prediction is one of {', '.join(PREDICTIONS)}, not {self.prediction!r}")
        if self.timesteps < 2:
            raise HemstitchError(f"a process has at least 2 timesteps, not {self.timesteps}")
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(self.betas))
            if self.schedule not in ("linear", "scaled_linear"):
                raise HemstitchError(f"betas belong to the linear schedules, not to {self.schedule!r}")
            if not 0 < self.betas[0] <= self.betas[1] < 1:
                raise HemstitchError(f"betas rise within (0, 1); got {self.betas}")
        if self.learned_variance and self.schedule == "flow":
            raise HemstitchError("a learned variance belongs to a discrete process; the flow process has none")
        if self.reverse_time and (self.schedule, self.prediction) != ("flow", "flow"):
            raise HemstitchError("reverse_time belongs to the flow process with flow prediction")

    @property
    def is_flow(self) -> bool:
        return self.schedule == "flow"

    @property
    def t_max(self) -> float:
        """The noisiest time: T-1, or 1 for the flow process."""
        return 1.0 if self.is_flow else float(self.timesteps - 1)

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """(lowest, highest) log-SNR at which this process has a network to ask."""
        if self.is_flow:
            return -FLOW_LOG_SNR, FLOW_LOG_SNR
        table_T = _log_snr_table(self, torch.device("cpu"))
        return float(table_T[-1]), float(table_T[0])

    def same_noise(self, other: Process) -> bool:
        """Whether both count the same times and mean the same noise by them, whatever their networks predict."""
        return self.schedule == other.schedule and (
            self.is_flow or (self.timesteps == other.timesteps and _betas(self) == _betas(other))
        )

    def log_snr(self, t_B: Tensor) -> Tensor:
        """log(alpha² / sigma²) at times t (any shape; fractional times interpolate log-SNR linearly), in float64."""
        t_B = t_B.double()
        if self.is_flow:
            return 2 * (torch.log1p(-t_B) - torch.log(t_B))
        table_T = _log_snr_table(self, t_B.device)
        t_B = t_B.clamp(0, self.timesteps - 1)
        low_B = t_B.floor().long()
        high_B = (low_B + 1).clamp(max=self.timesteps - 1)
        return table_T[low_B] + (t_B - low_B) * (table_T[high_B] - table_T[low_B])

    def alpha_sigma(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t, in float64, of t's shape and on its device."""
        if self.is_flow:
            t_B = t_B.double()
            return 1 - t_B, t_B
        log_snr_B = self.log_snr(t_B)
        return torch.sigmoid(log_snr_B).sqrt(), torch.sigmoid(-log_snr_B).sqrt()

    def time_of(self, log_snr_B: Tensor) -> Tensor:
        """The (fractional) time with this log-SNR: the inverse of `log_snr`, clamped to the times there are."""
        log_snr_B = log_snr_B.double()
        if self.is_flow:
            return torch.sigmoid(-log_snr_B / 2)
        rising_T = _log_snr_table(self, log_snr_B.device).flip(0)
        log_snr_B = log_snr_B.clamp(rising_T[0], rising_T[-1])
        high_B = torch.searchsorted(rising_T, log_snr_B.contiguous()).clamp(1, self.timesteps - 1)
        below_B, above_B = rising_T[high_B - 1], rising_T[high_B]
        return (self.timesteps - 1) - (high_B - 1 + (log_snr_B - below_B) / (above_B - below_B))

    def network_time(self, t_B: Tensor) -> Tensor:
        """The time that the network is told, float32: t, T·t under flow, 1 - t under `reverse_time`."""
        if self.reverse_time:
            return (1 - t_B.double()).float()
        return (t_B * self.timesteps).float() if self.is_flow else t_B.float()

    def add_noise(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps, one time per row."""
        alpha_B, sigma_B = (per_row(c, x0) for c in self.alpha_sigma(t_B))
        return alpha_B * x0 + sigma_B * eps

    def target(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """What a perfect network would output (the regression target of training)."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "x0":
            return x0
        if self.prediction == "flow":
            return x0 - eps if self.reverse_time else eps - x0
        alpha_B, sigma_B = (per_row(c, x0) for c in self.alpha_sigma(t_B))
        return alpha_B * eps - sigma_B * x0

    def x0_eps(self, output: Tensor, x: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, eps) from what the network said about x at t: the inverse of `target`, one time per row.

        Solves the two linear equations x = alpha x_0 + sigma eps and output = target(x_0, eps).
        """
        alpha_B, sigma_B = self.alpha_sigma(t_B)
        if self.is_flow and self.prediction == "eps":  # eps alone does not tell x_0 from pure noise
            alpha_B = alpha_B.clamp(min=math.exp(-FLOW_LOG_SNR / 2))
        alpha, sigma = per_row(alpha_B, x), per_row(sigma_B, x)
        if self.prediction == "eps":
            return (x - sigma * output) / alpha, output
        if self.prediction == "x0":
            return output, (x - alpha * output) / sigma
        if self.prediction == "v":
            square = alpha * alpha + sigma * sigma
            return (alpha * x - sigma * output) / square, (sigma * x + alpha * output) / square
        velocity = -output if self.reverse_time else output
        return (x - sigma * velocity) / (alpha + sigma), (x + alpha * velocity) / (alpha + sigma)

    def alphas_cumprod(self) -> Tensor:
        """alpha_t² for t = 0 .. T-1, float64: the table that other libraries call alphas_cumprod."""
        if self.is_flow:
            raise HemstitchError("the flow process is continuous: it has no table of alphas")
        return _alphas_cumprod(self)


def handed_back(
    ours: Process, theirs: Process, t_B: Tensor, x: Tensor, x0: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """(x_0, eps) about x at time t of `ours`, from what a network of `theirs` said at its own time of equal log-SNR.

    Where their process reaches, both hold. Beyond its noisy end (a discrete process never reaches pure noise) it was
    asked at that end and its x_0 is kept; beyond its clean end its eps: the other follows from x.
    """
    log_snr_B, (_, clean) = ours.log_snr(t_B), theirs.log_snr_range
    alpha_B, sigma_B = ours.alpha_sigma(t_B)
    alpha, sigma = per_row(alpha_B, x), per_row(sigma_B, x)
    beyond = (log_snr_B > clean).to(x.device, non_blocking=True).reshape(-1, *([1] * (x.ndim - 1)))
    x0 = torch.where(beyond, (x - sigma * eps) / alpha, x0)
    return x0, torch.where(beyond, eps, (x - alpha * x0) / sigma)


def per_row(coefficient_B: Tensor, like: Tensor) -> Tensor:
    """A coefficient per row, in `like`'s dtype and on its device, shaped to multiply it.

    The copy to an accelerator does not wait for it: coefficients that live on the host cost no synchronisation.
    """
    moved = coefficient_B.to(like.dtype).to(like.device, non_blocking=True)
    return moved.reshape(-1, *([1] * (like.ndim - 1)))


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) for s less noisy than t, per row and in float64 (Ho et al. 2020, eq. 7, for any alpha, sigma).

    mean = of_x · x_t + of_x0 · x_0. Its own log-variance is `log_small` (beta-tilde); `log_large` is that of the
    forward step (beta). Both are -inf where s is clean or equal to t.
    """

    of_x: Tensor
    of_x0: Tensor
    log_small: Tensor
    log_large: Tensor


def posterior(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Posterior:
    ratio = alpha_t / alpha_s
    # sigma_t² - ratio² sigma_s², without the cancellation
    forward = (sigma_t - ratio * sigma_s) * (sigma_t + ratio * sigma_s)
    square_t, square_s = sigma_t**2, sigma_s**2
    return Posterior(
        of_x=ratio * square_s / square_t,
        of_x0=alpha_s * forward / square_t,
        log_small=torch.log(forward * square_s / square_t),
        log_large=torch.log(forward),
    )


def _betas(process: Process) -> tuple[float, float] | None:
    if process.betas is not None or process.schedule not in ("linear", "scaled_linear"):
        return process.betas
    if process.schedule == "scaled_linear":
        return 0.00085, 0.012
    scale = 1000 / process.timesteps
    return scale * 1e-4, scale * 0.02


@lru_cache(maxsize=64)
def _alphas_cumprod(process: Process) -> Tensor:
    T = process.timesteps
    ends = _betas(process)
    if process.schedule == "cosine":
        t = torch.arange(T + 1, dtype=torch.float64) / T
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    elif process.schedule == "linear":
        assert ends is not None
        betas = torch.linspace(*ends, T, dtype=torch.float64)
    else:
        assert ends is not None
        betas = torch.linspace(math.sqrt(ends[0]), math.sqrt(ends[1]), T, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


@lru_cache(maxsize=64)
def _log_snr_table(process: Process, device: torch.device) -> Tensor:
    alphas = _alphas_cumprod(process)
    return (torch.log(alphas) - torch.log1p(-alphas)).to(device)
