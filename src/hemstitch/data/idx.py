"""MNIST, Fashion-MNIST and others in their file format, IDX (yann.lecun.com/exdb/mnist).

Shape suffixes: B batch, N images, S size.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HemstitchError
from .dataset import Dataset

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_GZIP = b"\x1f\x8b"
_PIECE = 1 << 20  # bytes unpacked at a time: a header that lies about the size costs no memory


class Idx(Dataset):
    """Grey images (1, size, size) in -1..1 from files of IDX, plain or gzipped.

    path: the folder that holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` (or `t10k-` both), each with
        `.gz` or without; or one file of images, beside which its labels are.
    size: 0 is the files' own (28); a larger one adds black on all four sides alike, so it differs by an even number.
    split: "train" or "test" (the files named t10k); a path to one file says so itself.
    fashion: whether the classes are Fashion-MNIST's, which may be mirrored, and not digits, which may not. By default
        the name of the folder tells (of the one above it, if it is called "raw").

    Images are kept in memory as bytes. Files that are missing, damaged or at odds are a HemstitchError that names them.
    """

    channels = 1

    def __init__(
        self, path: Path, size: int = 0, split: Literal["train", "test"] = "train", *, fashion: bool | None = None
    ) -> None:
        if split not in ("train", "test"):
            raise HemstitchError(f"split is 'train' or 'test', not {split!r}")
        path = Path(path)
        images, labels = _files(path, "train" if split == "train" else "t10k")
        pixels = _array(images, dimensions=3)
        numbers = _array(labels, dimensions=1)
        if len(pixels) != len(numbers):
            raise HemstitchError(
                f"{images} holds {len(pixels)} images and {labels} {len(numbers)} labels: they are not of one set"
            )
        if not len(pixels) or pixels.shape[1] != pixels.shape[2] or not pixels.shape[1]:
            raise HemstitchError(f"{images} holds images of shape {pixels.shape} (N, S, S): expected some, and square")
        own = pixels.shape[1]
        if size and (size < own or (size - own) % 2):
            raise HemstitchError(
                f"size is {own}, the side of the images in {images}, or that and an even number of black pixels more "
                f"({own + 4}), not {size}"
            )
        folder = _name(images.parent)
        fashion = "fashion" in folder.lower() if fashion is None else fashion
        if fashion and numbers.max() >= len(FASHION):
            raise HemstitchError(f"{labels} has a label {numbers.max()}: those of Fashion-MNIST are 0..9")
        self.name = f"idx:{folder}"
        self.classes = FASHION if fashion else tuple(map(str, range(int(numbers.max()) + 1)))
        self.flippable = fashion
        self.size = size or own
        self.labels = torch.from_numpy(numbers.astype(np.int64))
        self._images = torch.from_numpy(pixels)

    def images(self, index_B: Tensor) -> Tensor:
        """(B, 1, S, S) float32 in -1..1."""
        x0 = self._images[index_B].unsqueeze(1).float().div_(127.5).sub_(1)
        border = (self.size - x0.shape[-1]) // 2
        return F.pad(x0, (border,) * 4, value=-1.0) if border else x0


def _name(folder: Path) -> str:
    """The name of a folder, or of the one around it if it is "raw", as torchvision keeps these files."""
    absolute = Path(os.path.abspath(folder))
    return absolute.parent.name if absolute.name == "raw" else absolute.name


def _files(path: Path, prefix: str) -> tuple[Path, Path]:
    """The files of images and of labels at a path. HemstitchError if one is missing."""
    if not path.exists():
        raise HemstitchError(f"{path} does not exist: give the folder that holds {prefix}-images-idx3-ubyte[.gz]")
    if path.is_dir():
        return _existing(path, f"{prefix}-images-idx3-ubyte"), _existing(path, f"{prefix}-labels-idx1-ubyte")
    if "images-idx3" not in path.name:
        raise HemstitchError(
            f"{path} is not named like a file of images (train-images-idx3-ubyte[.gz]), which its labels are found by: "
            "rename it, or give the folder"
        )
    return path, _existing(path.parent, path.name.replace("images-idx3", "labels-idx1").removesuffix(".gz"))


def _existing(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise HemstitchError(f"{folder} has no {name}, nor {name}.gz: put it there")


def _array(file: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file. HemstitchError for a file that is no such, or not whole."""
    kind = "images" if dimensions == 3 else "labels"
    try:
        with file.open("rb") as stream:
            packed = stream.read(2) == _GZIP
        with gzip.open(file, "rb") if packed else file.open("rb") as stream:
            expected = b"\0\0\x08" + bytes([dimensions])  # unsigned bytes, and how many dimensions
            magic = stream.read(4)
            if magic != expected:
                raise HemstitchError(
                    f"{file} begins with {magic.hex() or 'nothing'}: an IDX file of {kind} begins with {expected.hex()}"
                )
            sides = stream.read(4 * dimensions)
            if len(sides) < 4 * dimensions:
                raise HemstitchError(f"{file} ends within its header: copy it again")
            shape = tuple(np.frombuffer(sides, ">u4").tolist())
            size = math.prod(shape)
            body = _read(stream, size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise HemstitchError(f"{file} is damaged ({error}): copy it again") from None
    except OSError as error:
        raise HemstitchError(f"{file} cannot be read ({error.strerror}): mend that") from error
    if len(body) < size:
        raise HemstitchError(f"{file} is cut short: {len(body):,} bytes of {kind} of the {size:,} that its header says")
    if len(body) > size:
        raise HemstitchError(f"{file} goes on after the {size:,} bytes of {kind} that its header says: copy it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read(stream: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """`size` bytes, or all there are."""
    body = bytearray()
    while len(body) < size:
        piece = stream.read(min(_PIECE, size - len(body)))
        if not piece:
            break
        body += piece
    return body
