"""DTR: denoising task routing by channel masks (Park et al., ICLR 2024). The mask baseline of Switch-DiT.

Shape suffixes: B batch, L tokens, D width, T train timesteps, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from .config import NetConfig
from .dit import DiT


def sliding_window(timesteps: int, units: int, alpha: float, beta: float) -> Tensor:
    """(T, U) of 0 and 1: a window of ⌊U·beta⌋ ones that slides over the units as t^alpha (DTR, eq. 5)."""
    window = int(round(units * beta, 9))
    task_T = torch.linspace(0, 1, timesteps, dtype=torch.float64)
    start_T = (task_T**alpha * (units - window)).round().long()
    unit_U = torch.arange(units)
    inside = (unit_U >= start_T[:, None]) & (unit_U < start_T[:, None] + window)
    return inside.float()


@lru_cache(maxsize=16)
def channel_mask(config: NetConfig, device: torch.device) -> Tensor:
    """(T, D): which channels each timestep's blocks see."""
    return sliding_window(config.timesteps, config.width, config.mask_alpha, config.mask_beta).to(device)


class ChannelMask(nn.Module):
    """routed = z ∘ mask(t): the block sees the task's channels, the others pass by."""

    def forward(self, z_BLD: Tensor, mask_BD: Tensor) -> Tensor:
        return z_BLD * mask_BD.to(z_BLD.dtype).unsqueeze(1)


class DTR(DiT):
    """A DiT whose every block sees the channels that its timestep's window leaves open."""

    router = staticmethod(lambda config: ChannelMask())

    def routing(self, e_BD: Tensor, t_B: Tensor) -> Sequence[Tensor]:
        mask_TD = channel_mask(self.config, e_BD.device)
        index_B = t_B.round().long().clamp(0, len(mask_TD) - 1)
        return [mask_TD[index_B]] * self.config.depth
