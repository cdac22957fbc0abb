"""How samples lie in files: pictures, one array, tar shards, latents, or features alone.

A format turns each shard's batches into files, and says whether those of a shard are what was written. Bytes depend
on the images alone: no times, no names of machines.

Shape suffixes: B batch, n images of a shard, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import HemstitchError, MissingExtraError
from ..files import member_offset, save_tensors, write_atomic
from ..marked import sha256
from .settings import Settings

WORKERS = min(8, os.cpu_count() or 1)
_STAMP = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say


class File(NamedTuple):
    """A file as it was written."""

    bytes: int
    sha256: str

    def is_sound(self, path: Path) -> bool:
        try:
            return path.stat().st_size == self.bytes and sha256(path) == self.sha256
        except OSError:
            return False


class Batch(NamedTuple):
    """samples: (B, C, S, S), as the network has them. pixels: uint8 (B, 1 or 3, H, W), or None for latents."""

    samples: Tensor
    pixels: Tensor | None


@dataclass(frozen=True)
class Folder:
    """Where a format writes, and of what. labels: (count,) or None."""

    out: Path
    settings: Settings
    labels: Tensor | None

    def labels_of(self, rows: range) -> list[int] | None:
        return None if self.labels is None else self.labels[rows.start : rows.stop].tolist()


class Format(ABC):
    """One way of keeping samples."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.out, self.settings = folder.out, folder.settings

    def taken(self, batch: Batch) -> Any:
        """What is kept of a batch until its shard is written, on the host."""
        if batch.pixels is None:
            raise HemstitchError("these samples are latents, not pictures: decode them (--vae FOLDER), or keep latents")
        return batch.pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    @abstractmethod
    def names(self, k: int) -> list[str]:
        """The files of shard k, by their path under the folder."""

    @abstractmethod
    def write(self, k: int, rows: range, kept: list[Any]) -> dict[str, File]:
        """Write shard k. Returns its files, those of `names`."""

    def is_sound(self, k: int, files: Mapping[str, File], content: str) -> bool:
        """Whether what was written is still there. content: the hash of the shard's images, see `content_of`."""
        return all(name in files and files[name].is_sound(self.out / name) for name in self.names(k))

    def finish(self, before: Mapping[str, File]) -> dict[str, File]:
        """Once every shard is sound: files of the whole. before: what they were when they were last finished."""
        return {}


class Pictures(Format):
    """000000.png …, one a sample. Not synced one by one: what a power cut takes is found damaged and made again."""

    def names(self, k: int) -> list[str]:
        return [f"{i:06d}.png" for i in self.settings.rows(k)]

    def write(self, k: int, rows: range, kept: list[Any]) -> dict[str, File]:
        pixels_nHWC = np.concatenate(kept)

        def one(i: int) -> tuple[str, File]:
            name, data = f"{rows[i]:06d}.png", encoded(pixels_nHWC[i])
            aside = self.out / f".{k:05d}.{name}.{os.getpid()}.tmp"
            aside.write_bytes(data)
            aside.replace(self.out / name)
            return name, File(len(data), hashlib.sha256(data).hexdigest())

        with ThreadPoolExecutor(WORKERS) as pool:
            return dict(pool.map(one, range(len(rows))))


class Array(Format):
    """samples.npz in the ADM evaluator's layout: `arr_0` uint8 (N, H, W, 3), grey repeated, and `arr_1` the labels.

    Shards are parts until all are there.
    """

    def names(self, k: int) -> list[str]:
        return [f"parts/{k:05d}.npy"]

    @property
    def path(self) -> Path:
        return self.out / "samples.npz"

    def part(self, k: int) -> Path:
        return self.out / self.names(k)[0]

    def taken(self, batch: Batch) -> Any:
        pixels = super().taken(batch)
        return pixels if pixels.shape[-1] == 3 else pixels.repeat(3, -1)

    def write(self, k: int, rows: range, kept: list[Any]) -> dict[str, File]:
        path, pixels_nHWC = self.part(k), np.concatenate(kept)

        def save(aside: Path) -> None:
            with aside.open("wb") as stream:
                np.save(stream, pixels_nHWC)

        write_atomic(path, save)
        return {str(path.relative_to(self.out)): File(path.stat().st_size, sha256(path))}

    def is_sound(self, k: int, files: Mapping[str, File], content: str) -> bool:
        if super().is_sound(k, files, content):
            return True
        pixels = self._assembled(k)
        if pixels is None or (not (pixels == pixels[..., :1]).all() and self.settings.channels == 1):
            return False
        return content_of([pixels[..., : self.settings.channels]]) == content

    def _assembled(self, k: int) -> np.ndarray | None:
        """Shard k's images in the finished file, if it is one."""
        try:
            whole = stored_array(self.path, "arr_0.npy")
        except (OSError, ValueError, zipfile.BadZipFile, KeyError):
            return None
        rows = self.settings.rows(k)
        return whole[rows.start : rows.stop] if len(whole) == self.settings.count and whole.ndim == 4 else None

    def finish(self, before: Mapping[str, File]) -> dict[str, File]:
        parts = [self.part(k) for k in range(self.settings.shards)]
        known = before.get(self.path.name)
        if known is None or any(part.exists() for part in parts) or not known.is_sound(self.path):
            write_atomic(self.path, self._assemble)
            for part in parts:
                part.unlink(missing_ok=True)
            if (self.out / "parts").is_dir() and not any((self.out / "parts").iterdir()):
                (self.out / "parts").rmdir()
        return {self.path.name: File(self.path.stat().st_size, sha256(self.path))}

    def _assemble(self, aside: Path) -> None:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy", _STAMP), "w", force_zip64=True) as stream:
                for k in range(self.settings.shards):
                    part = self.part(k)
                    pixels = np.load(part, mmap_mode="r", allow_pickle=False) if part.exists() else self._assembled(k)
                    if pixels is None:
                        raise HemstitchError(f"{part} has gone: run the same again, which makes it anew")
                    if k == 0:
                        _header(stream, (self.settings.count, *pixels.shape[1:]), "|u1")
                    stream.write(np.ascontiguousarray(pixels).data)
            if self.folder.labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy", _STAMP), "w", force_zip64=True) as stream:
                    _header(stream, (self.settings.count,), "<i8")
                    stream.write(self.folder.labels.numpy().astype("<i8").tobytes())


