"""A set of pictures to evaluate, and a hash of what is in them.

Shape suffixes: B batch, N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import cast, final

import torch
from torch import Tensor

from ...data.ahead import ahead
from ...errors import HemstitchError

Progress = Callable[[int, int], None]  # how many are done, of how many
_AT_ONCE = 1 << 25  # bytes of pictures that are decoded at a time where nothing is made of them


class Images(ABC):
    """Pictures of one size, in order.

    name: for people. size: (height, width). labels: (N,) int64, or None. grey: whether they have one channel, which
    `batches` repeats. classes: the names that the labels count, from 0, so that one missing shifts those behind it;
    empty where there are none, or where the labels are numbers of their own (a folder 7/, a .cls, arr_1).

    A subclass says in `_rows` where they come from.
    """

    name: str
    size: tuple[int, int]
    labels: Tensor | None
    grey: bool
    classes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _rows(self, batch: int, start: int) -> Iterator[Tensor]:
        """Writable uint8 (B, C, H, W) with C 1 or 3, `batch` at a time from picture `start` on. Runs in one thread."""

    @final
    def batches(self, batch: int, start: int = 0) -> Iterator[Tensor]:
        """Uint8 (B, 3, H, W), in order from picture `start` on; the last may be smaller. Made ahead by threads.

        Raises HemstitchError where a picture cannot be read after all.
        """
        if batch < 1 or not 0 <= start <= len(self):
            raise HemstitchError(
                f"batches are of at least 1 picture, from one of 0..{len(self)} on; not {batch} from {start}"
            )
        return self._ahead(batch, start)

    @final
    def checked(self, progress: Progress | None = None) -> None:
        """Read and decode every picture, so that a bad one is found before hours are spent on others.

        progress: called now and then with how many are read, of how many. Raises HemstitchError as `batches` does, and
        where a checksum is another.
        """
        H, W = self.size
        batch = max(1, min(256, _AT_ONCE // (3 * H * W)))
        done = 0
        for images in self._rows(batch, 0):
            done += len(images)
            if progress is not None:
                progress(done, len(self))

    def _ahead(self, batch: int, start: int) -> Iterator[Tensor]:
        rows = self._rows(batch, start)

        def make(step: int) -> Tensor | None:
            images = next(rows, None)
            return None if images is None else images.expand(-1, 3, -1, -1).contiguous()

        made = cast(Generator[tuple[Tensor | None, float], None, None], ahead(make, 0, workers=1))
        with closing(made):
            for images, _ in made:
                if images is None:
                    return
                yield images


@final
class ContentHash:
    """A hash of pictures that does not depend on how they are stored: of their size and their pixels, in order.

    size: (height, width). Pictures as PNG, as an array and in a tar have the same one, and so have grey ones and the
    same with the channel repeated; the sizes of batches change nothing.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = tuple(size)
        self._digest = hashlib.sha256(f"{size[0]} x {size[1]}\n".encode())

    def update(self, images: Tensor) -> None:
        """Add pictures, uint8 (B, 3, H, W)."""
        if images.dtype != torch.uint8 or images.shape[1:] != (3, *self._size):
            H, W = self._size
            raise HemstitchError(
                f"pictures to hash are uint8 (B, 3, {H}, {W}), not {images.dtype} {tuple(images.shape)}"
            )
        self._digest.update(images.cpu().contiguous().numpy().data)

    def hexdigest(self) -> str:
        """64 hex digits, of all pictures so far."""
        return self._digest.hexdigest()


def content(images: Images, batch: int = 256) -> str:
    """The ContentHash of a whole set."""
    digest = ContentHash(images.size)
    for part in images.batches(batch):
        digest.update(part)
    return digest.hexdigest()


def check_common(images: Images, size: int, grey: bool, example: str = "") -> None:
    """What every kind of set is refused for: fewer than two pictures, another size than asked for, unasked-for grey."""
    named = f" (as {example})" if example else ""
    if len(images) < 2:
        raise HemstitchError(
            f"{images.name} holds {len(images)} picture{named}: a distribution is measured from two at the very least, "
            "and from thousands in earnest"
        )
    H, W = images.size
    if size and images.size != (size, size):
        raise HemstitchError(
            f"the pictures of {images.name} are {H} x {W}{named}, and size asks for {size}: nothing is resized here; "
            f"leave the size out, or give their folder as folder:PATH with --size {size} (of a reference: "
            f"--reference-size {size}), which crops and resizes"
        )
    if images.grey and not grey:
        raise HemstitchError(
            f"all {len(images)} pictures of {images.name} are greyscale{named}, and feature networks take RGB: "
            "--grey (grey=True) repeats their channel"
        )
