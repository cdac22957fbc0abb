"""Pictures that are in memory already.

Shape suffixes: B batch, N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from ...errors import HemstitchError
from .base import Images, check_common


@final
class TensorImages(Images):
    """A tensor of pictures, which is not copied: leave it as it is while it is in use.

    images: uint8 (N, 3, H, W), or grey (N, 1, H, W) with `grey`, on any device. labels: integers (N,) from 0, or None.
    name: for people. grey: whether greyscale pictures will do, whose channel is then repeated. Raises HemstitchError
    for anything else: floats are first to become uint8, by `hemstitch.evaluate.pictures.to_uint8` where they are in
    -1..1.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, name: str = "tensor", grey: bool = False) -> None:
        _check(images, name)
        self._images = images.detach()
        self.name = name
        self.size = (images.shape[2], images.shape[3])
        self.grey = images.shape[1] == 1
        check_common(self, 0, grey)
        self.labels = None if labels is None else _labels(labels, len(images), name)

    def __len__(self) -> int:
        return len(self._images)

    def _rows(self, batch: int, start: int) -> Iterator[Tensor]:
        for first in range(start, len(self), batch):
            yield self._images[first : first + batch].to("cpu", copy=True)  # whoever reads it may write on it


def _check(images: Tensor, name: str) -> None:
    """HemstitchError unless these are pictures uint8 (N, 3 or 1, H, W)."""
    expected = f"{name} is to be a tensor of pictures, uint8 (N, 3, H, W) or (N, 1, H, W)"
    if not isinstance(images, Tensor):
        raise HemstitchError(
            f"{expected}, not {type(images).__name__}: of an array (N, H, W, C) torch.from_numpy(images).permute(0, 3, "
            "1, 2) is one"
        )
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        kind = str(images.dtype).removeprefix("torch.")
        raise HemstitchError(f"{expected}, not {kind} {shape}: {_to_uint8(images)}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in shape[2:]:
        last = images.ndim == 4 and images.shape[3] in (1, 3)
        turn = "images.permute(0, 3, 1, 2) puts channels first" if last else "reshape it"
        raise HemstitchError(f"{expected}, not of shape {shape}: {turn}")


def _to_uint8(images: Tensor) -> str:
    if images.is_floating_point():
        return (
            "from -1..1 evaluate.pictures.to_uint8(images) makes such, from 0..1 "
            "images.mul(255).round().clamp(0, 255).to(torch.uint8)"
        )
    return "if the values are in 0..255, give images.to(torch.uint8)"


def _labels(labels: Tensor, count: int, name: str) -> Tensor:
    """Labels as (N,) int64 on the CPU. HemstitchError unless they are N whole numbers from 0."""
    expected = f"the labels of {name} are to be a tensor of {count} whole numbers, ({count},)"
    if not isinstance(labels, Tensor):
        raise HemstitchError(f"{expected}, not {type(labels).__name__}: torch.tensor(labels) is one")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise HemstitchError(f"{expected}, not {str(labels.dtype).removeprefix('torch.')}: give labels.long()")
    if labels.shape != (count,):
        raise HemstitchError(f"{expected}, not of shape {tuple(labels.shape)}: give one for each picture")
    if int(labels.min()) < 0:
        raise HemstitchError(f"the labels of {name} go down to {int(labels.min())}: classes are numbered from 0")
    return labels.detach().to("cpu", torch.int64)
