"""A folder of image files, one subfolder per class.

Shape suffixes: B batch, S size.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import HemstitchError, MissingExtraError
from .dataset import Dataset

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Other decoders stay shut whatever a file claims to be: pillow's EPS reader, for one, runs an interpreter.
_FORMATS = ("PNG", "JPEG", "WEBP")
_WORKERS = min(8, os.cpu_count() or 1)
_CHUNK = 256  # files per task of the header check
_NAMED = 20  # broken files that a message names


class ImageFolder(Dataset):
    """RGB images (3, size, size) in -1..1 from the png, jpg, jpeg and webp files under `path`.

    path: holds one folder per class, searched to any depth; or, for unlabelled data, images and no folders.
        Classes and files go by plain sorted order; hidden ones are passed over.
    size: the side of the images. The shorter side is resized to it: halved by averaging while it is at least
        twice as long, then bicubic (Dhariwal & Nichol 2021).
    crop: "centre", the only one so far: the middle square is kept.

    Greyscale, palette and 16-bit images become 8-bit RGB, transparent ones are laid on white, and the
    orientation that a camera noted is applied.

    broken: files that are no images. Those whose header shows it are left out when the folder is opened, with
        a warning. Those that only fail when decoded keep their index, which always gives the next readable
        image of their class; each is warned of once, and more than 1% of them (and more than 3) is an error.
    """

    channels = 3
    flippable = True

    def __init__(self, path: Path, size: int, crop: Literal["centre"] = "centre") -> None:
        _require_pillow()
        path = Path(path)
        if size < 1:
            raise HemstitchError(f"size is the side of the images to give, like size=256, not {size}")
        if crop != "centre":
            raise HemstitchError(f"crop is 'centre', not {crop!r}")
        if not path.exists():
            raise HemstitchError(f"{path} does not exist: give the folder that holds the images")
        if not path.is_dir():
            raise HemstitchError(f"{path} is a file: give the folder that holds the images")
        self.path = path
        self.size = size
        self.name = f"folder:{Path(os.path.abspath(path)).name}"
        self.classes, files = _scan(path)
        bad = _broken_headers([file for of_class in files for file in of_class])
        self.broken = sorted(map(Path, bad))
        sound = [[file for file in of_class if file not in bad] for of_class in files]
        for label, of_class in enumerate(sound):
            if not of_class:
                raise HemstitchError(
                    f"every image in {self._folder(label)} is broken: {_some(sorted(files[label]))}; "
                    "replace them or remove the folder"
                )
        self._files = [file for of_class in sound for file in of_class]
        counts = torch.tensor([len(of_class) for of_class in sound])
        self.labels = torch.repeat_interleave(torch.arange(len(sound)), counts)
        # where each class begins in _files, and where the last one ends
        self._bounds = [0, *torch.cumsum(counts, 0).tolist()]
        self._unreadable: set[int] = set()
        if bad:
            total = len(bad) + len(self)
            warnings.warn(
                f"{len(bad)} of {total} images in {path} are broken and left out: {_some(sorted(bad))}",
                stacklevel=2,
            )

    def images(self, index_B: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in -1..1, decoded by a few threads."""
        index = index_B.tolist()
        pixels = torch.empty(len(index), self.size, self.size, 3, dtype=torch.uint8)
        failed: set[int] = set()
        with ThreadPoolExecutor(_WORKERS) as pool:
            for row, (image, unreadable) in enumerate(pool.map(self._read, index)):
                pixels[row] = torch.from_numpy(image)
                failed.update(unreadable)
        self._report(sorted(failed - self._unreadable))
        return pixels.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)

    def _read(self, index: int) -> tuple[np.ndarray, list[int]]:
        """The image at `index` or the next readable one of its class, (S, S, 3) uint8; and which were not."""
        label = int(self.labels[index])
        first, count = self._bounds[label], self._bounds[label + 1] - self._bounds[label]
        failed: list[int] = []
        for step in range(count):
            at = first + (index % len(self) - first + step) % count
            if at not in self._unreadable:
                image = _decode(self._files[at])
                if image is not None:
                    return np.array(_square(image, self.size)), failed
                failed.append(at)
        raise HemstitchError(f"no image in {self._folder(label)} can be decoded: replace them or remove the folder")

    def _report(self, failed: Sequence[int]) -> None:
        """Note files that turned out broken; warn of them, or raise when they are too many."""
        if not failed:
            return
        files = [self._files[at] for at in failed]
        self._unreadable.update(failed)
        self.broken += map(Path, files)
        if len(self._unreadable) > max(3, len(self) / 100):
            every = [self._files[at] for at in sorted(self._unreadable)]
            raise HemstitchError(
                f"more than 1% of the images in {self.path} cannot be decoded, {len(every)} of {len(self)} "
                f"so far: {_some(every)}; check how the data set was copied, and replace or remove such files"
            )
        warnings.warn(
            f"{len(files)} of the images in {self.path} cannot be decoded, and others of their class stand "
            f"in for them: {_some(files)}",
            stacklevel=3,
        )

    def _folder(self, label: int) -> Path:
        return self.path / self.classes[label] if self.classes else self.path


