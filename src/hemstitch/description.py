"""Parameters and multiply-adds of a network, counted from its configuration.

Multiply-adds ("MACs") are those of one forward pass of one sample: every matrix product, and one per element that is
normalised or masked. Under this count DiT matches the figures that Peebles & Xie (2023, table 4) publish.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .denoiser import Denoiser, NetDenoiser
from .errors import HemstitchError
from .models import DiT, NetConfig, preset
from .stitch.stitched import Stitched


@dataclass(frozen=True)
class Description:
    """What a network costs.

    parameters: all of them (the fixed position table is not one). active_parameters: without the experts that a
    timestep leaves out. macs: multiply-adds of one forward of one sample as hemstitch computes it (Switch-DiT's k
    experts merged into one affine map first). macs_unmerged: with each of the k experts applied on its own, as in the
    released Switch-DiT; the same as macs for other networks.
    """

    name: str
    parameters: int
    active_parameters: int
    macs: int
    macs_unmerged: int

    def __str__(self) -> str:
        active = "" if self.active_parameters == self.parameters else f" ({_short(self.active_parameters)} active)"
        return f"{self.name}: {_short(self.parameters)} parameters{active}, {_short(self.macs)} multiply-adds"


def describe(model: Denoiser | nn.Module | NetConfig | str) -> Description:
    """Count a model: a loaded denoiser, a network, a configuration or a preset name such as "switch_dit_xl2".

    A stitch has a description per member: describe those.
    """
    if isinstance(model, str):
        return _count(preset(model), model)
    if isinstance(model, NetConfig):
        return _count(model, model.family)
    if isinstance(model, Stitched):
        raise HemstitchError(f"a stitch is several networks: describe its members ({', '.join(model.members)})")
    net = model.net if isinstance(model, NetDenoiser) else model
    if not isinstance(net, DiT):
        raise HemstitchError(f"hemstitch counts its own networks; {type(net).__name__} is not one")
    config = net.config
    return _count(config, f"{config.family}, width {config.width}, {config.depth} blocks")


def _short(count: int) -> str:
    """Three digits and a unit: 1,234,567 is 1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _count(config: NetConfig, name: str) -> Description:
    D, N, L = config.width, config.depth, config.tokens
    patch_in = config.channels * config.patch**2
    patch_out = config.out_channels * config.patch**2

    def linear(i: int, o: int) -> int:
        return i * o + o

    block = linear(D, 3 * D) + linear(D, D) + linear(D, config.hidden) + linear(config.hidden, D) + linear(D, 6 * D)
    dense = (
        linear(patch_in, D)
        + linear(256, D)
        + linear(D, D)
        + config.labels * D
        + N * block
        + linear(D, 2 * D)
        + linear(D, patch_out)
    )
    attention = 4 * L * D * D + 2 * L * L * D
    mlp = 2 * L * D * config.hidden
    per_block = attention + mlp + 6 * D * D + 2 * L * D  # two norms
    macs = L * patch_in * D + 256 * D + D * D + N * per_block + L * D + 2 * D * D + L * D * patch_out
    if config.family == "dit":
        return Description(name, dense, dense, macs, macs)
    if config.family == "dtr":
        macs += N * 3 * L * D  # x∘m, x∘(1-m), and their sum
        return Description(name, dense, dense, macs, macs)
    M, k = config.experts, config.top_k
    gate, expert = linear(D, M), linear(D, D)
    masking = N * 3 * L * D
    merged = macs + masking + N * (D * M + M * (D * D + D) + L * D * D)
    unmerged = macs + masking + N * (D * M + k * L * D * D)
    return Description(name, dense + N * (gate + M * expert), dense + N * (gate + k * expert), merged, unmerged)


def parameters_of(net: nn.Module) -> int:
    """The trainable parameters of a module, counted tensor by tensor."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
