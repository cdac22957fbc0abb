"""Bicubic resizing, bit for bit as pillow did it to 8-bit pictures, for a whole batch on any device.

Papers that report FD-DINOv2 and CMMD resized with pillow, whose filter is antialiased and whose result is rounded
after each of two passes. Features see the difference, so it is kept. Columns always go first, as up to pillow 12;
pillow 13 begins with the rows of pictures whose height shrinks by far more than their width, so its results differ by
a few levels there. Those of squares do not.

Shape suffixes: B batch, C channels, H height, W width, O places out, I places in.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from ...errors import HemstitchError

_ONE = 2.0**22  # pillow's filters are whole multiples of 1 / 2^22
_A = -0.5  # of Keys' cubic convolution (1981), equation 4
_REACH = 2.0


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Pictures uint8 (B, C, H, W) to uint8 (B, C, height, width): columns first, then rows, rounded after each."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise HemstitchError(f"pictures are uint8 (B, C, H, W), not {images.dtype} {tuple(images.shape)}")
    exact = images.device if images.device.type != "mps" else torch.device("cpu")  # where there are 64-bit floats
    values = images.to(exact)
    if values.shape[3] != width:
        values = _rounded(values.double() @ _filters(values.shape[3], width).to(exact).T)
    if values.shape[2] != height:
        values = _rounded(_filters(values.shape[2], height).to(exact) @ values.double())
    return values.to(images.device)


def middle_square(images: Tensor) -> Tensor:
    """The middle square (B, C, S, S) of pictures (B, C, H, W)."""
    H, W = images.shape[-2:]
    S = min(H, W)
    top, left = (H - S) // 2, (W - S) // 2
    return images[..., top : top + S, left : left + S]


def _rounded(sums: Tensor) -> Tensor:
    """Sums of 8-bit values times whole filters, which 64-bit floats hold exactly, back to 8 bits."""
    return sums.add_(_ONE / 2).div_(_ONE).floor_().clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=16)
def _filters(source: int, target: int) -> Tensor:
    """(O, I) float64, whole numbers: what each place in adds to each place out. A shrinking filter is as much wider."""
    scale = source / target
    stretch = max(scale, 1.0)
    matrix_OI = np.zeros((target, source))
    for place in range(target):
        centre = (place + 0.5) * scale
        first = max(0, int(centre - _REACH * stretch + 0.5))
        last = min(source, int(centre + _REACH * stretch + 0.5))
        weights = np.array([_cubic((i - centre + 0.5) / stretch) for i in range(first, last)])
        weights = weights / math.fsum(weights) * _ONE
        matrix_OI[place, first:last] = np.trunc(weights + np.copysign(0.5, weights))
    return torch.from_numpy(matrix_OI)


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1
    if x < 2:
        return (((x - 5) * x + 8) * x - 4) * _A
    return 0.0
