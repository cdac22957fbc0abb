"""Encode a data set once, for training on its latents: a generator that writes shards and yields how far it is.

A shard is written aside, synced and renamed, then a JSON file beside it says that it is complete; `index.json` comes
last. Whatever is killed in between, the same call goes on with the shards that are missing and ends in the same bytes.
Processes started by a launcher share the shards out among them through the folder alone.

Shape suffixes: B batch, n samples of a shard, C channels, S size.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from . import seeds
from .autoencoder import Autoencoder, Identity, open_autoencoder
from .data.dataset import Dataset
from .data.latents import (
    DTYPES,
    FORMAT,
    INDEX,
    LABELS,
    Dtype,
    Encoding,
    Index,
    Latents,
    Normalise,
    Written,
    restored,
    shard_name,
    stored,
)
from .errors import HemstitchError
from .files import discard, read_json_file, save_tensors, write_atomic, write_text
from .marked import sha256
from .recipe import from_dict
from .share import Pace, Place, Progress, await_file, device_of, gather, place, present

ENCODING = "encoding.json"

_PROBED = 16  # images that tell one data set from another before any is encoded
_WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Shard:
    """What the file beside a shard says: that it is complete, of which encoding, and its part in what all add up to.

    content: sha256 of the images that went in. sums, squares: per channel, of the stored values and their squares,
    exact (see `exact_sum`).
    """

    encoding: str
    written: Written
    content: str
    sums: tuple[tuple[float, ...], ...]
    squares: tuple[tuple[float, ...], ...]

    @classmethod
    def read(cls, path: Path) -> Shard:
        data = read_json_file(path)
        try:
            written = cast(Written, from_dict(Written, data["written"], "written"))
            sums, squares = (tuple(tuple(map(float, c)) for c in data[name]) for name in ("sums", "squares"))
            return cls(str(data["encoding"]), written, str(data["content"]), sums, squares)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise HemstitchError(f"{path} does not say what a shard holds: {error}") from None


def encode(
    data: Dataset,
    out: Path,
    *,
    autoencoder: str = "identity",
    batch: int = 64,
    per_shard: int = 4096,
    dtype: Dtype = "float32",
    normalise: Normalise | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    patience: float = 600.0,
) -> Iterator[Progress]:
    """Write the latents of every image, and of every mirrored one where the data allow it, into the folder `out`.

    data: images (C, S, S) in -1..1. autoencoder: a folder, see `open_autoencoder`, or "identity". batch: images
    encoded at a time. per_shard: samples in a file at most; a shard is held in memory. dtype: what latents are stored
    as; "uint8" is for the identity and 8-bit images, and exact. normalise: what samples are read as.
    "measured" gives every channel mean 0 and standard deviation 1 over all that is stored (a channel that is constant
    is only shifted), "vae" is the autoencoder's published scaling, as x · 0.18215, "none" leaves them alone; None is
    "none" for the identity and "measured" for the rest. seed: of the posterior's noise, which is keyed by (seed,
    index, flip). device: None is a GPU if there is one.

    What is stored does not depend on restarts or the number of processes, nor, but for the rounding of kernels, on
    the batch. Statistics do not depend on the shards either.

    Called again with the same settings, it keeps the shards that are complete, whose hashes it checks, and writes the
    rest; under other settings it raises. RANK and WORLD_SIZE, as torchrun and accelerate launch set them, make process
    r write the shards r, r + W, …; process 0 then waits for the others and writes the index. It gives up when for
    `patience` seconds no new shard has appeared and no other process has shown that it lives.

    Raises HemstitchError for settings that do not fit, and when the disk is full: complete shards stay. Arguments are
    checked when the first value is asked for.
    """
    out = Path(out)
    here = place()
    if batch < 1:
        raise HemstitchError(f"batch is the number of images encoded at a time, at least 1, not {batch}")
    net = open_autoencoder(autoencoder, device_of(device))
    encoding = _encoding(data, net, per_shard, dtype, normalise, seed)
    _begin(out, encoding, here, patience)
    with present(out, here):
        yield from _shards(data, out, net, encoding, here, batch, patience)


def _shards(
    data: Dataset, out: Path, net: Autoencoder, encoding: Encoding, here: Place, batch: int, patience: float
) -> Iterator[Progress]:
    """Write those of this process that are missing; process 0 then waits for the others'."""
    share = here.share(encoding.shards)
    complete = _complete(out, share, encoding)
    missing = [k for k in share if k not in complete]
    if missing:
        (out / INDEX).unlink(missing_ok=True)  # it is of shards that are about to be replaced
    pace = Pace(_images(encoding, share), _images(encoding, complete))
    for k, rows, images, content in _ahead(data, encoding, missing, batch):
        if rows.start == 0:
            writer = _Writer(encoding, k)
        writer.add(net, images, rows)
        saved = None
        if rows.stop == len(writer.index):
            complete[k], saved = writer.save(out, data.labels, content)
        pace.add(len(images))
        yield pace.read(saved)
    if here.rank == 0:
        look = partial(_complete, out, encoding=encoding)
        for waiting in gather(encoding.shards, complete, look, patience, out, shard_name, out, here):
            yield pace.read(waiting=waiting)
        _finish(out, data, net, encoding, [complete[k] for k in range(encoding.shards)])
    if not missing:
        yield pace.read()