def _require_pillow() -> None:
    try:
        import PIL.Image
        import PIL.ImageOps  # noqa: F401
    except ImportError:
        raise MissingExtraError("pillow", "data") from None


def _some(files: Sequence[str]) -> str:
    """The first few of many files, for a message."""
    return ", ".join(files[:_NAMED]) + (f" and {len(files) - _NAMED} more" if len(files) > _NAMED else "")


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _scan(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """The classes under `path` and the image files of each; no classes and one list for unlabelled data."""
    with os.scandir(path) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
    folders = sorted(name for name, folder in is_folder.items() if folder)
    loose = sorted(str(path / name) for name, folder in is_folder.items() if not folder and _is_image(name))
    kinds = ", ".join(SUFFIXES)
    if loose and folders:
        raise HemstitchError(
            f"{path} has images ({Path(loose[0]).name}, …) beside folders ({folders[0]}, …): move the images "
            "into class folders or, if the data has no classes, the folders elsewhere"
        )
    if loose:
        return (), [loose]
    files = [_images_under(path / folder) for folder in folders]
    if not any(files):
        raise HemstitchError(f"no images in {path}: put a folder of images per class there, or images alone ({kinds})")
    empty = [str(path / folder) for folder, of_class in zip(folders, files, strict=True) if not of_class]
    if empty:
        raise HemstitchError(
            f"class folders without images: {_some(empty)}; remove them, or put images there ({kinds})"
        )
    return tuple(folders), files


def _images_under(folder: Path) -> list[str]:
    """The image files anywhere under a folder, sorted. Links are followed, in circles only once."""
    found: list[str] = []
    seen: set[str] = set()
    for where, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += (os.path.join(where, name) for name in names if _is_image(name))
    return sorted(found)


def _broken_headers(files: Sequence[str]) -> set[str]:
    """Those of many files that do not begin like an image."""
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        return {file for bad in pool.map(_without_header, chunks) for file in bad}


def _without_header(files: Sequence[str]) -> list[str]:
    return [file for file in files if _decode(file, header_only=True) is None]


def _decode(file: str, header_only: bool = False) -> Image.Image | None:
    """The image upright in 8-bit RGB (or, unread, if its header is enough), or None if the file is broken."""
    from PIL import Image

    try:
        with open(file, "rb") as stream, Image.open(stream, formats=_FORMATS) as image:
            if header_only:
                return image
            image.load()
            return _rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every type
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # not the image's fault
            raise HemstitchError(
                f"{file} cannot be read ({error.strerror}): mend that, or take it out of the data set"
            ) from error
        return None


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a garbled note of the orientation, beside sound pixels
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from any mode; transparency is laid on white, as such images are meant to be seen."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which pillow's own conversion would clip at 255
        grey = np.asarray(image).clip(0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """The middle square, its side resized to `size`."""
    from PIL import Image

    longest = 8 * min(image.size)  # a thin strip scaled up whole would fill the memory
    if max(image.size) > longest:
        image = _middle(image, min(image.width, longest), min(image.height, longest))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    full = round(image.width * scale), round(image.height * scale)
    return _middle(image.resize(full, Image.Resampling.BICUBIC), size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
