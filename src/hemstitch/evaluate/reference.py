"""What samples are measured against: pictures, published statistics of them, or both.

Shape suffixes: F features.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..bulk.manifest import finished
from ..bulk.settings import Settings
from ..errors import HemstitchError
from ..marked import sha256
from .extractors import Extractor
from .features import INDEX, FeatureSet, Index, Maker, moments_of, read_shards, stored
from .frechet import Moments
from .images import ArrayImages, FolderImages, Images, TarImages, open_images

_STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class Source:
    """Pictures before their features.

    images: None where only statistics or features are known. labels: (N,) int64 or None. seed: equal for sets whose
    pictures share seeds and labels. told: what the manifest of samples says of them. statistics: published ones, by
    output. hash: of the file of statistics. features: that are there already, by extractor. to_come: (height, width) of
    pictures that are yet to be made.
    """

    name: str
    images: Images | None
    labels: Tensor | None = None
    seed: str = ""
    told: dict[str, object] | None = None
    statistics: dict[str, Moments] | None = None
    hash: str = ""
    features: dict[str, FeatureSet] | None = None
    to_come: tuple[int, int] | None = None

    @property
    def count(self) -> int | None:
        """Pictures, None where it is unknown."""
        if self.images is not None:
            return len(self.images)
        return next((len(f) for f in (self.features or {}).values()), None)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), None where it is unknown."""
        if self.images is not None:
            return self.images.size
        if self.to_come is not None:
            return self.to_come
        return next((f.index.size for f in (self.features or {}).values()), None)


def open_source(where: str, name: str | None = None, *, size: int = 0, grey: bool = False) -> Source:
    """Pictures to evaluate, checked. See `open_images`; a folder of `hemstitch sample` is known by its manifest."""
    path = Path(where)
    if (path / "manifest" / "settings.json").exists() or (path / "manifest.json").exists():
        return _sampled(path, name or path.name, size)
    if (path / INDEX).is_file():
        kept = stored(path, name or path.name)
        return Source(kept.name, None, features={kept.index.maker.name: kept})
    images = open_images(where, size=size, grey=grey)
    return Source(name or images.name, images, images.labels)


def _sampled(path: Path, name: str, size: int) -> Source:
    """A folder that `hemstitch sample` wrote: grey pictures are meant, and labels and seeds are known."""
    settings, content, labels = finished(path)
    kept = _kept(path, settings, content, name, labels)
    images = None if kept and settings.formats == ("features",) else _pictures(path, settings, size)
    if images is not None and len(images) != settings.count:
        raise HemstitchError(
            f"{path} has {len(images)} pictures and its manifest says {settings.count}: run the sampling again, which "
            "mends it"
        )
    told = {key: getattr(settings, key) for key in ("model", "sampler", "steps", "guidance", "seed", "count", "labels")}
    return Source(name, images, labels, _seed(settings), {**told, "content": content}, features=kept)


def _seed(settings: Settings) -> str:
    return f"seed {settings.seed}, {settings.count} samples, labels {settings.labels or 'none'}"


def _kept(path: Path, settings: Settings, content: str, name: str, labels: Tensor | None) -> dict[str, FeatureSet]:
    """Features that were kept while sampling, by extractor."""
    found = {}
    for told in settings.extractors:
        maker = Maker(*told)
        paths = [path / "features" / maker.name / f"{k:05d}.safetensors" for k in range(settings.shards)]
        # the hash of their pictures is the manifest's, of the same pixels in another order of bytes
        index = Index(maker, f"samples {content}", settings.count, (settings.size, settings.size))
        found[maker.name] = read_shards(paths, index, name, labels, _seed(settings))
    return found


def _pictures(path: Path, settings: Settings, size: int) -> Images:
    if "png" in settings.formats:
        return FolderImages(path, size, grey=settings.channels == 1)
    if "npz" in settings.formats:
        return ArrayImages(path / "samples.npz", size, grey=True)
    if "webdataset" in settings.formats:
        pattern = f"shard-{{00000..{settings.shards - 1:05d}}}.tar" if settings.shards > 1 else "shard-00000.tar"
        return TarImages(path / pattern, size, grey=settings.channels == 1)
    raise HemstitchError(
        f"{path} holds {', '.join(settings.formats)} and no pictures: sample with --format png, npz or webdataset"
    )


def open_reference(where: str, *, size: int = 0, grey: bool = False) -> Source:
    """The reference: anything `open_source` takes, or a .npz of statistics in ADM's layout.

    Of such a file `mu`, `sigma` are those of "pool", `mu_s`, `sigma_s` of "spatial" features, and `arr_0`, if it is
    there, pictures for what needs more. Nothing is unpickled. Raises HemstitchError for statistics that are none.
    """
    path = Path(where)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return open_source(where, size=size, grey=grey)
    statistics, has_pictures = _statistics(path)
    if not statistics:
        return open_source(where, size=size, grey=grey)
    images = ArrayImages(path, size, grey) if has_pictures else None
    return Source(path.stem, images, statistics=statistics, hash=sha256(path))


def pooled_moments(source: Source, extractor: Extractor) -> Moments:
    """A reference's: published, of features that are there, or of its pictures. HemstitchError if it has none."""
    if source.statistics and "pool" in source.statistics:
        return source.statistics["pool"]
    kept = (source.features or {}).get(extractor.name)
    if kept is not None:
        return kept.moments("pool")
    if source.images is None:
        raise HemstitchError(f"{source.name} has neither pictures nor statistics of {extractor.name}'s features")
    return moments_of(source.images, extractor)


def _statistics(path: Path) -> tuple[dict[str, Moments], bool]:
    """The moments in a file, by output, and whether it has pictures, too."""
    try:
        with np.load(path, allow_pickle=False) as data:
            found = {
                output: Moments.published(_numbers(data[mu], mu, path), _numbers(data[sigma], sigma, path))
                for output, (mu, sigma) in _STATISTICS.items()
                if mu in data and sigma in data
            }
            lone = [n for pair in _STATISTICS.values() for n in pair if n in data and not set(pair) <= set(data)]
            if lone:
                raise HemstitchError(
                    f"{path} has {', '.join(lone)} without its other half: mu with sigma, mu_s with sigma_s"
                )
            return found, "arr_0" in data
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, HemstitchError):
            raise HemstitchError(f"{path}: {error}") from None
        raise HemstitchError(
            f"{path} cannot be read as arrays of numbers ({error}): save it with np.savez, without objects"
        ) from None


def _numbers(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind != "f":
        raise HemstitchError(f"{name} is {array.dtype}: statistics are floating-point numbers")
    return array


def pinned(features: FeatureSet) -> str:
    """A hash of pictures and extractor: what a figure of these features was measured against."""
    told = json.dumps([features.index.content, features.index.maker.hash, features.index.count])
    return hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference under one extractor. features: None where only statistics are known."""

    name: str
    hash: str
    maker: Maker
    statistics: dict[str, Moments]
    features: FeatureSet | None

    def moments(self, output: str) -> Moments:
        """Published ones first. HemstitchError if there are none."""
        if output in self.statistics:
            return self.statistics[output]
        return self.of_pictures(f"the moments of {output}").moments(output)

    def of_pictures(self, what: str) -> FeatureSet:
        if self.features is None:
            raise HemstitchError(
                f"{what} need the reference's pictures, and {self.name} holds statistics alone: give a folder, a data "
                "set, or a .npz with arr_0"
            )
        return self.features
