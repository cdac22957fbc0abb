"""Radial frequency content of images.

Of each channel the discrete Fourier transform is taken as it stands, without a window: at the sizes of latents a window
would blur neighbouring rings into each other, at the price that an image whose opposite edges differ has some power
along the axes of the spectrum that is not in it. A coefficient's power is |F|² / (H·W), so that

- unit white noise has power 1 at every frequency;
- Σ over rings of (coefficients × mean power) is the image's sum of squares per channel (Parseval).

Ring r holds the coefficients whose distance from frequency 0 rounds to r cycles per image; ring 0 is the mean
brightness (DC) alone, ring H/2 the highest frequency along an axis (Nyquist), the rings above it are the corners.

Shape suffixes: B batch, C channels, H height, W width, R rings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BANDS = ("low", "middle", "high")


@dataclass(frozen=True)
class Spectra:
    """Power by ring, the mean over samples and channels, float64 on the host.

    x: (K+1, R) of x_t before every step, and of the finished image last. x0: (K, R) of the image as foreseen there.
    gap: (K, R) of what it still lacks, the finished image less the foreseen one. size: side of the images.
    """

    x: Tensor
    x0: Tensor
    gap: Tensor
    size: int

    @property
    def power(self) -> dict[str, Tensor]:
        """(K,) by band: power of the foreseen image over that of the finished one, whatever is in its place or not.

        Where an eps network is asked at very low alpha its error, divided by alpha, takes this far above 1.
        """
        return self._shares(self.x0)

    @property
    def unsettled(self) -> dict[str, Tensor]:
        """(K,) by band: power of what the foreseen image still lacks over that of the finished one; 0 is settled."""
        return self._shares(self.gap)

    def _shares(self, of_KR: Tensor) -> dict[str, Tensor]:
        count_R = ring_counts(self.size)
        return {
            name: (of_KR * count_R)[:, members].sum(1) / (self.x[-1] * count_R)[members].sum()
            for name, members in bands(self.size).items()
        }


@lru_cache(maxsize=8)
def rings(size: int) -> Tensor:
    """(size, size) int64, the ring of each coefficient of a transform of that side."""
    f = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    return torch.hypot(f[:, None], f[None]).round().long()


def ring_counts(size: int) -> Tensor:
    """(R,) float64, the coefficients of each ring; they add up to size²."""
    return torch.bincount(rings(size).flatten()).double()


def bands(size: int) -> dict[str, list[int]]:
    """The rings of images of that side, by thirds of the band from 0 to Nyquist. DC is in none.

    The corners are in the high third. The smallest images (sides below 6) have no ring in the low one: it is left out.
    """
    nyquist = size // 2
    found: dict[str, list[int]] = {name: [] for name in BANDS}
    for ring in range(1, len(ring_counts(size))):
        found[BANDS[0 if 3 * ring <= nyquist else 1 if 3 * ring <= 2 * nyquist else 2]].append(ring)
    return {name: members for name, members in found.items() if members}


def radial_power(x_BCHW: Tensor) -> Tensor:
    """(B, R) float64 on the host: the mean power of each ring, over channels, of square images."""
    power_BHW = torch.fft.fft2(x_BCHW.double(), norm="ortho").abs().square().mean(1)
    ring = rings(x_BCHW.shape[-1]).flatten().to(power_BHW.device)
    count_R = ring_counts(x_BCHW.shape[-1]).to(power_BHW.device)
    total_BR = power_BHW.new_zeros(len(power_BHW), len(count_R)).index_add_(1, ring, power_BHW.flatten(1))
    return (total_BR / count_R).cpu()
