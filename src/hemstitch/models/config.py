"""What defines a diffusion transformer: one frozen dataclass for DiT, DTR and Switch-DiT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import HemstitchError

Family = Literal["dit", "dtr", "switch_dit"]
FAMILIES = ("dit", "dtr", "switch_dit")

# name: width, depth, heads (Peebles & Xie 2023, table 1)
SIZES = {
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1152, 28, 16),
}


@dataclass(frozen=True)
class NetConfig:
    """A diffusion transformer.

    family: "dit", "dtr" (channel masks by timestep) or "switch_dit" (experts routed by timestep).
    input_size, channels: samples are (channels, input_size, input_size). patch: side of a token in pixels.
    width, depth, heads: D, blocks, attention heads. mlp_ratio: hidden width of the MLP over D.
    num_classes: 0 is unconditional. null_label: one more label that means "none" (trained with label dropout).
    learned_variance: 2C output channels instead of C.
    experts, top_k: M and k of Switch-DiT. mask_alpha, mask_beta: the sliding window of DTR; Switch-DiT's prior uses
        mask_alpha, with beta = k / M.
    timesteps: T, for the masks of DTR and the prior of Switch-DiT.
    frequency_shift: 1 where the timestep frequencies are spaced as in diffusers (exponent i / (n - 1)), 0 as in DiT
        (i / n). mlp_norm_eps: epsilon of the norm before the MLP (DiT 1e-6; diffusers' default is 1e-5).
    """

    family: Family = "dit"
    input_size: int = 32
    channels: int = 4
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    num_classes: int = 1000
    null_label: bool = True
    learned_variance: bool = True
    mlp_ratio: float = 4.0
    experts: int = 3
    top_k: int = 2
    mask_alpha: float = 4.0
    mask_beta: float = 0.8
    timesteps: int = 1000
    frequency_shift: int = 0
    mlp_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise HemstitchError(f"family is one of {', '.join(FAMILIES)}, not {self.family!r}")
        for name in ("input_size", "channels", "patch", "width", "depth", "heads", "experts", "timesteps"):
            if getattr(self, name) < 1:
                raise HemstitchError(f"{name} is at least 1, not {getattr(self, name)}")
        if not (self.mlp_ratio > 0 and self.hidden >= 1):
            raise HemstitchError(f"mlp_ratio is above 0, not {self.mlp_ratio}")
        if not (0 < self.mask_beta <= 1 and self.mask_alpha > 0):
            raise HemstitchError(f"mask_beta lies in 0..1, mask_alpha above 0; got {self.mask_beta}, {self.mask_alpha}")
        if self.input_size % self.patch:
            raise HemstitchError(f"patch divides input_size; {self.patch} does not divide {self.input_size}")
        if self.width % self.heads or self.width % 4:
            raise HemstitchError(f"width is a multiple of heads and of 4; {self.width} and {self.heads} are not")
        if not 1 <= self.top_k <= self.experts:
            raise HemstitchError(f"top_k lies in 1..experts; got {self.top_k} of {self.experts}")
        if self.num_classes < 0:
            raise HemstitchError(f"num_classes is 0 (unconditional) or more, not {self.num_classes}")

    @property
    def tokens(self) -> int:
        return (self.input_size // self.patch) ** 2

    @property
    def hidden(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def out_channels(self) -> int:
        return self.channels * (2 if self.learned_variance else 1)

    @property
    def labels(self) -> int:
        """Rows of the label table. An unconditional network has one, the null label, as in the released code."""
        return self.num_classes + 1 if self.null_label or not self.num_classes else self.num_classes


def preset(name: str, **changes: object) -> NetConfig:
    """A published size by name: {dit,dtr,switch_dit}_{s,b,l,xl}{2,4,8}, on 32x32x4 latents and 1000 classes."""
    family, _, tail = name.lower().replace("-", "_").replace("/", "").rpartition("_")
    size, patch = tail[:-1], tail[-1:]
    if family not in FAMILIES or size not in SIZES or patch not in ("2", "4", "8"):
        raise HemstitchError(f"no network is called {name!r}: names are FAMILY_SIZE, dit_s2 to switch_dit_xl8")
    width, depth, heads = SIZES[size]
    base = NetConfig(family=family, patch=int(patch), width=width, depth=depth, heads=heads)  # type: ignore[arg-type]
    return replace(base, **changes)  # type: ignore[arg-type]
