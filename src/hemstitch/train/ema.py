"""The averaged weights that a run samples with, and power-function averages whose length is chosen afterwards.

An average holds what the network's parameters are, shards where they are sharded: each process averages its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import HemstitchError
from .sharding import local

STDS = (0.05, 0.10)  # relative lengths of the two averages that snapshots are made of (Karras et al. 2024, section 3.3)


class Average:
    """average += (1 - decay(step)) (weight - average), in the weights' own precision (float32)."""

    def __init__(self, net: nn.Module, decay: Callable[[int], float]) -> None:
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """After the optimizer's step `step`, the first being 1."""
        ours = [local(w) for w in self.weights.values()]
        theirs = [local(p.detach()) for p in net.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - self.decay(step))


def power_average(net: nn.Module, std: float) -> Average:
    """The power-function average of relative length `std` (Karras et al. 2024, eq. 123 and 127)."""
    gamma = gamma_of(std)
    return Average(net, lambda step: (1 - 1 / step) ** (gamma + 1))


def gamma_of(std: float) -> float:
    """The exponent of the profile t^γ whose standard deviation is `std` of the run: σ² = (γ+1) / ((γ+2)² (γ+3)).

    With x = γ + 2 that is a cubic, x³ + x² - x/σ² + 1/σ² = 0, whose largest root is γ's.
    """
    if not 0 < std < 0.28:
        raise HemstitchError(f"the relative length of an average lies in 0..0.28, not {std}")
    inverse = std**-2
    roots = np.roots([1.0, 1.0, -inverse, inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9)) - 2


def combination(stored: Sequence[tuple[int, float]], step: int, std: float) -> np.ndarray:
    """How to weigh snapshots (step, std) so that their sum is nearest to the average of length `std` at `step`.

    The least squares of profiles over training time (Karras et al. 2024, algorithm 3), in float64.
    """
    times = np.array([s for s, _ in stored], dtype=np.float64)
    gammas = np.array([gamma_of(s) for _, s in stored])
    goal_time, goal_gamma = np.array([float(step)]), np.array([gamma_of(std)])
    products = _inner(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _inner(times[:, None], gammas[:, None], goal_time[None], goal_gamma[None])
    return np.linalg.lstsq(products, wanted, rcond=None)[0][:, 0]


def _inner(a: np.ndarray, p: np.ndarray, b: np.ndarray, q: np.ndarray) -> np.ndarray:
    """∫ of the product of two profiles (p+1) t^p / a^(p+1) on 0..a and (q+1) t^q / b^(q+1) on 0..b."""
    # over t up to the earlier end m: (p+1)(q+1) m^(p+q+1) / ((p+q+1) a^(p+1) b^(q+1)), its powers as ratios of m
    m = np.minimum(a, b)
    return (p + 1) * (q + 1) / (p + q + 1) * (m / a) ** (p + 1) * (m / b) ** (q + 1) / m
