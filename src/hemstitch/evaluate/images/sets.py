"""A data set of `hemstitch.data` as pictures to evaluate.

Shape suffixes: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from ...autoencoder import IDENTITY
from ...data import Dataset, Latents, open_dataset
from ...data.dataset import restored
from ...data.decoded import Decoded, some
from ...errors import HemstitchError
from ..pictures import to_uint8
from .base import Images, check_common


@final
class DatasetImages(Images):
    """The images of a data set, in its order and with its labels, as uint8.

    size: the side that files of any size are cropped and resized to, as ADM's reference batches are (the shorter side
    halved by averaging while it is at least twice as long, then bicubic, then the middle square); 0 where the data has
    a size of its own. Where training lets another image stand in for a broken one, this is an error. Latents are
    refused, but for a cache of pixels.
    """

    def __init__(self, kind: str, path: str = "", size: int = 0, grey: bool = False) -> None:
        self.name = f"{kind}:{path}" if path else kind
        self._data: Dataset = open_dataset(kind, path, size)
        if isinstance(self._data, Latents) and self._data.encoding.autoencoder_fingerprint != IDENTITY:
            raise HemstitchError(
                f"{self.name} holds latents of {self._data.autoencoder}, not pictures: give the pictures that were "
                "encoded, as folder:PATH"
            )
        if self._data.channels not in (1, 3):
            raise HemstitchError(f"{self.name} has {self._data.channels} channels: pictures have 1 or 3")
        self.size = (self._data.size, self._data.size)
        self.grey = self._data.channels == 1
        names = self._data.classes
        self.labels = self._data.labels if names else None
        self.classes = () if names == tuple(map(str, range(len(names)))) else names
        self._check_sound()
        check_common(self, size, grey)

    def __len__(self) -> int:
        return len(self._data)

    def _rows(self, batch: int, start: int) -> Iterator[Tensor]:
        for first in range(start, len(self), batch):
            x0 = self._data.images(torch.arange(first, min(first + batch, len(self))))
            self._check_sound()
            yield to_uint8(restored(x0, self._data.mean, self._data.std))

    def _check_sound(self) -> None:
        """HemstitchError if the data set leaves images out, or has others stand in for them."""
        broken = [str(file) for name in ("broken", "damaged") for file in getattr(self._data, name, ())]
        lost = self._data.lost if isinstance(self._data, Decoded) else 0
        if broken or lost:
            named = some(broken) or f"about {lost} of its images are lost"
            raise HemstitchError(
                f"{self.name} is damaged: {named}; replace what is broken or take it away, for a measure of the rest "
                "alone would be of other data"
            )
