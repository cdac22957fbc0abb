"""Images that are an array already: a file of NumPy.

Shape suffixes: B batch, N images, H height, W width, C channels, S size.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import HemstitchError
from .dataset import Dataset
from .decoded import numbered

_NAMES = ("images", "arr_0", "labels", "arr_1")
_CHUNK = 1024  # images checked at a time


class Arrays(Dataset):
    """Grey (1, S, S) or RGB (3, S, S) images in -1..1 from a `.npz` or `.npy` file.

    path: a `.npz` with `images` (or `arr_0`) and, if the data has classes, `labels` (or `arr_1`), read into memory; or
        a `.npy` of images, which stays on disk, with their labels beside it: `cats.npy` and `cats_labels.npy`,
        `train_images.npy` and `train_labels.npy`, or `labels.npy`.
    size: 0, or the side that the images have.

    Images are (N, S, S), (N, S, S, 1 or 3) or (N, 1 or 3, S, S); where that is unclear, as in (N, 3, 3, 3), channels
    are last. They are uint8, or floats in -1..1, which opening reads through once to be sure. Labels are integers
    (N,) from 0; the classes are "0" to the largest.

    Files are never unpickled. Anything else than the above is a HemstitchError.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        path = Path(path)
        if not path.is_file() or path.suffix not in (".npz", ".npy"):
            state = "does not exist" if not path.exists() else "is not one"
            raise HemstitchError(f"{path} {state}: give a .npz or .npy file of images")
        images, labels = _load(path)
        self._images = _channels_first(images, path)
        _, self.channels, self.size, _ = self._images.shape
        if size not in (0, self.size):
            raise HemstitchError(
                f"the images in {path} are {self.size} pixels wide: size is that or 0, not {size}; "
                "resize them before, or give them as a folder of image files"
            )
        _check_values(self._images, path)
        self.name = f"arrays:{Path(os.path.abspath(path)).stem}"
        self.labels = (
            torch.zeros(len(images), dtype=torch.int64) if labels is None else checked_labels(labels, len(images), path)
        )
        self.classes = () if labels is None else numbered(int(labels.max()), str(path))

    def images(self, index_B: Tensor) -> Tensor:
        """(B, C, S, S) float32 in -1..1."""
        rows = torch.from_numpy(np.ascontiguousarray(self._images[index_B.numpy()]))
        return rows.float().div_(127.5).sub_(1) if rows.dtype == torch.uint8 else rows.float()


def _load(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images and the labels, if there are any."""
    arrays = _arrays(path)
    images = next((arrays[name] for name in ("images", "arr_0") if name in arrays), None)
    labels = next((arrays[name] for name in ("labels", "arr_1") if name in arrays), None)
    if images is None:
        raise HemstitchError(f"{path} holds no `images`: name them so (np.savez(path, images=…, labels=…))")
    if path.suffix == ".npy":
        beside = (f"{path.stem}_labels.npy", f"{path.stem.replace('images', 'labels')}.npy", "labels.npy")
        found = (path.with_name(name) for name in beside if name != path.name and path.with_name(name).exists())
        labels = next((_arrays(file).get("images") for file in found), None)
    return images, labels


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Those arrays of a file that have one of our names. The only one of a .npy is called images."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}
        with loaded:
            return {name: loaded[name] for name in _NAMES if name in loaded}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise HemstitchError(
            f"{path} cannot be read as arrays of numbers ({error}): save it again with np.savez or np.save, "
            "without objects"
        ) from None
    except OSError as error:
        raise HemstitchError(f"{path} cannot be read ({error.strerror or error}): mend that") from error


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    """A view (N, C, S, S) of images in any of the layouts."""
    shape = images.shape
    if images.ndim == 3 and shape[1] == shape[2]:
        view = images[:, None]
    elif images.ndim == 4 and shape[3] in (1, 3) and shape[1] == shape[2]:
        view = images.transpose(0, 3, 1, 2)
    elif images.ndim == 4 and shape[1] in (1, 3) and shape[2] == shape[3]:
        view = images
    else:
        raise HemstitchError(
            f"the images in {path} are of shape {shape}: expected square ones, (N, S, S), (N, S, S, 1 or 3) or "
            "(N, 1 or 3, S, S)"
        )
    if not images.size:
        raise HemstitchError(f"{path} holds no images: their shape is {shape}")
    return view


def _check_values(images: np.ndarray, path: Path) -> None:
    """HemstitchError unless images are uint8, or floats in -1..1 of which some are negative."""
    fix = "give uint8 in 0..255, or floats in -1..1"
    if images.dtype == np.uint8:
        return
    if images.dtype not in (np.float16, np.float32, np.float64):
        raise HemstitchError(f"the images in {path} are {images.dtype}: {fix}")
    low, high = np.inf, -np.inf
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        low, high = np.minimum(low, chunk.min()), np.maximum(high, chunk.max())
    if not (low >= -1 and high <= 1):  # so written, it is true of NaN
        raise HemstitchError(f"the images in {path} are {images.dtype} from {low:g} to {high:g}: {fix}")
    if low >= 0:
        raise HemstitchError(
            f"the images in {path} are {images.dtype} from {low:g} to {high:g}, so probably 0 is black: {fix} "
            "(images * 2 - 1), where -1 is black"
        )


def checked_labels(labels: np.ndarray, count: int, path: Path) -> Tensor:
    """Labels as (N,) int64. HemstitchError, naming `path`, unless they are N = `count` whole numbers from 0."""
    if labels.ndim != 1 or len(labels) != count:
        raise HemstitchError(
            f"the labels of {path} are of shape {labels.shape}, for {count} images: expected ({count},)"
        )
    if labels.dtype.kind not in "iu":
        raise HemstitchError(
            f"the labels of {path} are {labels.dtype}: expected whole numbers (labels.astype('int64'))"
        )
    if labels.min() < 0:
        raise HemstitchError(f"the labels of {path} go down to {labels.min()}: classes are numbered from 0")
    return torch.from_numpy(labels.astype(np.int64))
