"""Features of a set of pictures, kept on disk and mapped from there, so that memory does not grow with the set.

Shape suffixes: N pictures, F features.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import HemstitchError
from ..files import discard, mapped_tensors, read_json_file, save_tensors, write_atomic, write_text
from ..marked import sha256
from ..recipe import from_dict
from ..share import Pace, Progress
from .extractors import Extractor
from .frechet import Accumulator, Moments
from .images import ContentHash, Images

INDEX = "features.json"
PER_SHARD = 2048  # pictures


@dataclass(frozen=True)
class Maker:
    """Which network made features: only those of equal makers are compared."""

    name: str
    version: str
    hash: str

    @classmethod
    def of(cls, extractor: Extractor) -> Maker:
        return cls(extractor.name, extractor.version, extractor.hash)

    def __str__(self) -> str:
        return f"{self.name} {self.hash} ({self.version})"


@dataclass(frozen=True)
class Index:
    """What lies beside the shards.

    content: a hash of the pictures, see `ContentHash`. size: (height, width). shards: the sha256 of each file; empty
    where others vouch for them.
    """

    maker: Maker
    content: str
    count: int
    size: tuple[int, int]
    shards: tuple[str, ...] = ()


class MappedRows:
    """(N, F) float32 rows that lie in several files, one after the other."""

    def __init__(self, parts: Sequence[NDArray[np.float32]]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()
        self.shape = (self._starts[-1], parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """A slice of step 1, or an int64 array of rows."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise HemstitchError("rows are read one after the other")
            return self._slice(start, max(start, stop))
        rows = np.asarray(index)
        out = np.empty((len(rows), self.shape[1]), np.float32)
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        for k in np.unique(part_of):
            chosen = part_of == k
            out[chosen] = self._parts[k][rows[chosen] - self._starts[k]]
        return out

    def head(self, count: int) -> MappedRows:
        """The first so many."""
        pairs = zip(self._parts, self._starts, strict=False)
        return MappedRows([part[: count - start] for part, start in pairs if start < count])

    def _slice(self, start: int, stop: int) -> NDArray[np.float32]:
        if start >= stop:
            return np.empty((0, self.shape[1]), np.float32)
        first = bisect.bisect_right(self._starts, start) - 1
        found = []
        for k in range(first, len(self._parts)):
            begin = self._starts[k]
            if begin >= stop:
                break
            found.append(self._parts[k][max(0, start - begin) : stop - begin])
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one set under one extractor.

    name: for people. rows: what the extractor gives ("pool", "spatial", "logits"), (N, F) each. labels: (N,) int64 or
    None. seed: a text that is equal for sets whose pictures i share their seed and label; "" where unknown.
    """

    name: str
    index: Index
    rows: Mapping[str, MappedRows]
    labels: NDArray[np.int64] | None = None
    seed: str = ""

    def __len__(self) -> int:
        return self.index.count

    @cached_property
    def _moments(self) -> dict[str, Moments]:
        return {}

    def head(self, count: int | None) -> FeatureSet:
        """Those of the first so many pictures; of all for None."""
        if count is None or count >= len(self):
            return self
        index = replace(self.index, count=count, content=f"{self.index.content}, the first {count}")
        rows = {output: rows.head(count) for output, rows in self.rows.items()}
        return FeatureSet(self.name, index, rows, None if self.labels is None else self.labels[:count], self.seed)

    def moments(self, output: str) -> Moments:
        """Of one output's rows, computed once."""
        if output not in self._moments:
            self._moments[output] = Moments.streamed(self.rows[output])
        return self._moments[output]


class Extraction(NamedTuple):
    """How far an extraction is, and the features once it is done."""

    progress: Progress
    features: FeatureSet | None = None


