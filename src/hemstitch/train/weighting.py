"""How much each sample's loss counts, by its noise level: name to weighting.

Shape suffixes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..process import Process

Formula = Callable[[Process, Tensor], Tensor]

CLUSTERS = 8
UNCERTAINTY_RATE = 0.025  # learning rate of the log-scales


class Knobs(Protocol):
    """What weightings read of a recipe."""

    @property
    def min_snr_gamma(self) -> float: ...
    @property
    def p2_k(self) -> float: ...
    @property
    def p2_gamma(self) -> float: ...


def constant(process: Process, t_B: Tensor) -> Tensor:
    """(B,) Every sample alike."""
    return torch.ones(len(t_B), device=t_B.device)


def min_snr(process: Process, t_B: Tensor, gamma: float = 5.0) -> Tensor:
    """(B,) Min-SNR-γ (Hang et al. 2023, section 3.4): the loss on x_0 counts min(SNR, γ)."""
    snr_B = torch.exp(process.log_snr(t_B))
    return (snr_B.clamp(max=gamma) / of_x0_loss(process, t_B)).float()


def p2(process: Process, t_B: Tensor, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """(B,) P2 (Choi et al. 2022, eq. 8): the loss on eps counts 1 / (k + SNR)^γ."""
    snr_B = torch.exp(process.log_snr(t_B))
    return (snr_B / (k + snr_B) ** gamma / of_x0_loss(process, t_B)).float()


def of_x0_loss(process: Process, t_B: Tensor) -> Tensor:
    """(B,) float64: the squared error of the network's output over that of the x_0 it implies.

    With x_t fixed, an error d of x_0 is one of -(α/σ) d of eps, -((α² + σ²)/σ) d of v and -((α + σ)/σ) d of the flow:
    SNR, SNR + 1 (where α² + σ² = 1) and 1/σ² (where α + σ = 1).
    """
    alpha_B, sigma_B = process.alpha_sigma(t_B)
    error_B = {
        "eps": alpha_B / sigma_B,
        "x0": torch.ones_like(sigma_B),
        "v": (alpha_B**2 + sigma_B**2) / sigma_B,
        "flow": (alpha_B + sigma_B) / sigma_B,
    }[process.prediction]
    return error_B**2


class ByTime(nn.Module):
    """A fixed weight for the regression of each sample; the variational bound keeps its own."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, process: Process, t_B: Tensor, mse_B: Tensor, vb_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) weighted regression, (B,) loss."""
        mse_B = self.formula(process, t_B) * mse_B
        return mse_B, mse_B + vb_B


class Uncertainty(nn.Module):
    """ANT-UW (Go et al. 2023): ½(exp(-s_k)·loss + s_k), one learned log-scale s_k for each of 8 clusters of timesteps.

    Clusters are equal intervals of time. The loss is the sample's regression plus bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(CLUSTERS))

    def forward(self, process: Process, t_B: Tensor, mse_B: Tensor, vb_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) regression as it is, (B,) loss."""
        share_B = t_B.double() / (1 if process.is_flow else process.timesteps)
        s_B = self.log_scale[(share_B * CLUSTERS).long().clamp(0, CLUSTERS - 1)]
        return mse_B, (torch.exp(-s_B) * (mse_B + vb_B) + s_B) / 2


WEIGHTINGS: dict[str, Callable[[Knobs], nn.Module]] = {
    "constant": lambda knobs: ByTime(constant),
    "min_snr": lambda knobs: ByTime(partial(min_snr, gamma=knobs.min_snr_gamma)),
    "p2": lambda knobs: ByTime(partial(p2, k=knobs.p2_k, gamma=knobs.p2_gamma)),
    "uncertainty": lambda knobs: Uncertainty(),
}


def own_parameters(objective: nn.Module) -> list[nn.Parameter]:
    """What a weighting learns, which has its own learning rate."""
    return [p for m in objective.modules() if isinstance(m, Uncertainty) for p in cast(nn.Module, m).parameters()]
