"""Latents encoded beforehand: the folder that `encode` writes, its index, and the data set that reads it.

A folder holds `latents-00000.safetensors` …, `labels.safetensors` and, once all of them are complete, `index.json`.
Of K shards, shard k holds the samples k, k + K, k + 2K, …: data sorted by class is dealt out over all shards, so one
that is lost takes a little of every class and not all of a few.

Shape suffixes: N samples, B batch, n samples of a shard, C channels, S size.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import HemstitchError
from ..files import read_json_file
from ..marked import sha256
from ..recipe import from_dict
from .dataset import Dataset

FORMAT = 1
INDEX = "index.json"
LABELS = "labels.safetensors"

Dtype = Literal["float32", "float16", "bfloat16", "uint8"]
Normalise = Literal["measured", "vae", "none"]

# Stored as: torch's type, the type that numpy reads it as (it has no bfloat16), safetensors' name.
DTYPES: dict[str, tuple[torch.dtype, type[np.generic], str]] = {
    "float32": (torch.float32, np.float32, "F32"),
    "float16": (torch.float16, np.float16, "F16"),
    "bfloat16": (torch.bfloat16, np.int16, "BF16"),
    "uint8": (torch.uint8, np.uint8, "U8"),
}

_HASHED = 2**30  # bytes of shards up to which opening a folder checks their hashes
_WORKERS = min(8, os.cpu_count() or 1)
_NAMED = 20  # damaged shards that a message names
_ADVISES = hasattr(mmap, "MADV_WILLNEED")


def shard_name(k: int) -> str:
    return f"latents-{k:05d}.safetensors"


def stored(values: Tensor, dtype: str) -> Tensor:
    """Float32 values as they are stored. uint8 is for pixels that are exactly k / 127.5 - 1."""
    if dtype == "uint8":
        return values.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return values.to(DTYPES[dtype][0])


def restored(values: Tensor) -> Tensor:
    """Stored values as float32."""
    return values.float().div_(127.5).sub_(1) if values.dtype == torch.uint8 else values.float()


@dataclass(frozen=True)
class Encoding:
    """What decides the stored latents: two folders with equal ones hold the same.

    data, data_fingerprint: name of the data, and a hash of its labels, classes and a few of its images. count,
    channels, size: of the latents. per_shard: samples that a shard holds at most. autoencoder: its folder.
    scaling_factor, shift_factor: of its config.
    """

    format: int
    data: str
    data_fingerprint: str
    count: int
    channels: int
    size: int
    flippable: bool
    per_shard: int
    dtype: Dtype
    normalise: Normalise
    seed: int
    autoencoder: str
    autoencoder_fingerprint: str
    scaling_factor: float
    shift_factor: float

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise HemstitchError(f"this hemstitch reads latents of format {FORMAT}, not {self.format!r}")
        for name in ("count", "channels", "size", "per_shard"):
            if getattr(self, name) < 1:
                raise HemstitchError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise HemstitchError(f"seed is at least 0, not {self.seed}")

    @property
    def shards(self) -> int:
        return -(-self.count // self.per_shard)

    def samples(self, k: int) -> range:
        """The indices of the samples that shard k holds, in order."""
        return range(k, self.count, self.shards)

    def difference(self, other: Encoding) -> list[str]:
        """What differs, here first. Where the autoencoder's folder is does not matter, its weights do."""
        ours, theirs = asdict(self), asdict(other)
        differing = [name for name in ours if ours[name] != theirs[name] and name != "autoencoder"]
        return [f"{name} ({ours[name]!r} there, {theirs[name]!r} now)" for name in differing]

    @property
    def digest(self) -> str:
        """Twelve hex digits of all that `difference` compares."""
        data = {name: value for name, value in asdict(self).items() if name != "autoencoder"}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]

    def space(self, mean: Iterable[float], std: Iterable[float]) -> str:
        """The name of the space: equal for latents of one autoencoder, normalised alike."""
        if self.autoencoder_fingerprint == "identity" and self.normalise == "none":
            return self.data
        numbers = json.dumps([list(mean), list(std)])
        return f"latents:{self.autoencoder_fingerprint}:{hashlib.sha256(numbers.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Written:
    """A file: the samples it holds, its size and its hash."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """All about a folder of latents. mean, std: (C,), sample = (latent - mean) / std is what they are read as.

    content: a hash of every image encoded. measured_mean, measured_std: (C,), of all stored latents, flipped ones too.
    """

    encoding: Encoding
    space: str
    content: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    measured_mean: tuple[float, ...]
    measured_std: tuple[float, ...]
    labels: Written
    shards: tuple[Written, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Unknown keys, wrong types, numbers that fit nothing: a HemstitchError that names the file."""
        data = read_json_file(path)
        try:
            lists = {name: data.pop(name, None) for name in ("classes", *_NUMBERS, "shards")}
            numbers: dict[str, Any] = {name: _list(name, lists[name], float) for name in _NUMBERS}
            index = cls(
                classes=_list("classes", lists["classes"], str),
                **numbers,
                shards=tuple(from_dict(Written, item, "shards") for item in _list("shards", lists["shards"], dict)),
                **vars(from_dict(_Single, data, "it")),
            )
            index._check()
        except HemstitchError as error:
            raise HemstitchError(f"{path} is no index of latents that can be used: {error}") from None
        return index

    def _check(self) -> None:
        encoding = self.encoding
        rows = [shard.rows for shard in self.shards]
        if len(rows) != encoding.shards or rows != [len(encoding.samples(k)) for k in range(len(rows))]:
            raise HemstitchError("its shards do not add up to its count")
        for name in _NUMBERS:
            values = getattr(self, name)
            if len(values) != encoding.channels or not all(map(math.isfinite, values)):
                raise HemstitchError(f"{name} is a finite number per channel, not {values}")
        if min(self.std) <= 0:
            raise HemstitchError(f"std is above 0, not {self.std}")
        space = encoding.space(self.mean, self.std)
        if self.space != space:
            raise HemstitchError(f"the space of its mean and std is {space}, not {self.space}")


