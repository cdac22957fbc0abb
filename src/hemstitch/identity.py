"""What tells one network from another: a hash of everything that decides its output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser, Guided, NetDenoiser
from .errors import HemstitchError
from .stitch.adaptive import AdaptivePlan
from .stitch.stitched import Stitched


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """The first 12 hex digits of the sha256 over names, shapes and bytes. Counts of batch norm's batches don't count.

    Those counts change nothing in eval mode, and some files of the same weights leave them out.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not name.endswith("num_batches_tracked"):
            value = weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def identity(model: Denoiser) -> str:
    """A line that is equal for two denoisers only if they give equal predictions: its members, weights and plan.

    Raises HemstitchError for a denoiser of another kind, unless it has an `identity` of its own, a text.
    """
    own = getattr(model, "identity", None)
    if isinstance(own, str):
        return own
    if isinstance(model, Guided):
        raise HemstitchError("give the model itself, and guidance beside it")
    if isinstance(model, Stitched):
        members = " ".join(f"{name}={identity(member)}" for name, member in model.members.items())
        plan = model.plan
        told = plan.to_json() if isinstance(plan, AdaptivePlan) else json.dumps(plan.assignment)
        return f"{members} plan={_short(told)}"
    if isinstance(model, NetDenoiser):
        config = getattr(model.net, "config", None)
        told = json.dumps(asdict(config)) if is_dataclass(config) and not isinstance(config, type) else str(model.net)
        return _short(
            told,
            repr(model.process),
            repr(model.spec),
            str(sorted({str(p.dtype) for p in model.net.parameters()})),
            weights_hash(model.net.state_dict()),
        )
    raise HemstitchError(f"{type(model).__name__} has no `identity`, a text that tells it from others: give it one")


def _short(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