def _images(encoding: Encoding, shards: Iterable[int]) -> int:
    return sum(len(encoding.samples(k)) for k in shards)


def _encoding(
    data: Dataset, net: Autoencoder, per_shard: int, dtype: Dtype, normalise: Normalise | None, seed: int
) -> Encoding:
    """The settings, checked against the data."""
    if isinstance(data, Latents) or data.mean:
        raise HemstitchError(f"{data.name} holds samples encoded or normalised already: encode the images themselves")
    if not len(data):
        raise HemstitchError(f"{data.name} holds no images to encode")
    is_identity = isinstance(net, Identity)
    if normalise is None:
        normalise = "none" if is_identity else "measured"
    if normalise not in ("measured", "vae", "none"):
        raise HemstitchError(f"normalise is 'measured', 'vae' or 'none', not {normalise!r}")
    if normalise == "vae" and not net.mean:
        raise HemstitchError(f"{net.name} has no published normalisation: normalise is 'measured' or 'none' for it")
    if dtype not in DTYPES:
        raise HemstitchError(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    if dtype == "uint8" and not is_identity:
        raise HemstitchError("dtype 'uint8' stores pixels, of autoencoder 'identity'; latents are 'float16' and wider")
    channels, size = net.shape(data.channels, data.size)
    return Encoding(
        format=FORMAT,
        data=data.name,
        data_fingerprint=_fingerprint(data),
        count=len(data),
        channels=channels,
        size=size,
        flippable=data.flippable,
        per_shard=per_shard,
        dtype=dtype,
        normalise=normalise,
        seed=seed,
        autoencoder=net.name,
        autoencoder_fingerprint=net.fingerprint,
        scaling_factor=net.scaling_factor,
        shift_factor=net.shift_factor,
    )


def _fingerprint(data: Dataset) -> str:
    """Twelve hex digits of the labels, the classes' names and a few images spread over the data."""
    N = len(data)
    index = torch.arange(min(N, _PROBED)) * N // min(N, _PROBED)
    digest = hashlib.sha256(json.dumps([data.channels, data.size, list(data.classes)]).encode())
    digest.update(data.labels.contiguous().numpy().data)
    digest.update(data.images(index).contiguous().numpy().data)
    return digest.hexdigest()[:12]


def _begin(out: Path, encoding: Encoding, here: Place, patience: float) -> None:
    """Make the folder one of this encoding, or find that it is another's. Leftovers of killed writes go."""
    settings = out / ENCODING
    if out.exists() and not out.is_dir():
        raise HemstitchError(f"{out} is a file: give a folder to write latents to")
    if here.rank == 0 and not settings.exists():
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise HemstitchError(f"{out} is not empty and holds no latents: choose another folder")
        try:
            write_text(settings, json.dumps(asdict(encoding), indent=1))
        except OSError as error:
            raise _unwritten(settings, error) from error
    await_file(settings, patience)
    try:
        there = cast(Encoding, from_dict(Encoding, read_json_file(settings), "it"))
    except HemstitchError as error:
        raise HemstitchError(f"{settings} does not say how the latents here were encoded: {error}") from None
    differing = there.difference(encoding)
    if differing:
        raise HemstitchError(
            f"{out} holds latents encoded otherwise; these differ: {', '.join(differing)}. Choose another folder, or "
            "remove that one"
        )
    for leftover in out.glob(".*.tmp"):
        of_shard = re.match(r"\.latents-(\d+)\.", leftover.name)
        if (int(of_shard[1]) % here.world if of_shard else 0) == here.rank:
            discard(leftover)


class _Batch(NamedTuple):
    """Images (B, C, S, S) of some rows of a shard, and the hash of the shard's images up to and with these."""

    shard: int
    rows: range
    images: Tensor
    content: str


def _ahead(data: Dataset, encoding: Encoding, shards: list[int], batch: int) -> Iterator[_Batch]:
    """The images of some shards, in order; the next ones are read while the caller has these."""
    digests = {k: hashlib.sha256() for k in shards}

    def read(k: int, start: int) -> _Batch:
        index = encoding.samples(k)[start : start + batch]
        images = data.images(torch.tensor(index)).contiguous()
        digests[k].update(images.numpy().data)
        return _Batch(k, range(start, start + len(index)), images, digests[k].hexdigest())

    work = ((k, start) for k in shards for start in range(0, len(encoding.samples(k)), batch))
    with ThreadPoolExecutor(1) as pool:
        coming: Future[_Batch] | None = None
        for asked in work:
            coming, ready = pool.submit(read, *asked), coming
            if ready:
                yield ready.result()
        if coming:
            yield coming.result()


class _Writer:
    """A shard in the making."""

    def __init__(self, encoding: Encoding, k: int) -> None:
        self.encoding, self.k = encoding, k
        self.index = encoding.samples(k)
        shape = (len(self.index), encoding.channels, encoding.size, encoding.size)
        names = ("x", "flipped") if encoding.flippable else ("x",)
        self.latents = {name: torch.empty(shape, dtype=DTYPES[encoding.dtype][0]) for name in names}

    def add(self, net: Autoencoder, images: Tensor, rows: range) -> None:
        """Encode the images of these rows. A mirrored image is encoded anew: its latents are not mirrored ones."""
        key_B2 = seeds.keys([(self.encoding.seed, i) for i in self.index[rows.start : rows.stop]])
        try:
            for name, latents in self.latents.items():
                flipped = name == "flipped"
                raw = net.encode(images.flip(-1) if flipped else images, key_B2, flipped)
                latents[rows.start : rows.stop] = self._stored(raw, rows).cpu()
        except torch.OutOfMemoryError as error:
            raise HemstitchError(f"the device has no room for {len(images)} images at a time: lower batch") from error

    def _stored(self, raw: Tensor, rows: range) -> Tensor:
        values = stored(raw, self.encoding.dtype)
        if self.encoding.dtype == "uint8":
            if not torch.equal(restored(values), raw):
                raise HemstitchError(f"the images of {self.encoding.data} are not 8-bit: store them as 'float32'")
        elif not values.isfinite().all():
            bad = self.index[rows.start + int((~values.isfinite()).flatten(1).any(1).nonzero()[0])]
            fix = "check that image" if not raw.isfinite().all() else "store them as 'bfloat16' or 'float32'"
            raise HemstitchError(f"the latents of sample {bad} are not finite as {self.encoding.dtype}: {fix}")
        return values

    def save(self, out: Path, labels: Tensor, content: str) -> tuple[Shard, Path]:
        """Write the shard, then the file that says it is complete."""
        path = out / shard_name(self.k)
        tensors = {**self.latents, "labels": labels[torch.tensor(self.index)].to(torch.int64)}
        told = {"hemstitch": json.dumps({"format": FORMAT, "shard": self.k, "encoding": self.encoding.digest})}
        sums, squares = channel_sums(self.latents.values())
        try:
            write_atomic(path, lambda aside: save_tensors(aside, tensors, told))
            written = _written(path, len(self.index))
            shard = Shard(self.encoding.digest, written, content, sums, squares)
            write_text(path.with_suffix(".json"), json.dumps(asdict(shard), indent=1))
        except OSError as error:
            raise _unwritten(path, error) from error
        return shard, path


def exact_sum(values: Iterable[float]) -> tuple[float, ...]:
    """The sum of many numbers without rounding: floats, ever smaller, whose exact sum it is (Shewchuk 1997).

    They depend on nothing but that sum, so it may be taken in parts and in any order.
    """
    terms = list(values)
    parts: list[float] = []
    while rest := math.fsum([*terms, *(-part for part in parts)]):
        parts.append(rest)
    return tuple(parts)


def channel_sums(
    tensors: Iterable[Tensor],
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Per channel, the sum of stored values (n, C, S, S) and of their squares: float64 per image, exact beyond."""
    of_values: list[np.ndarray] = []
    of_squares: list[np.ndarray] = []
    for tensor in tensors:
        for part in torch.split(tensor, 256):
            values_nCK = restored(part).flatten(2).double().numpy()
            of_values.append(values_nCK.sum(2))
            of_squares.append(np.square(values_nCK, out=values_nCK).sum(2))
    sums, squares = (
        tuple(exact_sum(column.tolist()) for column in np.concatenate(parts).T) for parts in (of_values, of_squares)
    )
    return sums, squares


def _statistics(shards: list[Shard], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of `count` values each."""
    means, stds = [], []
    for c in range(len(shards[0].sums)):
        total, square = (
            sum(map(Fraction, exact_sum(part for parts in of_shards for part in parts[c])), Fraction())
            for of_shards in ([shard.sums for shard in shards], [shard.squares for shard in shards])
        )
        variance = square / count - (total / count) ** 2
        means.append(float(total / count))
        stds.append(math.sqrt(max(0.0, float(variance))))
    return tuple(means), tuple(stds)


def _complete(out: Path, asked: Collection[int], encoding: Encoding) -> dict[int, Shard]:
    """Those of the shards asked for that are there, of this encoding, and what was written."""

    def check(k: int) -> Shard | None:
        path = out / shard_name(k)
        try:
            shard = Shard.read(path.with_suffix(".json"))
            is_ours = shard.encoding == encoding.digest and path.stat().st_size == shard.written.bytes
            return shard if is_ours and sha256(path) == shard.written.sha256 else None
        except (HemstitchError, OSError):
            return None

    with ThreadPoolExecutor(_WORKERS) as pool:
        return {k: shard for k, shard in zip(asked, pool.map(check, asked), strict=True) if shard}


def _finish(out: Path, data: Dataset, net: Autoencoder, encoding: Encoding, shards: list[Shard]) -> None:
    """Write the labels and the index."""
    values = encoding.count * (1 + encoding.flippable) * encoding.size**2
    measured = _statistics(shards, values)
    ones, zeros = (1.0,) * encoding.channels, (0.0,) * encoding.channels
    mean, std = {
        "measured": (measured[0], tuple(s or 1.0 for s in measured[1])),
        "vae": (net.mean, net.std),
        "none": (zeros, ones),
    }[encoding.normalise]
    labels = {"labels": data.labels.to(torch.int64).contiguous()}
    path = out / LABELS
    try:
        write_atomic(path, lambda aside: save_tensors(aside, labels))
        index = Index(
            encoding=encoding,
            space=encoding.space(mean, std),
            content=hashlib.sha256("".join(shard.content for shard in shards).encode()).hexdigest(),
            classes=tuple(data.classes),
            mean=mean,
            std=std,
            measured_mean=measured[0],
            measured_std=measured[1],
            labels=_written(path, encoding.count),
            shards=tuple(shard.written for shard in shards),
        )
        write_text(out / INDEX, index.to_json())
    except OSError as error:
        raise _unwritten(out / INDEX, error) from error


def _written(path: Path, rows: int) -> Written:
    return Written(rows, path.stat().st_size, sha256(path))


def _unwritten(path: Path, error: OSError) -> HemstitchError:
    return HemstitchError(
        f"{path} could not be written ({error}); complete shards stay. Make room and run the same again, which goes on "
        "from there"
    )
