"""Data sets: name to builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import HemstitchError
from .dataset import Dataset, batches
from .digits import Digits
from .folder import ImageFolder

# A builder takes the path and the image size of a recipe; those that need neither ignore them.
DATASETS: dict[str, Callable[[str, int], Dataset]] = {
    "digits": lambda path, size: Digits("train"),
    "folder": lambda path, size: _folder(path, size),
}


def _folder(path: str, size: int) -> Dataset:
    if not path:
        raise HemstitchError("a folder of images needs its path: data.path (--data.path imagenet/)")
    return ImageFolder(Path(path), size)


def open_dataset(kind: str, path: str = "", size: int = 0) -> Dataset:
    """A data set by name. path: where its files are. size: side of the square images it is to give."""
    if kind not in DATASETS:
        raise HemstitchError(f"data.kind is one of {', '.join(DATASETS)}, not {kind!r}")
    return DATASETS[kind](path, size)


__all__ = ["DATASETS", "Dataset", "Digits", "ImageFolder", "batches", "open_dataset"]
