"""Loss weights per sample, by the noise level: name to formula."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..process import Process


def constant(process: Process, t_B: Tensor) -> Tensor:
    """Every sample alike."""
    return torch.ones(len(t_B), device=t_B.device)


def min_snr(process: Process, t_B: Tensor, gamma: float = 5.0) -> Tensor:
    """Min-SNR-γ (Hang et al. 2023, section 3.4): min(SNR, γ) over the weight that the prediction type has already.

    That is SNR for eps, SNR + 1 for v and flow, 1 for x0.
    """
    snr_B = torch.exp(process.log_snr(t_B))
    clipped_B = snr_B.clamp(max=gamma)
    inherent = {"eps": snr_B, "x0": torch.ones_like(snr_B)}.get(process.prediction, snr_B + 1)
    return (clipped_B / inherent).float()


WEIGHTINGS: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "constant": constant,
    "min_snr": min_snr,
}
