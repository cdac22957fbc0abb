"""Data sets: name to builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from ..errors import HemstitchError
from .arrays import Arrays
from .dataset import Dataset, batch_at
from .digits import Digits, Split
from .folder import ImageFolder
from .huggingface import HuggingFace
from .idx import Idx
from .latents import Latents
from .shards import Shards

# Where Debian keeps Fashion-MNIST: real images, 28 pixels wide, that need no download.
_FASHION = Path("/usr/share/datasets/fashion-mnist")

# A builder takes the path and the image size of a recipe; those that need neither ignore them.
DATASETS: dict[str, Callable[[str, int], Dataset]] = {
    "digits": lambda path, size: Digits(_split(path)),
    "folder": lambda path, size: _folder(path, size),
    "fashion_mnist": lambda path, size: _fashion_mnist(path, size),
    "idx": lambda path, size: Idx(_given(path, "files of IDX need their folder", "mnist/"), size),
    "arrays": lambda path, size: Arrays(_given(path, "arrays need their file", "cifar10.npz"), size),
    "shards": lambda path, size: Shards(
        _given(path, "shards need their folder or pattern", "imgs-{000..099}.tar"), size
    ),
    "huggingface": lambda path, size: HuggingFace(_given(path, "a saved data set needs its folder", "pets/"), size),
    "latents": lambda path, size: _latents(path, size),
}


def _split(path: str) -> Split:
    if path not in ("", *get_args(Split)):
        raise HemstitchError(f"of the digits there are the splits {', '.join(get_args(Split))}, not {path!r}")
    return cast(Split, path or "train")


def _folder(path: str, size: int) -> Dataset:
    if not path:
        raise HemstitchError("a folder of images needs its path: data.path (--data.path imagenet/)")
    return ImageFolder(Path(path), size)


def _latents(path: str, size: int) -> Dataset:
    if not path:
        raise HemstitchError("latents need the folder that hemstitch encode wrote: data.path (--data.path latents/)")
    return Latents(Path(path), size)


def _fashion_mnist(path: str, size: int) -> Dataset:
    if not path and not _FASHION.exists():
        raise HemstitchError(
            f"Fashion-MNIST is not in {_FASHION}: apt install dataset-fashion-mnist, or give the folder of its files "
            "as data.path"
        )
    return Idx(Path(path or _FASHION), size, fashion=True)


def _given(path: str, need: str, example: str) -> Path:
    if not path:
        raise HemstitchError(f"{need}: data.path (--data.path {example})")
    return Path(path)


def open_dataset(kind: str, path: str = "", size: int = 0) -> Dataset:
    """A data set by name. path: where its files are. size: side of the square images it is to give."""
    if kind not in DATASETS:
        raise HemstitchError(f"data.kind is one of {', '.join(DATASETS)}, not {kind!r}")
    return DATASETS[kind](path, size)


__all__ = [
    "DATASETS",
    "Arrays",
    "Dataset",
    "Digits",
    "HuggingFace",
    "Idx",
    "ImageFolder",
    "Latents",
    "Shards",
    "batch_at",
    "open_dataset",
]