def extracted(
    images: Images,
    extractor: Extractor,
    out: Path,
    *,
    name: str | None = None,
    labels: Tensor | None = None,
    seed: str = "",
    batch: int = 64,
    count: int | None = None,
) -> Iterator[Extraction]:
    """Write the features of the first `count` pictures (all) into the folder `out`, yielding how far it is.

    Raises HemstitchError as `Images` and `Extractor` do, and when the disk is full.
    """
    total = len(images) if count is None else min(count, len(images))
    maker, hashed = Maker.of(extractor), ContentHash(images.size)
    shards: list[str] = []
    for leftover in (*out.glob("[0-9]*.safetensors"), *out.glob(".*.tmp"), out / INDEX):
        discard(leftover)
    done = 0
    pace = Pace(total, 0)
    parts: list[dict[str, Tensor]] = []
    per_shard = max(1, PER_SHARD // batch) * batch
    for pictures in images.batches(batch):
        pictures = pictures[: total - done]
        hashed.update(pictures)
        parts.append(extractor(pictures))
        done += len(pictures)
        pace.add(len(pictures))
        if done % per_shard == 0 or done == total:
            path = out / f"{len(shards):05d}.safetensors"
            _save(path, parts)
            shards.append(sha256(path))
            parts = []
        yield Extraction(pace.read())
        if done == total:
            break
    index = Index(maker, hashed.hexdigest(), total, images.size, tuple(shards))
    write_text(out / INDEX, json.dumps(asdict(index), indent=1))
    told = images.labels if labels is None else labels
    features = stored(out, images.name if name is None else name, told, seed)
    yield Extraction(pace.read(), features)


def moments_of(images: Images, extractor: Extractor, batch: int = 250) -> Moments:
    """Of the pooled features of all pictures, nothing kept."""
    total: Accumulator | None = None
    for pictures in images.batches(batch):
        pool = extractor(pictures)["pool"].flatten(1).numpy()
        total = (total or Accumulator.empty(pool.shape[1])).updated(pool)
    assert total is not None  # sets have pictures
    return total.moments()


def _save(path: Path, parts: Sequence[Mapping[str, Tensor]]) -> None:
    tensors = {key: torch.cat([part[key].flatten(1) for part in parts]).contiguous() for key in parts[0]}
    try:
        write_atomic(path, lambda aside: save_tensors(aside, tensors))
    except OSError as error:
        raise HemstitchError(f"{path} could not be written ({error}): make room, or give another --cache") from error


def stored(out: Path, name: str, labels: Tensor | None = None, seed: str = "") -> FeatureSet:
    """The features that `extracted` wrote into a folder."""
    path = out / INDEX
    try:
        index = cast(Index, from_dict(Index, read_json_file(path), str(path)))
    except HemstitchError as error:
        raise HemstitchError(f"{out} holds no features that can be read: {error}") from None
    paths = [out / f"{k:05d}.safetensors" for k in range(len(index.shards))]
    for path, expected in zip(paths, index.shards, strict=True):
        if not path.is_file() or sha256(path) != expected:
            raise HemstitchError(f"{path} is not what was written: remove {out}, and extract the features again")
    return read_shards(paths, index, name, labels, seed)


def read_shards(
    paths: Sequence[Path], index: Index, name: str, labels: Tensor | None = None, seed: str = ""
) -> FeatureSet:
    """Features that lie in safetensors files, one after the other."""
    shards = [mapped_tensors(path) for path in paths]
    outputs = [key for key in ("pool", "spatial", "logits") if all(key in shard for shard in shards)]
    if not shards or not outputs:
        raise HemstitchError(f"{name} has no features where they should be: extract them again")
    rows = {key: MappedRows([shard[key].reshape(len(shard[key]), -1) for shard in shards]) for key in outputs}
    lengths = {len(r) for r in rows.values()} | {index.count}
    if len(lengths) > 1:
        raise HemstitchError(f"{name} has {sorted(lengths)} rows of features: its files are not of one set")
    chosen = None if labels is None else labels[: index.count].numpy()
    return FeatureSet(name, index, rows, chosen, seed)