class Tars(Format):
    """shard-00000.tar …, as webdataset reads them: 000000.png, and 000000.cls where there are labels."""

    def names(self, k: int) -> list[str]:
        return [f"shard-{k:05d}.tar"]

    def write(self, k: int, rows: range, kept: list[Any]) -> dict[str, File]:
        pixels_nHWC, labels = np.concatenate(kept), self.folder.labels_of(rows)
        with ThreadPoolExecutor(WORKERS) as pool:
            pictures = list(pool.map(encoded, pixels_nHWC))
        name = self.names(k)[0]

        def save(aside: Path) -> None:
            with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as archive:
                for i, picture in zip(rows, pictures, strict=True):
                    _add(archive, f"{i:06d}.png", picture)
                    if labels is not None:
                        _add(archive, f"{i:06d}.cls", str(labels[i - rows.start]).encode())

        write_atomic(self.out / name, save)
        return {name: File((self.out / name).stat().st_size, sha256(self.out / name))}


class Latents(Format):
    """latents-00000.safetensors …: `x0` (n, C, S, S) float32 as the model has them, and `labels` (n,)."""

    def names(self, k: int) -> list[str]:
        return [f"latents-{k:05d}.safetensors"]

    def taken(self, batch: Batch) -> Any:
        return batch.samples.float().cpu()

    def write(self, k: int, rows: range, kept: list[Any]) -> dict[str, File]:
        tensors = {"x0": torch.cat(kept).contiguous()}
        if self.folder.labels is not None:
            tensors["labels"] = self.folder.labels[rows.start : rows.stop].clone()
        return save_shard(self.out, self.names(k)[0], tensors)


class Extracts(Protocol):
    """What makes features of pictures, see `evaluate.extractors`."""

    name: str

    def __call__(self, images: Tensor, /) -> Mapping[str, Tensor]: ...


class Features(Format):
    """features/NAME/00000.safetensors …: what extractors make of the pictures, which need not be kept."""

    extractors: Sequence[Extracts] = ()

    def names(self, k: int) -> list[str]:
        return [f"features/{name}/{k:05d}.safetensors" for name, _, _ in self.settings.extractors]

    def taken(self, batch: Batch) -> Any:
        super().taken(batch)
        assert batch.pixels is not None
        pixels = batch.pixels if batch.pixels.shape[1] == 3 else batch.pixels.expand(-1, 3, -1, -1)
        return {extractor.name: dict(extractor(pixels)) for extractor in self.extractors}

    def write(self, k: int, rows: range, kept: list[Any]) -> dict[str, File]:
        files: dict[str, File] = {}
        for name, first in kept[0].items():
            tensors = {out: torch.cat([part[name][out].flatten(1) for part in kept]).contiguous() for out in first}
            files |= save_shard(self.out, f"features/{name}/{k:05d}.safetensors", tensors)
        return files


def content_of(kept: list[Any]) -> str:
    """The sha256 of a shard's pixels, uint8 (n, H, W, C), or latents."""
    digest = hashlib.sha256()
    for part in kept:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def save_shard(out: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, File]:
    path = out / name
    write_atomic(path, lambda aside: save_tensors(aside, tensors, {"hemstitch": json.dumps({"shard": name})}))
    return {name: File(path.stat().st_size, sha256(path))}


def encoded(pixels_HWC: np.ndarray) -> bytes:
    """A picture as PNG."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "data") from None
    out = io.BytesIO()
    Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC).save(out, "PNG")
    return out.getvalue()


def stored_array(path: Path, member: str) -> np.ndarray:
    """An array that lies in an .npz without compression, mapped from the file. Never unpickled.

    Raises OSError, KeyError, ValueError or BadZipFile for anything else.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member} of {path} is compressed")
    with path.open("rb") as file:
        file.seek(member_offset(path, info))
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
        if dtype.hasobject or fortran:
            raise ValueError(f"{member} of {path} is not a plain array of numbers")
        return np.memmap(path, dtype, "r", file.tell(), shape)


def _header(stream: IO[bytes], shape: tuple[int, ...], dtype: str) -> None:
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))


FORMATS: dict[str, Callable[[Folder], Format]] = {
    "png": Pictures,
    "npz": Array,
    "webdataset": Tars,
    "latents": Latents,
    "features": Features,
}
