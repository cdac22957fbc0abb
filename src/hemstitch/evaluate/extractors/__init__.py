"""Networks that metrics are measured with: name to builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ...errors import HemstitchError
from ...identity import weights_hash
from .base import OUTPUTS, Extractor, wrapped
from .inception import Inception
from .small import SmallClassifier
from .vits import Clip, Dinov2

# A builder takes the weights (None for those that its papers use) and the device.
EXTRACTORS: dict[str, Callable[[str | None, torch.device | str], Extractor]] = {
    "inception": lambda weights, device: Inception(weights, device),
    "dinov2": lambda weights, device: Dinov2(weights, device),
    "clip": lambda weights, device: Clip(weights, device),
    "classifier": lambda weights, device: _classifier(weights, device),
}


def extractor(name_or_path: str, *, weights: str | None = None, device: torch.device | str = "cpu") -> Extractor:
    """An extractor by its name in EXTRACTORS, or the small classifier by the path of its .safetensors.

    weights: a file (inception, classifier) or a folder (dinov2, clip) of them; None for those that the papers use,
    which are fetched. Raises HemstitchError, CheckpointError, MissingExtraError.
    """
    if name_or_path in EXTRACTORS:
        return EXTRACTORS[name_or_path](weights, device)
    if Path(name_or_path).suffix != ".safetensors":
        raise HemstitchError(
            f"an extractor is {', '.join(EXTRACTORS)} or the path of a classifier.safetensors, not {name_or_path!r}"
        )
    if weights is not None:
        raise HemstitchError(f"{name_or_path} is a classifier with its weights: leave out weights={weights!r}")
    return SmallClassifier(name_or_path, device)


def _classifier(weights: str | None, device: torch.device | str) -> Extractor:
    if weights is None:
        raise HemstitchError(
            "a classifier is trained on the data that it is to measure, and there is no other: give its file, as "
            "runs/q/classifier.safetensors (evaluate.classifier.train_classifier makes one)"
        )
    return SmallClassifier(weights, device)


__all__ = [
    "EXTRACTORS",
    "OUTPUTS",
    "Clip",
    "Dinov2",
    "Extractor",
    "Inception",
    "SmallClassifier",
    "extractor",
    "weights_hash",
    "wrapped",
]
