"""Which experts of a Switch-DiT run at which timestep.

Shape suffixes: T train timesteps, N blocks, M experts.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor

from ..errors import MissingExtraError
from ..models import SwitchDiT


@torch.no_grad()
def expert_map(net: SwitchDiT) -> Tensor:
    """(T, N, M) gate probabilities of every expert, before the top-k, on the host."""
    times = torch.arange(net.config.timesteps, device=next(net.parameters()).device)
    return net.gate_probabilities(times).cpu()


def expert_map_png(map_TNM: Tensor, title: str) -> bytes:
    """Timesteps from left (clean) to right (noise), one row per expert, blocks apart; dark is probable."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    _, N, M = map_TNM.shape
    figure = Figure(figsize=(7, max(2.2, 0.14 * N * M + 1.2)), dpi=120, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(
        map_TNM.flatten(1).T.numpy(), aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest"
    )
    for block in range(1, N):
        axes.axhline(block * M - 0.5, color="#c44", linewidth=0.8)
    every = max(1, -(-N // 14))
    axes.set_yticks([block * M + (M - 1) / 2 for block in range(0, N, every)], [str(b) for b in range(0, N, every)])
    axes.set_xlabel("timestep (0 is clean)")
    axes.set_ylabel(f"block, its {M} experts")
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(picture, ax=axes, label="probability")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
