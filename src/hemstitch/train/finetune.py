"""Where training begins: freshly drawn weights, or those of another network as far as they go."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..denoiser import NetDenoiser
from ..errors import HemstitchError
from ..models import DiT
from ..process import Process
from ..weights.native import Samples

# What may differ between the network that is loaded and the one that is trained.
FREE = ("num_classes", "null_label", "input_size", "timesteps", "mask_alpha", "mask_beta", "experts", "top_k", "family")


def begin_from(
    net: DiT, source: NetDenoiser, process: Process | None = None, samples: Samples | None = None
) -> list[str]:
    """Copy another network's weights into a freshly drawn one. Returns what is not copied, a note each.

    A dense DiT becomes a Switch-DiT by *upcycling*: its experts are zero, so the first output is the DiT's own. A
    changed number of classes keeps the null label and draws the table's other rows anew; a changed size recomputes the
    positions. Any other difference is refused, with its name; so are weights trained under another noise process or on
    another space than `process` and `samples`, where both are known.
    """
    if not isinstance(source.net, DiT):
        raise HemstitchError(f"training begins from hemstitch's networks, not from {type(source.net).__name__}")
    ours, theirs = net.config, source.net.config
    if process is not None and process != source.process:
        raise HemstitchError(
            f"these weights were trained under {source.process}, and the recipe has {process}: set its process.* so"
        )
    spec = source.spec
    if samples is not None and spec.space and samples.space and spec.space != samples.space:
        raise HemstitchError(
            f"these weights denoise the space {spec.space!r} and the data are of {samples.space!r}: encode the data as "
            "theirs were, or save the weights without a space if you mean it"
        )
    free = list(FREE)
    if ours.family == theirs.family == "switch_dit":
        free.remove("experts")
    differing = {k: v for k, v in asdict(ours).items() if k not in free and v != asdict(theirs)[k]}
    if differing:
        said = ", ".join(f"{k} {asdict(theirs)[k]} there and {v} here" for k, v in differing.items())
        raise HemstitchError(f"these weights are of another network: {said}; change the recipe's net to fit")
    if ours.family != theirs.family and (theirs.family, ours.family) != ("dit", "switch_dit"):
        raise HemstitchError(f"a {theirs.family} does not become a {ours.family}; a dit may become a switch_dit")
    state, notes = dict(source.net.state_dict()), []
    if ours.family != theirs.family:
        notes.append(f"upcycled: {ours.depth} × {ours.experts} experts are zero and their gates new")
    if ours.input_size != theirs.input_size:
        del state["pos_embed"]
        notes.append(f"positions recomputed for {ours.input_size} from {theirs.input_size}")
    table = "y_embedder.embedding_table.weight"
    if (ours.num_classes, ours.null_label) != (theirs.num_classes, theirs.null_label):
        state[table] = _labels(net.state_dict()[table], state[table], ours, theirs)
        notes.append(f"labels that differ are drawn anew: {ours.num_classes} classes here, {theirs.num_classes} there")
    missing, unexpected = net.load_state_dict(state, strict=False)
    if unexpected:
        raise HemstitchError(f"these weights hold what the network has no place for: {', '.join(unexpected)}")
    left = [k for k in missing if not k.startswith("routers.") and k != "pos_embed"]
    if left:
        raise HemstitchError(f"these weights lack {', '.join(left)}")
    return notes


@torch.no_grad()
def _labels(fresh: Tensor, stored: Tensor, ours: Any, theirs: Any) -> Tensor:
    """The new label table. The last row of either is its null label, where it has one."""
    table = fresh.clone()
    if ours.num_classes == theirs.num_classes:
        table[: ours.num_classes] = stored[: ours.num_classes]
    has_null = [c.null_label or not c.num_classes for c in (ours, theirs)]
    if all(has_null):
        table[-1] = stored[-1]
    return table
