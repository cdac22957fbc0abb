"""The diffusion transformer (Peebles & Xie 2023), with a place before each block where a router may mask its input.

DiT, DTR and Switch-DiT are this one network with different routers:

    routed = router(z, routing(t));  z = block(routed, c) + (z - routed)

Shape suffixes: B batch, C channels, S size, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import HemstitchError
from . import layers
from .config import NetConfig


class DiT(nn.Module):
    """x: (B, C, S, S), t: (B,) times, y: (B,) labels or None -> (B, C or 2C, S, S).

    A `t` whose rows are one expanded value (stride 0) is embedded once, and whatever hangs on it is computed once.
    """

    # What a family puts before each block, made from the network's configuration.
    router: Callable[[NetConfig], nn.Module] = staticmethod(lambda config: Straight())

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.x_embedder = layers.PatchEmbed(config.channels, config.patch, D)
        self.t_embedder = layers.TimestepEmbedder(D, config.frequency_shift)
        self.y_embedder = layers.LabelEmbedder(config.labels, D)
        self.pos_embed = nn.Parameter(
            layers.sincos_positions(D, config.input_size // config.patch)[None], requires_grad=False
        )
        self.blocks = nn.ModuleList(
            layers.Block(D, config.heads, config.hidden, config.mlp_norm_eps) for _ in range(config.depth)
        )
        self.final_layer = layers.FinalLayer(D, config.patch**2 * config.out_channels)
        self.routers = nn.ModuleList(self.router(config) for _ in range(config.depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as in PAPERS 1.1: a network whose every block is the identity and whose output is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # in place: the flat view shares the memory
                nn.init.zeros_(cast(Tensor, module.bias))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
        zeroed = [cast(layers.Block, b).adaLN_modulation[1] for b in self.blocks]
        for layer in (*zeroed, self.final_layer.adaLN_modulation[1], self.final_layer.linear):
            nn.init.zeros_(cast(nn.Linear, layer).weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        config = self.config
        if y is None:
            if config.num_classes:
                raise HemstitchError(f"this network has {config.num_classes} classes: pass labels y, (B,)")
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
        once = t[:1] if t.stride(0) == 0 else t  # one row when the batch shares its time
        with torch.autocast(x.device.type, enabled=False):  # what routes and modulates is as exact as the weights are
            e_t = self.t_embedder(once)
        c = e_t + self.y_embedder(y)
        z = self.x_embedder(x.to(self.pos_embed.dtype)) + self.pos_embed
        for block, router, of_block in zip(self.blocks, self.routers, self.routing(e_t, once), strict=True):
            routed = router(z, of_block)
            z = block(routed, c) if routed is z else block(routed, c, z)
        return layers.unpatchify(self.final_layer(z, c), config.patch, config.out_channels)

    def routing(self, e_BD: Tensor, t_B: Tensor) -> Sequence[Any]:
        """What the router of each block is told, from the time embedding and the time, of B rows or of one for all."""
        return [None] * self.config.depth


class Straight(nn.Module):
    """DiT's router: none."""

    def forward(self, z_BLD: Tensor, routing: None) -> Tensor:
        return z_BLD
