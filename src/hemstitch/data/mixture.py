"""The Gaussian mixture whose best denoiser is known in closed form: the oracle that samplers are measured against.

Shape suffixes: B batch, M components, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..denoiser import Denoiser, Prediction, Spec
from ..errors import HemstitchError
from ..process import Process, per_row


@dataclass(frozen=True)
class Mixture:
    """Σ_m weight_m N(mean_m, std_m² I). means: (M, C, H, W); stds, weights: (M,)."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        M = len(self.means)
        if self.means.ndim != 4 or self.means.shape[2] != self.means.shape[3]:
            raise HemstitchError(f"means are (M, C, H, H), not {tuple(self.means.shape)}")
        if len(self.stds) != M or len(self.weights) != M:
            raise HemstitchError(f"{M} means need {M} stds and weights; got {len(self.stds)} and {len(self.weights)}")

    @classmethod
    def random(cls, components: int, channels: int, size: int, seed: int = 0) -> Mixture:
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(components, channels, size, size, generator=generator, dtype=torch.float64)
        stds = 0.2 + 0.5 * torch.rand(components, generator=generator, dtype=torch.float64)
        weights = 0.5 + torch.rand(components, generator=generator, dtype=torch.float64)
        return cls(means, stds, weights / weights.sum())

    @property
    def mean(self) -> Tensor:
        """(C·H·W,)"""
        return (self.weights[:, None] * self.means.flatten(1)).sum(0)

    @property
    def covariance(self) -> Tensor:
        """(C·H·W, C·H·W)"""
        offset = self.means.flatten(1) - self.mean
        inner = (self.weights * self.stds**2).sum() * torch.eye(offset.shape[1], dtype=offset.dtype)
        return inner + torch.einsum("m,mi,mj->ij", self.weights, offset, offset)


@final
class MixtureDenoiser(Denoiser):
    """E[x_0 | x_t] of a mixture under a process, exactly. Labels, if used, are the components."""

    def __init__(self, mixture: Mixture, process: Process, labelled: bool = False) -> None:
        self.mixture = mixture
        self.process = process
        M, C, size, _ = mixture.means.shape
        self.spec = Spec(C, size, M if labelled else 0, null_label=labelled, space="mixture")

    @property
    def device(self) -> torch.device:
        return self.mixture.means.device

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, member: Tensor | None = None) -> Prediction:
        alpha_B, sigma_B = (c.to(x.device) for c in self.process.alpha_sigma(t))
        x_B1N = x.double().flatten(1)[:, None]
        means_MN = self.mixture.means.flatten(1)
        alpha_B1, sigma_B1 = alpha_B[:, None], sigma_B[:, None]
        variance_BM = alpha_B1**2 * self.mixture.stds**2 + sigma_B1**2
        offset_BMN = x_B1N - alpha_B1[..., None] * means_MN
        log_BM = (
            torch.log(self.mixture.weights)
            - offset_BMN.square().sum(-1) / (2 * variance_BM)
            - means_MN.shape[1] / 2 * torch.log(variance_BM)
        )
        if cond is not None:
            M = len(means_MN)
            other_BM = (torch.arange(M, device=cond.device) != cond[:, None]) & (cond[:, None] < M)
            log_BM = log_BM.masked_fill(other_BM, -torch.inf)
        share_BM = torch.softmax(log_BM, 1)
        gain_BM = alpha_B1 * self.mixture.stds**2 / variance_BM
        x0_BN = (share_BM[..., None] * (means_MN + gain_BM[..., None] * offset_BMN)).sum(1)
        x0 = x0_BN.reshape(x.shape).to(x.dtype)
        return Prediction(x0, (x - per_row(alpha_B, x) * x0) / per_row(sigma_B, x))
