"""Pictures as files of png, jpeg or webp: in a folder, or in the tar files of webdataset. Strict.

Every header is read before anything is measured, and all that is wrong is told at once.

Shape suffixes: B batch, N pictures, H height, W width, C channels.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from ...data.decoded import SUFFIXES, pool, require_pillow, some, unreadable
from ...data.shards import Files, indexed, shard_paths
from ...errors import HemstitchError
from .base import Images, check_common

_FORMATS = ("PNG", "JPEG", "WEBP")  # other decoders stay shut, whatever a file claims to be
# Pictures too, but not read here.
_FOREIGN = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff"),
)
_SETTINGS = "manifest/settings.json"  # what a folder of `hemstitch sample` is known by
_BESIDE = ("manifest", "features")  # folders that it has beside the samples
_GREY = ("L", "1")  # modes of pillow: 8 bits, 1 bit
_ORIENTATION = 0x0112  # in EXIF
_NUMBER = re.compile("[0-9]{1,18}")  # more digits are a name: labels are int64
_RESIZE = (
    "resize them, or give folder:PATH with --size SIDE (of a reference: --reference-size SIDE), which crops and resizes"
)

# What is wrong with a picture, and what to do about it.
_FIXES = {
    "broken": ("cannot be read as png, jpeg or webp", "replace them or take them away"),
    "deep": ("have 16 bits per channel", "save them with 8, rounded as they should be"),
    "alpha": ("have transparency", "save them as RGB, on the background that they are to have"),
    "cmyk": ("are CMYK", "convert them to RGB"),
    "other": ("are neither RGB nor greyscale", "convert them to RGB"),
    "turned": ("are to be turned, by what a camera noted (EXIF)", "save them as they are to be seen"),
    "animated": ("hold several frames", "save one"),
    "grey": ("are greyscale, beside RGB ones", "convert them to RGB"),
}


class _Header(NamedTuple):
    """Of a picture. wrong: a key of _FIXES, or "" for none. grey: one channel. size: (height, width)."""

    wrong: str
    grey: bool
    size: tuple[int, int]


class _Encoded(Images):
    """What folders and tar files share. A subclass says where the bytes of a picture are, and what it is called."""

    _count: int

    def _open(self, name: str, labels: Tensor | None, size: int, grey: bool) -> None:
        """Read every header. HemstitchError unless all pictures are of one size and one kind."""
        self.name, self.labels = name, labels
        headers = list(pool().map(self._header, range(self._count)))
        # what is wrong in itself does not say what the set is
        self.grey = all(header.grey for header in [h for h in headers if not h.wrong] or headers)
        self._check(headers)
        self.size = headers[0].size
        check_common(self, size, grey, self._where(0))

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def _stream(self, index: int) -> BinaryIO: ...

    @abstractmethod
    def _where(self, index: int) -> str: ...

    def _check(self, headers: Sequence[_Header]) -> None:
        wrong: dict[str, list[str]] = defaultdict(list)
        for index, header in enumerate(headers):
            what = header.wrong or ("grey" if header.grey and not self.grey else "")
            if what:
                wrong[what].append(self._where(index))
        said = [f"{len(of)} {_FIXES[what][0]} ({some(of)}): {_FIXES[what][1]}" for what, of in wrong.items()]
        sizes = Counter(header.size for header in headers if header.wrong != "broken")
        if len(sizes) > 1:
            first = {header.size: index for index, header in reversed(list(enumerate(headers)))}
            kinds = [f"{H} x {W} ({n}, as {self._where(first[H, W])})" for (H, W), n in sizes.most_common()]
            said.append(f"they are of {len(sizes)} sizes, {some(kinds)}: {_RESIZE}")
        if said:
            raise HemstitchError(f"of the {len(headers)} pictures of {self.name}, " + "; ".join(said))

    def _header(self, index: int) -> _Header:
        from PIL import Image

        try:
            with self._stream(index) as stream, Image.open(stream, formats=_FORMATS) as image:
                return _Header(_wrong(image, stream), image.mode in _GREY, (image.height, image.width))
        except (HemstitchError, MemoryError):  # the storage failed, and not the picture
            raise
        except Exception:  # decoders meet damaged bytes with errors of every type
            return _Header("broken", False, (0, 0))

    def _rows(self, batch: int, start: int) -> Iterator[Tensor]:
        for first in range(start, self._count, batch):
            pixels = list(pool().map(self._pixels, range(first, min(first + batch, self._count))))
            yield torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)

    def _pixels(self, index: int) -> np.ndarray:
        """(H, W, C) uint8. HemstitchError if the picture is cut short, or is another than when it was opened."""
        from PIL import Image

        try:
            with self._stream(index) as stream, Image.open(stream, formats=_FORMATS) as image:
                grey = image.mode in _GREY
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
        except (HemstitchError, MemoryError):
            raise
        except Exception as error:
            raise HemstitchError(
                f"{self._where(index)} of {self.name} is damaged or cut short ({error}): replace it or take it away"
            ) from None
        if pixels.shape[:2] != self.size or grey != self.grey:
            raise HemstitchError(f"{self._where(index)} of {self.name} has changed since it was opened: start again")
        return pixels.reshape(*self.size, -1)


@final
class FolderImages(_Encoded):
    """The png, jpg, jpeg and webp files of a folder, to any depth, by the plain sorted order of their relative paths.

    Files of one folder that are named by whole numbers go by number: 1000000.png after 999999.png.

    Where all files lie in subfolders, those at the top are the classes, and else labels are None. If the names of all
    of these are whole numbers, they are the labels, whichever are there; else the sorted names are counted from 0, and
    are in `classes`.

    Hidden files and folders are passed over and so, of a folder that `hemstitch sample` wrote (it has
    manifest/settings.json), are `manifest` and `features` at the top; files of other kinds too, but for pictures in
    formats that are not read here, which are an error. See `open_images`.
    """

    def __init__(self, path: Path, size: int = 0, grey: bool = False) -> None:
        require_pillow(1)
        self._path = path
        self._files, foreign = _scan(path)
        if foreign:
            raise HemstitchError(
                f"{len(foreign)} pictures of {path} are in formats that are not read here ({some(foreign)}): convert "
                "them to png, or take them away"
            )
        if not self._files:
            raise HemstitchError(f"{path} holds no pictures ({', '.join(SUFFIXES)}){_meant(path)}")
        self._count = len(self._files)
        labels, self.classes = _labelled(self._files, path)
        self._open(str(path), labels, size, grey)

    def _stream(self, index: int) -> BinaryIO:
        file = self._path / self._files[index]
        try:
            return file.open("rb")
        except OSError as error:
            raise unreadable(file, error) from error

    def _where(self, index: int) -> str:
        return self._files[index]


@final
class TarImages(_Encoded):
    """The samples of webdataset's tar files, in the order of `hemstitch.data.Shards`, with the labels that they have.

    path: a `.tar`, a folder of them, or a pattern like imgs-{0000..0099}.tar. Where `Shards` would go on with what is
    left of a damaged one, this is an error.
    """

    def __init__(self, path: Path, size: int = 0, grey: bool = False) -> None:
        require_pillow(1)
        shards = list(pool().map(indexed, shard_paths(path)))
        damaged = [f"{shard.path} ({shard.damage})" for shard in shards if shard.damage]
        if damaged:
            raise HemstitchError(f"tar files are damaged: {some(damaged)}; copy or write them again, or leave them out")
        lone = [f"{shard.path.name}/{name}" for shard in shards for name in shard.imageless]
        if lone:
            raise HemstitchError(f"{len(lone)} labels in {path} have no picture: {some(lone)}; write them again")
        self._names = [f"{shard.path.name}/{name}" for shard in shards for name in shard.names]
        if not self._names:
            raise HemstitchError(f"{path} holds no pictures: expected members such as 000.png and 000.cls")
        self._count = len(self._names)
        self._files = Files([shard.path for shard in shards])
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self._offset = np.concatenate([shard.offset_n for shard in shards])
        self._size = np.concatenate([shard.size_n for shard in shards])
        label_N = np.concatenate([shard.label_n for shard in shards])
        bare = np.flatnonzero(label_N < 0)
        if 0 < len(bare) < self._count:
            raise HemstitchError(
                f"{len(bare)} of the {self._count} pictures in {path} have no label beside others that do: "
                f"{some([self._names[i] for i in bare])}; give each a .cls or .json, or none"
            )
        self._open(str(path), None if len(bare) else torch.from_numpy(label_N), size, grey)

    def _stream(self, index: int) -> BinaryIO:
        return BytesIO(self._files.read(int(self._shard[index]), int(self._offset[index]), int(self._size[index])))

    def _where(self, index: int) -> str:
        return self._names[index]


def _wrong(image: Any, stream: BinaryIO) -> str:
    """What keeps an opened picture from being taken as it is: a key of _FIXES, or ""."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return "alpha"
    # pillow gives 16-bit RGB as 8-bit without a word: the depth is in byte 24 of a PNG
    stream.seek(0)
    if image.mode.startswith("I") or (image.format == "PNG" and stream.read(25)[24:] == b"\x10"):
        return "deep"
    if image.mode == "CMYK":
        return "cmyk"
    if image.mode not in ("L", "1", "P", "RGB"):
        return "other"
    if getattr(image, "n_frames", 1) > 1:
        return "animated"
    if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        return "turned"
    return ""


