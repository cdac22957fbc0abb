"""What decides the images of a folder of samples, written into it, so that nothing else is ever mixed in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from .. import seeds
from ..errors import HemstitchError
from ..files import read_json_file
from ..recipe import from_dict

VERSION = "hemstitch samples 1"
LABELS = 2**21 + 2  # the stream of seeds.py that random labels are drawn from

Quantise = Literal["floor", "round"]


@dataclass(frozen=True)
class Settings:
    """All that the images depend on, and how they lie in files.

    model: see `identity`. sampler: with its options. count: images. labels: a hash of them, "" where there are none.
    batch: images sampled at a time; with another one they are equal up to rounding only. per_shard: images in a unit of
    work. decoder: see `Decoder.told`, "" for none. quantise: how -1..1 becomes 0..255, "" for latents. extractors:
    (name, version, hash) of those whose features are kept.
    """

    version: str
    model: str
    sampler: str
    steps: int
    guidance: str
    guidance_channels: int | None
    guidance_interval: tuple[float, float] | None
    grid: str
    seed: int
    count: int
    labels: str
    batch: int
    per_shard: int
    channels: int
    size: int
    decoder: str
    quantise: str
    formats: tuple[str, ...]
    extractors: tuple[tuple[str, str, str], ...]

    @property
    def shards(self) -> int:
        return -(-self.count // self.per_shard)

    def rows(self, k: int) -> range:
        """The images of shard k."""
        return range(k * self.per_shard, min(self.count, (k + 1) * self.per_shard))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> Settings:
        return cast(Settings, from_dict(cls, read_json_file(path), str(path)))

    def difference(self, other: Settings) -> list[str]:
        """The fields that differ, each with this one's value and the other's."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name} {mine!r} and {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


def chosen_labels(asked: str | Sequence[int] | Tensor | None, classes: int, count: int, seed: int) -> Tensor | None:
    """(count,) int64 labels, or None for an unconditional model.

    asked: None or "balanced" is all classes in turn, as often each, but for one; "random" draws each uniformly, keyed
    by (seed, index); numbers repeat as needed.
    """
    if not classes:
        if asked is not None:
            raise HemstitchError("this model is unconditional: leave the labels out")
        return None
    if asked is None or isinstance(asked, str):
        if asked == "random":
            return seeds.integers(seeds.keys([(seed, i) for i in range(count)]), LABELS, classes)
        if asked not in (None, "balanced"):
            raise HemstitchError(f"labels are 'balanced', 'random' or numbers, not {asked!r}")
        return torch.arange(count) % classes
    given = torch.as_tensor(asked).reshape(-1)
    if not len(given) or given.is_floating_point() or int(given.min()) < 0 or int(given.max()) >= classes:
        raise HemstitchError(f"labels are whole numbers in 0..{classes - 1}; got {given.tolist()[:8]}")
    return given.long()[torch.arange(count) % len(given)]


def read_labels(path: Path) -> Tensor:
    """(N,) int64 labels of a file: a .npy, a JSON list, or text with one number a line."""
    if not path.is_file():
        raise HemstitchError(f"there is no file of labels {path}")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            values = np.asarray(json.loads(path.read_text()))
        else:
            values = np.asarray([int(word) for word in path.read_text().split()])
    except (ValueError, EOFError, UnicodeDecodeError) as error:
        raise HemstitchError(f"{path} does not hold labels, whole numbers ({error}): one a line, or a .npy") from None
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iu":
        raise HemstitchError(f"{path} holds {values.dtype} of shape {values.shape}: labels are whole numbers, (N,)")
    return torch.from_numpy(values.astype(np.int64))


def to_pixels(images: Tensor, quantise: Quantise) -> Tensor:
    """(B, C, H, W) in -1..1 to uint8 (B, C, H, W), clipped.

    "floor" is what the ADM evaluation does to pixel models' samples, (x + 1) · 127.5 cut off; "round" what DiT's does
    to decoded latents, 127.5 x + 128 cut off, which is the nearest.
    """
    if quantise not in get_args(Quantise):
        raise HemstitchError(f"quantise is 'floor' or 'round', not {quantise!r}")
    offset = 127.5 if quantise == "floor" else 128.0
    return (images.float() * 127.5 + offset).clamp(0, 255).to(torch.uint8)
