"""Counter-based random numbers: every draw is a function of (seed, index, stream), never of what was drawn before.

Philox-4x32-10 (Salmon et al., SC 2011) on int64 tensors, on any device, a whole batch at once. The key is the seed,
the counter is (block, stream, index): row i of a batch gets the same numbers whatever the batch, the rank or the
history. Integers agree bitwise between devices; normals up to the rounding of log and cos.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import HemstitchError

Seed = int | tuple[int, int]

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# Streams 0..2**20-1 are sampling steps (0 draws x_T, i+1 the noise of step i); training draws from above.
TRAIN_NOISE, TRAIN_TIME, TRAIN_DROP, TRAIN_FLIP = (2**20 + i for i in range(4))


def keys(seeds: Sequence[Seed] | Tensor) -> Tensor:
    """(B, 2) int64 of (seed, index), on the host. A plain integer seed is index 0 of itself."""
    if isinstance(seeds, Tensor):
        if seeds.ndim != 2 or seeds.shape[1] != 2:
            raise HemstitchError(f"a tensor of seeds is (B, 2): seed and index; got {tuple(seeds.shape)}")
        pairs = [(int(seed), int(index)) for seed, index in seeds.tolist()]
    else:
        pairs = [
            (operator.index(s[0]), operator.index(s[1])) if isinstance(s, tuple) else (operator.index(s), 0)
            for s in seeds
        ]
    for seed, index in pairs:
        if not (0 <= seed < 2**63 and 0 <= index < 2**63):
            raise HemstitchError(f"seeds and indices lie in 0..2**63-1; got ({seed}, {index})")
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words per counter (int64 tensors holding 0..2³²-1, broadcast together)."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(key_B2: Tensor, stream_B: Tensor, blocks: int, device: torch.device) -> tuple[Tensor, ...]:
    packed = torch.stack(
        [
            key_B2[:, 0] & _MASK,
            key_B2[:, 0] >> 32,
            key_B2[:, 1] & _MASK,
            key_B2[:, 1] >> 32,
            stream_B.expand(len(key_B2)),
        ]
    ).to(device, non_blocking=True)
    seed_low, seed_high, index_low, index_high, stream = packed.unsqueeze(-1).unbind(0)
    block = torch.arange(blocks, device=device).unsqueeze(0)
    return philox((seed_low, seed_high), (block, stream, index_low, index_high))


def normal(
    key_B2: Tensor,
    stream: int | Tensor,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(B, *shape) standard normals: row i depends on key_B2[i], its stream and its position only (Box-Muller)."""
    size = math.prod(shape)
    stream_B = torch.as_tensor(stream, dtype=torch.int64)
    words = _words(key_B2, stream_B, -(-size // 4), torch.device(device))
    u0, u1, u2, u3 = (w.float() for w in words)
    pairs = []
    for radius, angle in ((u0, u1), (u2, u3)):
        r = torch.sqrt(-2 * torch.log((radius + 0.5) * 2**-32))
        theta = angle * (2 * math.pi * 2**-32)
        pairs += [r * torch.cos(theta), r * torch.sin(theta)]
    flat = torch.stack(pairs, -1).reshape(len(key_B2), -1)[:, :size]
    return flat.reshape(len(key_B2), *shape).to(dtype)


def integers(key_B2: Tensor, stream: int, high: int, device: torch.device | str = "cpu") -> Tensor:
    """(B,) int64 uniform on 0..high-1 (high up to 2³¹), exact on every device."""
    word = _words(key_B2, torch.as_tensor(stream), 1, torch.device(device))[0]
    return (word[:, 0] * high) >> 32


def uniform(key_B2: Tensor, stream: int, device: torch.device | str = "cpu") -> Tensor:
    """(B,) float64 uniform on [0, 1), exact on every device."""
    return _words(key_B2, torch.as_tensor(stream), 1, torch.device(device))[0][:, 0].double() * 2**-32