def _scan(path: Path) -> tuple[list[str], list[str]]:
    """The pictures under a folder by relative path, in order, and those of formats that are not read."""
    found: list[str] = []
    foreign: list[str] = []
    seen: set[str] = set()
    beside = _BESIDE if (path / _SETTINGS).is_file() else ()
    for where, inner, names in os.walk(path, followlinks=True):
        top = Path(where) == path
        real = os.path.realpath(where)
        kept = [name for name in inner if not name.startswith(".") and not (top and name in beside)]
        inner[:] = [] if real in seen else kept
        if real in seen:  # links in a circle
            continue
        seen.add(real)
        for name in names:
            if name.startswith("."):
                continue
            relative = Path(where, name).relative_to(path).as_posix()
            kind = os.path.splitext(name)[1].lower()
            (found if kind in SUFFIXES else foreign if kind in _FOREIGN else []).append(relative)
    return _ordered(found), sorted(foreign)


def _ordered(files: Sequence[str]) -> list[str]:
    """Sorted, but where the files of a folder that numbers name have their places, they have them by number."""
    ordered = sorted(files)
    places: dict[str, list[int]] = defaultdict(list)
    for place, file in enumerate(ordered):
        if _number(file) is not None:
            places[os.path.dirname(file)].append(place)
    for of_folder in places.values():
        by_number = sorted((ordered[place] for place in of_folder), key=lambda file: (_number(file), file))
        for place, file in zip(of_folder, by_number, strict=True):
            ordered[place] = file
    return ordered


