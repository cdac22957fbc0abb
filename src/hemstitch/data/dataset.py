"""What training and evaluation ask of a data set.

Shape suffixes: B batch, C channels, S size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

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
        return Spec(self.channels, self.size, classes, null_label and classes > 0, self.name, self.mean, self.std)


def restored(samples: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Samples (B, C, S, S) with their normalisation undone; as they are where there was none."""
    if not mean:
        return samples
    scale, shift = (samples.new_tensor(v).reshape(-1, 1, 1) for v in (std, mean))
    return samples * scale + shift


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """(size,) the order of one epoch, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)


def batch_at(size: int, batch: int, seed: int, step: int) -> Tensor:
    """(batch,) the indices of a step's batch. Epochs follow each other without dropping a sample.

    Position is a number (step · batch), not the state of an iterator: a run resumes anywhere.
    """
    position = step * batch
    parts: list[Tensor] = []
    while position < (step + 1) * batch:
        epoch, offset = divmod(position, size)
        part = epoch_order(size, seed, epoch)[offset : offset + (step + 1) * batch - position]
        parts.append(part)
        position += len(part)
    return torch.cat(parts)
