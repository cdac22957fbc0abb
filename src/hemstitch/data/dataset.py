"""What training and evaluation ask of a data set.

Shape suffixes: B batch, C channels, S size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ..denoiser import Spec


class Dataset(ABC):
    """Images (or latents) with labels, by index, normalised.

    name: of the data, also the name of the space that networks trained on it denoise in. classes: their names; empty
    for unlabelled data. labels: (N,) int64, zeros where there are no classes. channels, size: images are
    (channels, size, size). flippable: whether a mirrored image is still one of its class.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    channels: int
    size: int
    flippable: bool = True
    # Per channel, what samples were normalised by: sample = (original - mean) / std. Empty where they were not.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def images(self, index_B: Tensor) -> Tensor:
        """(B, C, S, S) float32 in -1..1 at the given indices. The same index gives the same image, always."""

    def mirrored(self, index_B: Tensor, flip_B: Tensor) -> Tensor:
        """`images`, the rows where `flip_B` (B,) bool is true mirrored left to right."""
        x0 = self.images(index_B)
        return torch.where(flip_B.reshape(-1, 1, 1, 1), x0.flip(-1), x0)

    def spec(self, null_label: bool) -> Spec:
        """What a network trained on this data denoises."""
        classes = len(self.classes)
        return Spec(self.channels, self.size, classes, null_label and classes > 0, self.name)


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """(size,) the order of one epoch, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)


def batches(size: int, batch: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless (batch,) index batches from step `start` on; epochs follow each other without dropping a sample.

    Position is a number (step · batch), not the state of an iterator: a run resumes anywhere.
    """
    position = start * batch
    epoch, order = -1, torch.empty(0, dtype=torch.int64)
    while True:
        parts: list[Tensor] = []
        missing = batch
        while missing:
            if position // size != epoch:
                epoch = position // size
                order = epoch_order(size, seed, epoch)
            offset = position % size
            part = order[offset : offset + missing]
            parts.append(part)
            position += len(part)
            missing -= len(part)
        yield torch.cat(parts)
