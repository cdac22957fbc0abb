"""The parts of a diffusion transformer (Peebles & Xie 2023). Parameter names are those of the released checkpoints.

Shape suffixes: B batch, C channels, L tokens, D width, H heads.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_TOKENS = 256  # up to which attention in bfloat16 on a CPU is by plain products


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    return torch.addcmul(x_BLD + shift_BD.unsqueeze(1), x_BLD, scale_BD.unsqueeze(1))


class PatchEmbed(nn.Module):
    """(B, C, S, S) to (B, L, D): a convolution whose stride is its kernel, run as the matrix product it is."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)
        self.patch = patch

    def forward(self, x_BCSS: Tensor) -> Tensor:
        B, C, S, _ = x_BCSS.shape
        p = self.patch
        patches = x_BCSS.reshape(B, C, S // p, p, S // p, p).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(B, (S // p) ** 2, C * p * p), self.proj.weight.flatten(1), self.proj.bias)


def unpatchify(x_BLP: Tensor, patch: int, channels: int) -> Tensor:
    """(B, L, patch·patch·C) to (B, C, S, S); within a token the channel varies fastest."""
    B, L, _ = x_BLP.shape
    side = math.isqrt(L)
    x = x_BLP.reshape(B, side, side, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(B, channels, side * patch, side * patch)


def sincos_positions(width: int, side: int) -> Tensor:
    """(side², D) fixed positions: half the channels encode the column, half the row, sines then cosines each."""
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], 1)
    columns = line[None].expand(side, side, -1)
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], -1).reshape(side * side, width).float()


class TimestepEmbedder(nn.Module):
    """Times (B,) to (B, D): 256 sinusoids, cosines first, then a two-layer MLP."""

    def __init__(self, width: int, frequency_shift: int, sinusoids: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies = sinusoids // 2
        self.frequency_shift = frequency_shift

    def forward(self, t_B: Tensor) -> Tensor:
        # Float32 whatever the weights are: half precision would move the late timesteps' angles by radians.
        exponent = torch.arange(self.frequencies, dtype=torch.float32, device=t_B.device) / (
            self.frequencies - self.frequency_shift
        )
        angle = t_B[:, None].float() * torch.exp(-math.log(10000.0) * exponent)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], 1).to(cast(nn.Linear, self.mlp[0]).weight.dtype))


class LabelEmbedder(nn.Module):
    """Labels (B,) to (B, D)."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(labels, width)

    def forward(self, y_B: Tensor) -> Tensor:
        return self.embedding_table(y_B)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(x_BLD).reshape(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(B, L, D))


def attend(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v, for H heads of K channels.

    In bfloat16 on a CPU by its products: there, among few tokens, the fused kernel's gradient is what takes the time.
    """
    L, K = q_BHLK.shape[2:]
    if q_BHLK.device.type == "cpu" and q_BHLK.dtype is torch.bfloat16 and L <= FEW_TOKENS:
        return torch.softmax((q_BHLK * K**-0.5) @ k_BHLK.transpose(2, 3), 3).to(v_BHLK.dtype) @ v_BHLK
    return F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BLD), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each normalised, modulated and gated by the conditioning (adaLN-zero).

    Where a router let the block see x in place of z, what it held back is added to the output: block(x) + (z - x).
    """

    def __init__(self, width: int, heads: int, hidden: int, mlp_norm_eps: float) -> None:
        super().__init__()
        self.width = width
        self.mlp_norm_eps = mlp_norm_eps
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_BLD: Tensor, c_BD: Tensor, z_BLD: Tensor | None = None) -> Tensor:
        held = None if z_BLD is None else z_BLD - x_BLD
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD).chunk(6, 1)
        normed = F.layer_norm(x_BLD, (self.width,), eps=1e-6)
        x_BLD = torch.addcmul(x_BLD, gate1.unsqueeze(1), self.attn(modulate(normed, shift1, scale1)))
        normed = F.layer_norm(x_BLD, (self.width,), eps=self.mlp_norm_eps)
        x_BLD = torch.addcmul(x_BLD, gate2.unsqueeze(1), self.mlp(modulate(normed, shift2, scale2)))
        return x_BLD if held is None else x_BLD + held


class FinalLayer(nn.Module):
    """(B, L, D) to (B, L, outputs)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BLD: Tensor, c_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c_BD).chunk(2, 1)
        return self.linear(modulate(F.layer_norm(x_BLD, (self.width,), eps=1e-6), shift, scale))
