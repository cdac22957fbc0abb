"""The averaged weights that a run samples with."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


class Ema(Generic[N]):
    """An exponential moving average of a network's weights, in float32: average += (1 - decay) (weight - average)."""

    def __init__(self, net: N, decay: float) -> None:
        self.net: N = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: N) -> None:
        torch._foreach_lerp_(list(self.net.parameters()), [p.detach() for p in net.parameters()], 1 - self.decay)