_NUMBERS = ("mean", "std", "measured_mean", "measured_std")


@dataclass(frozen=True)
class _Single:
    """The fields of an Index that are no lists."""

    encoding: Encoding
    space: str
    content: str
    labels: Written


def _list(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise HemstitchError(f"{name} is a list of {kind.__name__}, not {str(values)[:80]}")
    return tuple(values)


@final
class Latents(Dataset):
    """The latents under `path`, normalised: (C, S, S) float32, where mirrored the encoding of the mirrored image.

    path: a folder that `hemstitch encode` wrote. size: of the latents, refused if theirs is another; 0 is theirs.
    name: the space, "latents:…" of the autoencoder's and the normalisation's hashes; pixels that were not normalised
        keep the name of their data. autoencoder: the folder of the autoencoder that decodes them.

    Reading is memory-mapped: a batch reads its own samples. Any number of threads may read, forked processes too.

    Opening checks that every file is there in its full size and, up to 1 GiB of shards, that none was changed
    (a second per GiB); `verify` does the latter for folders of any size. damaged: the shards found wanting. Where they
    hold up to 1% of the samples, each sample in them is replaced by the next one of its class, always the same, and
    one warning says so; more is an error.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path = Path(path)
        self.index = index = _read_index(path)
        self.encoding = encoding = index.encoding
        if size not in (0, encoding.size):
            raise HemstitchError(f"{path} holds latents of size {encoding.size}, not {size}: leave the size out")
        self.name = index.space
        self.classes = index.classes
        self.channels, self.size = encoding.channels, encoding.size
        self.flippable = encoding.flippable
        self.autoencoder = encoding.autoencoder
        if encoding.normalise != "none":
            self.mean, self.std = index.mean, index.std
            self._mean, self._std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        self.labels = self._read_labels()
        self.damaged: list[Path] = []
        self._stand_in: np.ndarray | None = None
        self._shards: dict[int, _Mapped] = {}
        wrong: dict[int, str] = {}
        for k, written in enumerate(index.shards):
            try:
                self._shards[k] = _Mapped(path / shard_name(k), written, encoding)
            except _DamagedError as error:
                wrong[k] = str(error)
        if sum(shard.bytes for shard in index.shards) <= _HASHED:
            wrong |= self._changed()
        self._leave_out(wrong)

    def images(self, index_B: Tensor) -> Tensor:
        """(B, C, S, S) float32, normalised."""
        return self.mirrored(index_B, torch.zeros(len(index_B), dtype=torch.bool))

    def mirrored(self, index_B: Tensor, flip_B: Tensor) -> Tensor:
        """`images`, the rows where `flip_B` (B,) bool is true being the latents of mirrored images."""
        if not self.flippable and bool(flip_B.any()):
            raise HemstitchError(f"{self.path} holds no mirrored latents, as its data are not to be flipped")
        index = index_B.numpy()
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"indices lie in 0..{len(self) - 1}, not {index.min()}..{index.max()}")
        if self._stand_in is not None:
            index = self._stand_in[index]
        torch_dtype, numpy_dtype, _ = DTYPES[self.encoding.dtype]
        rows = np.empty((len(index), self.channels, self.size, self.size), numpy_dtype)
        K = self.encoding.shards
        asked = [(self._shards[i % K], i // K, flip) for i, flip in zip(index.tolist(), flip_B.tolist(), strict=True)]
        if _ADVISES:
            for shard, row, flip in asked:
                shard.expect(row, flip)
        for i, (shard, row, flip) in enumerate(asked):
            rows[i] = shard.latents[flip][row]
        x0 = restored(torch.from_numpy(rows).view(torch_dtype))
        if self.mean:
            values = x0.numpy()  # torch would share this little work out to threads that other batches need
            values -= self._mean
            values /= self._std
        return x0

    def verify(self) -> None:
        """Read every shard and compare its hash. Damage is treated as when opening: one warning, or HemstitchError."""
        self._leave_out(self._changed())

    def _changed(self) -> dict[int, str]:
        """What is wrong with those of the mapped shards whose hash is another."""

        def check(k: int) -> str:
            file = self.path / shard_name(k)
            try:
                return "" if sha256(file) == self.index.shards[k].sha256 else f"{file} was changed since it was written"
            except OSError as error:
                return f"{file} cannot be read ({error.strerror})"

        with ThreadPoolExecutor(_WORKERS) as pool:
            said = pool.map(check, self._shards)
            return {k: wrong for k, wrong in zip(self._shards, said, strict=True) if wrong}

    def _leave_out(self, wrong: dict[int, str]) -> None:
        """Let other samples of their class stand in for those in damaged shards; raise if they are too many."""
        if not wrong:
            return
        N, K = len(self), self.encoding.shards
        for k in wrong:
            self._shards.pop(k, None)
        lost = [k for k in range(K) if k not in self._shards]
        self.damaged = [self.path / shard_name(k) for k in lost]
        index_N = np.arange(N)
        lost_N = np.isin(index_N % K, lost)
        said = _some(list(wrong.values()))
        remedy = "encode the data again into this folder, which redoes these shards only, or copy them again"
        if lost_N.sum() > N / 100:
            raise HemstitchError(f"{lost_N.sum()} of the {N} samples in {self.path} are damaged: {said}; {remedy}")
        labels_N = self.labels.numpy()
        stand_in = index_N.copy()
        for label in np.unique(labels_N[lost_N]):
            of_class = labels_N == label
            sound = index_N[of_class & ~lost_N]
            if not len(sound):
                raise HemstitchError(f"every sample of class {label} in {self.path} is damaged: {said}; {remedy}")
            affected = index_N[of_class & lost_N]
            stand_in[affected] = sound[np.searchsorted(sound, affected) % len(sound)]
        self._stand_in = stand_in
        warnings.warn(
            f"{lost_N.sum()} of the {N} samples in {self.path} are damaged, and others of their class stand in for "
            f"them: {said}; {remedy}",
            stacklevel=3,
        )

    def _read_labels(self) -> Tensor:
        """(N,) int64, from the file of their own that outlives a damaged shard."""
        file = self.path / LABELS
        remedy = "encode the data again into this folder: complete shards are kept"
        try:
            sound = file.stat().st_size == self.index.labels.bytes and sha256(file) == self.index.labels.sha256
            labels = load_file(file).get("labels") if sound else None
        except (OSError, SafetensorError) as error:
            raise HemstitchError(f"{file} cannot be read ({error}); {remedy}") from None
        if labels is None or labels.shape != (self.encoding.count,) or labels.dtype != torch.int64:
            raise HemstitchError(f"{file} is damaged: it is not what {INDEX} says; {remedy}")
        if int(labels.min()) < 0 or int(labels.max()) >= max(1, len(self.classes)):
            raise HemstitchError(f"{file} holds labels beyond the {len(self.classes)} classes of {INDEX}; {remedy}")
        return labels


class _DamagedError(Exception):
    """A shard that is not what the index says."""


def _read_index(path: Path) -> Index:
    if not path.is_dir():
        raise HemstitchError(f"{path} is no folder: give one that hemstitch encode wrote")
    if not (path / INDEX).exists():
        begun = any(path.glob("latents-*")) or (path / "encoding.json").exists()
        what = "was not finished: run the same hemstitch encode again, and it goes on" if begun else "holds no latents"
        raise HemstitchError(f"{path} has no {INDEX}: it {what}")
    return Index.read(path / INDEX)


class _Mapped:
    """A shard in memory that is read from the disk where it is touched. Raises _DamagedError.

    latents: (n, C, S, S) of the images and, where the data are flippable, of the mirrored ones.
    """

    def __init__(self, file: Path, written: Written, encoding: Encoding) -> None:
        try:
            with file.open("rb") as stream:
                found = os.fstat(stream.fileno()).st_size
                if found != written.bytes:
                    raise _DamagedError(f"{file} has {found} bytes of {written.bytes}")
                self._memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise _DamagedError(f"{file} {what}") from None
        shape = (written.rows, encoding.channels, encoding.size, encoding.size)
        _, numpy_dtype, code = DTYPES[encoding.dtype]
        names = ("x", "flipped") if encoding.flippable else ("x",)
        try:
            (length,) = struct.unpack_from("<Q", self._memory)
            header = json.loads(self._memory[8 : 8 + length])
            if any(header[name]["dtype"] != code or tuple(header[name]["shape"]) != shape for name in names):
                raise ValueError
            self._starts = [8 + length + header[name]["data_offsets"][0] for name in names]
            count = math.prod(shape)
            self.latents = [np.frombuffer(self._memory, numpy_dtype, count, at).reshape(shape) for at in self._starts]
        except (struct.error, ValueError, KeyError, TypeError, IndexError):
            raise _DamagedError(f"{file} does not hold the tensors that {INDEX} says") from None
        self._bytes = self.latents[0][0].nbytes
        if _ADVISES:  # else the system reads far beyond every sample
            self._memory.madvise(mmap.MADV_RANDOM)

    def expect(self, row: int, flip: bool) -> None:
        """Let the system fetch a latent while others are fetched: from a cold disk many at once take as long as one."""
        start = self._starts[flip] + row * self._bytes
        page = start - start % mmap.PAGESIZE
        self._memory.madvise(mmap.MADV_WILLNEED, page, start + self._bytes - page)


def _some(said: list[str]) -> str:
    """The first few of many complaints."""
    return ", ".join(said[:_NAMED]) + (f" and {len(said) - _NAMED} more" if len(said) > _NAMED else "")
