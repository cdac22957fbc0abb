"""What data sets of encoded images share: decoding to RGB squares, and what stands in for an image that is broken.

Shape suffixes: B batch, N images, S size.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import threading
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

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
_NAMED = 20  # broken files that a message names
_MAX_CLASSES = 1_000_000


class Decoded(Dataset):
    """RGB images (3, size, size) in -1..1, decoded from files of png, jpeg or webp, wherever those are kept.

    The shorter side of an image is resized to `size`: halved by averaging while it is at least twice as long, then
    bicubic (Dhariwal & Nichol 2021); the middle square is kept. Greyscale, palette and 16-bit images become 8-bit
    RGB, transparent ones are laid on white, and the orientation that a camera noted is applied.

    An image that cannot be decoded keeps its index, which always gives the next readable image of its class. Each is
    warned of once and listed in `broken`; when they, with the `lost` ones, are more than 1% of all (and more than 3),
    `images` raises a HemstitchError, from then on. It may be called from several threads at once.

    lost: about how many images are known to be gone, beside those that there are.

    A subclass says what the bytes of an image are (`_encoded`) and what a message calls it (`_where`).
    """

    channels = 3
    flippable = True

    def __init__(
        self, path: Path, size: int, name: str, classes: tuple[str, ...], labels: Tensor, *, lost: int = 0
    ) -> None:
        """path: what messages call the data set. labels: (N,) int64. lost: images known to be gone, beside these N."""
        self.path = path
        self.size = size
        self.name = name
        self.classes = classes
        self.labels = labels
        self.broken: list[Path] = []
        # (N,) the indices, class by class; where in it each index stands; where in it each class begins
        order = torch.argsort(labels, stable=True)
        self._order = order.numpy()
        self._place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).numpy()
        self._starts = [0, *torch.cumsum(torch.bincount(labels), 0).tolist()]
        self._unreadable: frozenset[int] = frozenset()
        self.lost = lost

    @abstractmethod
    def _encoded(self, index: int) -> bytes:
        """The bytes of an image's file, empty if there are none. HemstitchError where the storage fails."""

    @abstractmethod
    def _where(self, index: int) -> Path:
        """Where an image is, for people: its file, or the file that holds it and its name in there."""

    def _of_class(self, label: int) -> str:
        return f"{self.path}, class {self.classes[label]}" if self.classes else str(self.path)

    def images(self, index_B: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in -1..1, decoded by a few threads."""
        index = index_B.tolist()
        x0 = np.empty((len(index), 3, self.size, self.size), np.float32)
        self._report({at for failed in pool().map(self._read, index, x0) for at in failed})
        return torch.from_numpy(x0)

    def _read(self, index: int, x0: np.ndarray) -> list[int]:
        """Write the image at `index`, or the next readable one of its class, into x0 (3, S, S). Gives those that fail.

        Which one it is depends on the bytes alone, not on what was read before.
        """
        label = int(self.labels[index])
        first, count = self._starts[label], self._starts[label + 1] - self._starts[label]
        place = int(self._place[index])
        known = self._unreadable
        failed: list[int] = []
        for step in range(count):
            at = int(self._order[first + (place - first + step) % count])
            if at in known:
                continue
            image = decode(BytesIO(self._encoded(at)))
            if image is not None:
                # here rather than for the whole batch at once: it is as much work as decoding
                x0[...] = np.asarray(_square(image, self.size)).transpose(2, 0, 1)
                x0 /= 127.5
                x0 -= 1
                return failed
            failed.append(at)
            if len(failed) > self._spare:  # an error in any case: no need to try the rest
                return failed
        raise HemstitchError(
            f"no image in {self._of_class(label)} can be decoded: replace them or remove them from the data"
        )

    @property
    def _spare(self) -> int:
        """How many images may be unreadable before it is an error."""
        return max(3, math.floor((len(self) + self.lost) / 100)) - self.lost

    def _report(self, failed: set[int]) -> None:
        """Note images that turned out broken; warn of the new ones, or raise when they are too many."""
        with _LOCK:
            new = sorted(failed - self._unreadable)
            self._unreadable |= failed
            self.broken += map(self._where, new)
        if len(self._unreadable) > self._spare:
            lost = f", and about {self.lost:,} are lost beside them" if self.lost else ""
            raise HemstitchError(
                f"more than 1% of the images in {self.path} cannot be decoded, {len(self._unreadable)} of {len(self)} "
                f"so far{lost}: {some([str(self._where(at)) for at in sorted(self._unreadable)])}; "
                "check how the data set was copied, and replace or remove such files"
            )
        if new:
            warnings.warn(
                f"{len(new)} of the images in {self.path} cannot be decoded, and others of their class stand "
                f"in for them: {some([str(self._where(at)) for at in new])}",
                stacklevel=3,
            )


_LOCK = threading.Lock()  # of what data sets note about broken images; theirs would keep them from being pickled


@functools.cache
def pool() -> ThreadPoolExecutor:
    """The threads that decode, one pool for all data sets of a process: two at once do not fight for the cores."""
    return ThreadPoolExecutor(_WORKERS, "decode")


def _after_fork() -> None:
    """Threads do not survive a fork, and a lock that one of them held would stay shut."""
    global _LOCK
    _LOCK = threading.Lock()
    pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def require_pillow(size: int) -> None:
    """Refuse to go on without pillow, or towards images of no size."""
    try:
        import PIL.Image
        import PIL.ImageOps  # noqa: F401
    except ImportError:
        raise MissingExtraError("pillow", "data") from None
    if size < 1:
        raise HemstitchError(f"size is the side of the images to give, like size=256, not {size}")


def numbered(largest: int, where: str) -> tuple[str, ...]:
    """Names for classes that have none: "0" to the largest label. HemstitchError if that is no sensible number."""
    if largest >= _MAX_CLASSES:
        raise HemstitchError(
            f"the labels of {where} go up to {largest:,}: number the classes from 0 without gaps "
            f"({_MAX_CLASSES:,} classes at most)"
        )
    return tuple(map(str, range(largest + 1)))


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def unreadable(file: str | Path, error: OSError) -> HemstitchError:
    """For a file that the system does not give, which is not an image's fault."""
    return HemstitchError(f"{file} cannot be read ({error.strerror}): mend that, or take it out of the data set")


def decode(stream: BinaryIO, header_only: bool = False) -> Image.Image | None:
    """The image upright in 8-bit RGB (or, unread, if its header is enough), or None if it is broken.

    OSError if the stream itself fails.
    """
    from PIL import Image

    try:
        with Image.open(stream, formats=_FORMATS) as image:
            if header_only:
                return image
            image.load()
            return _rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every type
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
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
