"""A folder of image files, one subfolder per class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from ..errors import HemstitchError
from .decoded import SUFFIXES, Decoded, decode, pool, require_pillow, some, unreadable

_CHUNK = 256  # files per task of the header check


class ImageFolder(Decoded):
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

    def __init__(self, path: Path, size: int, crop: Literal["centre"] = "centre") -> None:
        require_pillow(size)
        path = Path(path)
        if crop != "centre":
            raise HemstitchError(f"crop is 'centre', not {crop!r}")
        if not path.exists():
            raise HemstitchError(f"{path} does not exist: give the folder that holds the images")
        if not path.is_dir():
            raise HemstitchError(f"{path} is a file: give the folder that holds the images")
        classes, files = _scan(path)
        bad = _broken_headers([file for of_class in files for file in of_class])
        sound = [[file for file in of_class if file not in bad] for of_class in files]
        for label, of_class in enumerate(sound):
            if not of_class:
                folder = path / classes[label] if classes else path
                raise HemstitchError(
                    f"every image in {folder} is broken: {some(sorted(files[label]))}; "
                    "replace them or remove the folder"
                )
        counts = torch.tensor([len(of_class) for of_class in sound])
        labels = torch.repeat_interleave(torch.arange(len(sound)), counts)
        total = len(bad) + len(labels)
        if len(bad) > max(3, total / 100):
            raise HemstitchError(
                f"more than 1% of the images in {path} are broken, {len(bad)} of {total}: {some(sorted(bad))}; check "
                "how the data set was copied, and replace or remove such files"
            )
        super().__init__(path, size, f"folder:{Path(os.path.abspath(path)).name}", classes, labels, lost=len(bad))
        self.broken += sorted(map(Path, bad))
        self._files = [file for of_class in sound for file in of_class]
        if bad:
            warnings.warn(
                f"{len(bad)} of {total} images in {path} are broken and left out: {some(sorted(bad))}",
                stacklevel=2,
            )

    def _encoded(self, index: int) -> bytes:
        try:
            with open(self._files[index], "rb") as stream:
                return stream.read()
        except OSError as error:
            raise unreadable(self._files[index], error) from error

    def _where(self, index: int) -> Path:
        return Path(self._files[index])

    def _of_class(self, label: int) -> str:
        return str(self.path / self.classes[label] if self.classes else self.path)


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
        raise HemstitchError(f"class folders without images: {some(empty)}; remove them, or put images there ({kinds})")
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
    return {file for bad in pool().map(_without_header, chunks) for file in bad}


def _without_header(files: Sequence[str]) -> list[str]:
    return [file for file in files if not _has_header(file)]


def _has_header(file: str) -> bool:
    try:
        with open(file, "rb") as stream:
            return decode(stream, header_only=True) is not None
    except OSError as error:
        raise unreadable(file, error) from error
