"""Pictures as an array of NumPy, in the layout of ADM's sample files, read through without loading it whole.

Shape suffixes: N pictures, H height, W width, C channels.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ...data.arrays import checked_labels
from ...errors import HemstitchError
from ...files import member_offset
from .base import Images, check_common

_LONGEST_HEADER = 1 << 16  # that of numbers has some hundred bytes
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class _Where:
    """Where an array's bytes are. member: in a zip, else "". offset: in the file, or None where they are compressed.

    header: the bytes of the .npy header before them. crc: of header and bytes together, as the zip says.
    """

    path: Path
    member: str
    offset: int | None
    header: bytes
    crc: int | None


@final
class ArrayImages(Images):
    """`arr_0` of a `.npz`, uint8 (N, H, W, 3), or grey as (N, H, W, 1) or (N, H, W); or a `.npy` of such.

    Labels are in `arr_1` of the `.npz`, integers (N,), if it has one. A member that is stored as it is (np.savez) is
    mapped into memory, a compressed one (np.savez_compressed) is unpacked a batch at a time; whoever reads it from the
    first picture to the last has its checksum compared. Nothing is unpickled.
    """

    def __init__(self, path: Path, size: int = 0, grey: bool = False) -> None:
        self.name = str(path)
        try:
            self._where, labels = _zipped(path) if path.suffix.lower() == ".npz" else (_plain(path), None)
            self._shape = _shape(self._where)
        except _DAMAGE as error:
            raise _damaged(path, error) from None
        except OSError as error:
            raise HemstitchError(f"{path} cannot be read ({error.strerror or error}): mend that") from error
        N, H, W, C = self._shape
        self.size, self.grey = (H, W), C == 1
        check_common(self, size, grey)
        self.labels = None if labels is None else checked_labels(labels, N, path)

    def __len__(self) -> int:
        return self._shape[0]

    def _rows(self, batch: int, start: int) -> Iterator[Tensor]:
        _, H, W, C = self._shape
        where = self._where
        parts = self._unpacked(batch, start) if where.offset is None else self._mapped(batch, start, where.offset)
        crc = zlib.crc32(where.header)
        for part in parts:
            crc = zlib.crc32(part.data, crc)
            yield torch.from_numpy(part.reshape(-1, H, W, C)).permute(0, 3, 1, 2)
        if start == 0 and where.crc not in (None, crc):
            raise _damaged(where.path, f"the checksum of {where.member} is another")

    def _mapped(self, batch: int, start: int, offset: int) -> Iterator[np.ndarray]:
        array = np.memmap(self._where.path, np.uint8, "r", offset, self._shape)
        for first in range(start, len(self), batch):
            yield np.array(array[first : first + batch])

    def _unpacked(self, batch: int, start: int) -> Iterator[np.ndarray]:
        bytes_each = math.prod(self._shape[1:])
        try:
            with zipfile.ZipFile(self._where.path) as file, file.open(self._where.member) as stream:
                stream.seek(len(self._where.header) + start * bytes_each)
                for first in range(start, len(self), batch):
                    wanted = min(batch, len(self) - first) * bytes_each
                    data = bytearray(stream.read(wanted))
                    if len(data) < wanted:
                        raise EOFError(f"{self._where.member} ends early")
                    yield np.frombuffer(data, np.uint8)
        except _DAMAGE as error:
            raise _damaged(self._where.path, error) from None


def _zipped(path: Path) -> tuple[_Where, np.ndarray | None]:
    """Where arr_0 is, and arr_1 if there is one."""
    with zipfile.ZipFile(path) as file:
        names = {name.removesuffix(".npy") for name in file.namelist()}
        if "arr_0" not in names:
            raise HemstitchError(f"{path} {_instead(names)}")
        info = file.getinfo("arr_0.npy")
        with file.open(info) as stream:
            header = _header(stream, path)
        is_stored = info.compress_type == zipfile.ZIP_STORED
        offset = member_offset(path, info) + len(header) if is_stored else None
        where = _Where(path, info.filename, offset, header, info.CRC)
        if "arr_1" not in names:
            return where, None
        with file.open("arr_1.npy") as stream:
            try:
                return where, npy.read_array(stream, allow_pickle=False)
            except ValueError as error:
                raise HemstitchError(
                    f"arr_1 of {path} is no array of labels ({error}): save labels as integers (N,), or leave it out"
                ) from None


def _instead(names: set[str]) -> str:
    """What to say of a file without arr_0."""
    if {"mu", "sigma"} <= names:
        return "has no pictures (arr_0): these are statistics (mu, sigma); give them as the reference"
    if "images" in names:
        return "has no arr_0 but `images`: give it as arrays:PATH, or save it again with np.savez(path, images)"
    held = ", ".join(sorted(names)[:8]) or "nothing"
    return f"has no arr_0 (it holds {held}): save pictures with np.savez(path, images)"


def _plain(path: Path) -> _Where:
    with path.open("rb") as stream:
        header = _header(stream, path)
    return _Where(path, "", len(header), header, None)


def _header(stream: IO[bytes], path: Path) -> bytes:
    """The bytes of a .npy header: its mark, its version, its length and as much text."""
    start = stream.read(8)
    width = 2 if start[6:7] == b"\1" else 4
    if start[:6] != npy.MAGIC_PREFIX or len(start) < 8:
        raise HemstitchError(
            f"{path} holds no array of NumPy where one should be: save it again with np.savez or np.save"
        )
    length = stream.read(width)
    return start + length + stream.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))


def _shape(where: _Where) -> tuple[int, int, int, int]:
    """(N, H, W, C) of an array, or HemstitchError unless it is uint8, in order, of such a shape, and all there."""
    what = f"arr_0 of {where.path}" if where.member else str(where.path)
    stream = io.BytesIO(where.header)
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise HemstitchError(f"{what} has no header that can be read ({error}): save it again with np.savez") from None
    if dtype != np.uint8:
        raise HemstitchError(f"{what} is {dtype}: expected uint8 in 0..255; {_to_uint8(dtype)}")
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
        turn = (
            "; np.transpose(images, (0, 2, 3, 1)) puts channels last" if len(shape) == 4 and shape[1] in (1, 3) else ""
        )
        raise HemstitchError(f"{what} is of shape {shape}: expected (N, H, W, 3), (N, H, W, 1) or (N, H, W){turn}")
    if fortran:
        raise HemstitchError(f"{what} is stored column by column: save np.ascontiguousarray(images)")
    N, H, W, C = shape
    _check_length(where, what, math.prod(shape))
    return N, H, W, C


def _check_length(where: _Where, what: str, count: int) -> None:
    if not where.member:
        there = where.path.stat().st_size - len(where.header)
    else:
        with zipfile.ZipFile(where.path) as file:
            there = file.getinfo(where.member).file_size - len(where.header)
    if there != count:
        raise HemstitchError(f"{what} says that it holds {count:,} bytes, and holds {there:,}: copy the file again")


def _to_uint8(dtype: np.dtype) -> str:
    if dtype.hasobject:
        return "objects would have to be unpickled, which could run what they hold: save np.stack(images)"
    if dtype.kind == "f":
        return "from -1..1 that is ((images + 1) * 127.5).round().clip(0, 255).astype('uint8')"
    return "if the values are in that range, save images.astype('uint8')"


def _damaged(path: Path, error: object) -> HemstitchError:
    return HemstitchError(f"{path} is damaged or no file of NumPy ({error}): copy it again, or save it with np.savez")
