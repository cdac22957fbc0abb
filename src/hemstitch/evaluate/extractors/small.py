"""The small classifier as an extractor.

Shape suffixes: B batch, C channels, H height, W width, S size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from ...errors import HemstitchError
from ..classifier import TrainedClassifier
from .base import Extractor
from .inception import flattened

_SPATIAL_CHANNELS = 7  # as sFID has of Inception
_TO_FIRST_POOLING = 5  # modules of the trunk


@final
class SmallClassifier(Extractor):
    """A classifier of `evaluate.classifier`, which knows one data set: its distances are for that data only.

    classifier: trained, or the classifier.safetensors that it was saved to. Pictures have the side that it was trained
    with and, if it takes one channel, three equal ones.

    pool: (B, 64) its features. spatial: (B, (S / 2)^2 * 7), the first 7 channels of the map after the first pooling,
    in the order (height, width, channel). logits: (B, classes). hash: the classifier's own.
    """

    name = "classifier"
    outputs = ("pool", "spatial", "logits")

    def __init__(self, classifier: TrainedClassifier | str | Path, device: torch.device | str = "cpu") -> None:
        if not isinstance(classifier, TrainedClassifier):
            path = Path(classifier)
            if not path.is_file():
                raise HemstitchError(f"{path} does not exist: give the classifier.safetensors of a trained classifier")
            classifier = TrainedClassifier.load(path)
        self.hash = classifier.hash
        self.version = f"hemstitch {version_of('hemstitch')}"
        self.accuracy = classifier.accuracy
        self._net = copy.deepcopy(classifier.net).eval().to(device)
        self._device = torch.device(device)

    def _extract(self, images: Tensor) -> Mapping[str, Tensor]:
        C, S = self._net.shape.channels, self._net.shape.size
        H, W = images.shape[2:]
        if (H, W) != (S, S):
            raise HemstitchError(
                f"the classifier was trained on {S} x {S} pixels, and these are {H} x {W}: resize them"
            )
        if C == 1 and not bool((images == images[:, :1]).all()):
            raise HemstitchError(
                "the classifier was trained on grey pictures, and these have colours: give grey ones, or another "
                "extractor"
            )
        x0 = images[:, :C].to(self._device).float().div_(127.5).sub_(1)
        map_BCHW = self._net.trunk[:_TO_FIRST_POOLING](x0)
        pool = self._net.trunk[_TO_FIRST_POOLING:](map_BCHW)
        return {"pool": pool, "spatial": flattened(map_BCHW, _SPATIAL_CHANNELS), "logits": self._net.head(pool)}
