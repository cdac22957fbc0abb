"""scikit-learn's handwritten digits: 1,797 grey images of 8x8, bundled with the library. The embedded default."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import MissingExtraError
from .dataset import Dataset

Split = Literal["train", "test", "all"]


class Digits(Dataset):
    """Images (1, 8, 8) in -1..1, ten classes. Every fifth image of a fixed shuffle is for testing.

    split: "train" (1,437 images), "test" (360) or "all".
    """

    name = "digits"
    classes = tuple("0123456789")
    channels = 1
    size = 8
    flippable = False

    def __init__(self, split: Split = "all") -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise MissingExtraError("scikit-learn", "data") from None
        raw = load_digits()
        order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
        testing = torch.arange(len(order)) % 5 == 0
        chosen = {"train": order[~testing], "test": order[testing], "all": order}[split]
        self._images = (torch.tensor(raw.images, dtype=torch.float32)[chosen] / 8 - 1).unsqueeze(1)
        self.labels = torch.tensor(raw.target, dtype=torch.int64)[chosen]

    def images(self, index_B: Tensor) -> Tensor:
        return self._images[index_B]
