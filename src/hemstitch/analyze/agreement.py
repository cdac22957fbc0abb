"""How alike the members of a stitch are, per sample (T-Stitch, figure 2; PAPERS 2.1).

Shape suffixes: B batch, N samples, K steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOW, HIGH = 0.1, 0.9  # the band over samples


@dataclass(frozen=True)
class Band:
    """Over samples, by step: the mean and the 10 % and 90 % quantiles, (K,) float64 each."""

    mean: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values_KN: Tensor) -> Band:
        values_KN = values_KN.double()
        return cls(values_KN.mean(1), values_KN.quantile(LOW, 1), values_KN.quantile(HIGH, 1))


@dataclass(frozen=True)
class Likeness:
    """Of a member's answers to the reference's, about the same x_t: cosine similarity and relative L2 distance."""

    cosine: Band
    distance: Band


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64 on the host: ⟨a, b⟩ / (‖a‖ ‖b‖) of each row. Two rows of zeros are alike (1); one is not (0)."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    norms = a.norm(dim=1) * b.norm(dim=1)
    inner = (a * b).sum(1)
    alike = (a == b).all(1)
    return torch.where(alike, 1.0, inner / norms.clamp(min=torch.finfo(torch.float64).tiny)).cpu()


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64 on the host: ‖a − b‖ / ‖b‖ of each row; 0 where they are equal, whatever b is."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    gap = (a - b).norm(dim=1)
    return torch.where(gap == 0, 0.0, gap / b.norm(dim=1)).cpu()