def _number(file: str) -> int | None:
    """The number that a file is named by, None if it is not: 7 of cats/007.png."""
    stem = os.path.splitext(os.path.basename(file))[0]
    return int(stem) if _NUMBER.fullmatch(stem) else None


def _labelled(files: Sequence[str], path: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels (N,) of pictures by their top subfolders, and the names that they count. See `FolderImages`."""
    tops = [file.partition("/")[0] if "/" in file else "" for file in files]
    names = sorted(set(tops))
    if "" in names:
        return None, ()
    if not all(_NUMBER.fullmatch(name) for name in names):
        label = {name: i for i, name in enumerate(names)}
        return torch.tensor([label[top] for top in tops]), tuple(names)
    label = {name: int(name) for name in names}
    named = Counter(label.values())
    twice = [name for name in names if named[label[name]] > 1]
    if twice:
        raise HemstitchError(
            f"folders of {path} are named by one number ({some(twice)}), and the numbers are the labels: put the "
            "pictures of a class into one folder"
        )
    return torch.tensor([label[top] for top in tops]), ()


def _meant(path: Path) -> str:
    """What a folder without pictures may have been meant as."""
    if any(path.glob("latents-*.safetensors")):
        return f": it holds latents; say so (latents:{path}), if they are pixels, or else give the pictures"
    return ": put them there, or say what it is (huggingface:PATH, idx:PATH)"
