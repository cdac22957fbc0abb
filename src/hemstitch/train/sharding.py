"""Tensors that are whole or sharded over processes, handled alike."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process: a collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every process, sharded if `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return cast(Tensor, distribute_tensor(tensor, like.device_mesh, like.placements))
