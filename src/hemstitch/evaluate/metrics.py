"""Metrics by name: which features they need, how they are computed, what their figures are called.

Adding one is a function and a line in METRICS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from ..errors import HemstitchError
from .features import FeatureSet
from .frechet import frechet_score
from .inception_score import Order, inception_score
from .kernels import cmmd, kernel_distance
from .neighbours import Manifold, Progress, neighbours
from .reference import Reference
from .score import Score, resampled_means

Better = Literal["lower", "higher"]


@dataclass
class Context:
    """What the metrics of one evaluation share.

    resamples: bootstrap resamples of a Fréchet distance; the others, which are cheap, take five times as many. order:
    of the samples in an Inception Score. device: where neighbours are sought. progress: (done, of all) of long work.
    """

    reference: Reference | None
    resamples: int = 20
    order: Order = "shuffled"
    device: torch.device | str = "cpu"
    progress: Progress | None = None
    _manifold: Manifold | None = field(default=None, repr=False)
    _searched: tuple[FeatureSet, Mapping[str, Score]] | None = field(default=None, repr=False)

    def needed(self, what: str) -> Reference:
        if self.reference is None:
            raise HemstitchError(f"{what} compare with a reference: give one (--reference imagenet/val)")
        return self.reference

    def manifold(self) -> Manifold:
        """The reference's, computed once."""
        if self._manifold is None:
            pictures = self.needed("nearest neighbours").of_pictures("nearest neighbours")
            self._manifold = Manifold.of(pictures.rows["pool"], device=self.device, progress=self.progress)
        return self._manifold

    def searched(self, samples: FeatureSet) -> Mapping[str, Score]:
        """Precision, recall, density and coverage, computed once for a set."""
        if self._searched is None or self._searched[0] is not samples:
            reference = self.manifold()
            mine = Manifold.of(samples.rows["pool"], device=self.device, progress=self.progress)
            found = neighbours(mine, reference, resamples=5 * self.resamples, progress=self.progress)
            self._searched = samples, found._asdict()
        return self._searched[1]


Compute = Callable[[FeatureSet, Context], Mapping[str, Score]]


@dataclass(frozen=True)
class Metric:
    """A metric, of one figure or a few.

    figures: their names and which way is better. outputs: what it asks of the extractor. pictures: whether it needs the
    reference's pictures, not statistics alone. reference: whether it needs one at all. extractor: the only one that it
    is defined for, or None. least: pictures of each set. told: the definition, for the record; a change of it is a
    change of this text.
    """

    figures: Mapping[str, Better]
    outputs: tuple[str, ...]
    compute: Compute
    told: str
    pictures: bool = True
    reference: bool = True
    extractor: str | None = None
    least: int = 2


def _frechet(output: str, name: str) -> Compute:
    def compute(samples: FeatureSet, context: Context) -> dict[str, Score]:
        reference = context.needed("Fréchet distances").moments(output)
        score = frechet_score(samples.rows[output], reference, context.resamples)
        return {name: score}

    return compute


def _inception_score(samples: FeatureSet, context: Context) -> dict[str, Score]:
    splits, part = min(10, len(samples)), 5_000 if context.order == "given" else None  # ADM's parts
    found = inception_score(samples.rows["logits"], splits, context.order, 5 * context.resamples, part)
    return {"is": found.score}


def _some(*names: str) -> Compute:
    """Precision with recall, density with coverage: one search for neighbours serves both."""
    return lambda samples, context: {name: context.searched(samples)[name] for name in names}


def _kernel(samples: FeatureSet, context: Context) -> dict[str, Score]:
    reference = context.needed("kernel distances").of_pictures("kernel distances")
    found = kernel_distance(samples.rows["pool"], reference.rows["pool"], resamples=5 * context.resamples)
    return {"kid": found.score}


def _cmmd(samples: FeatureSet, context: Context) -> dict[str, Score]:
    reference = context.needed("CMMD").of_pictures("CMMD")
    return {"cmmd": cmmd(samples.rows["pool"], reference.rows["pool"], 5 * context.resamples)}


def _accuracy(samples: FeatureSet, context: Context) -> dict[str, Score]:
    labels, logits = samples.labels, samples.rows["logits"]
    if labels is None:
        raise HemstitchError(f"{samples.name} has no labels: leave accuracy out")
    if int(labels.max()) >= logits.shape[1]:
        raise HemstitchError(f"{samples.name} has labels up to {labels.max()}, and the classifier {logits.shape[1]}")
    right = np.concatenate(
        [logits[i : i + 4096].argmax(1) == labels[i : i + 4096] for i in range(0, len(samples), 4096)]
    )
    draws = resampled_means(right, 5 * context.resamples)
    return {"accuracy": Score(float(right.mean()), draws, note="bootstrap over the samples", resampled=len(right))}


METRICS: dict[str, Metric] = {
    "fid": Metric(
        {"fid": "lower"}, ("pool",), _frechet("pool", "fid"), "Fréchet distance of pooled features, float64", False
    ),
    "sfid": Metric(
        {"sfid": "lower"},
        ("spatial",),
        _frechet("spatial", "sfid"),
        "Fréchet distance of spatial features: 7 channels of mixed_6/conv, as ADM",
        False,
    ),
    "is": Metric(
        {"is": "higher"},
        ("logits",),
        _inception_score,
        "Inception Score, 10 shuffled splits as torch-fidelity or parts of 5,000 as ADM; logits without bias",
        False,
        False,
    ),
    "prc": Metric(
        {"precision": "higher", "recall": "higher"},
        ("pool",),
        _some("precision", "recall"),
        "improved precision and recall, k = 3",
        least=6,
    ),
    "dc": Metric(
        {"density": "higher", "coverage": "higher"},
        ("pool",),
        _some("density", "coverage"),
        "density, coverage, k = 5",
        least=6,
    ),
    "kid": Metric(
        {"kid": "lower"},
        ("pool",),
        _kernel,
        "unbiased MMD², cubic kernel, 100 subsets of 1,000 (or as many as there are)",
    ),
    "fd_dinov2": Metric(
        {"fd_dinov2": "lower"},
        ("pool",),
        _frechet("pool", "fd_dinov2"),
        "Fréchet distance of DINOv2 ViT-L/14 class tokens",
        False,
        extractor="dinov2",
    ),
    "cmmd": Metric(
        {"cmmd": "lower"},
        ("pool",),
        _cmmd,
        "1000 · biased MMD² of CLIP ViT-L/14-336 embeddings, Gaussian kernel of width 10",
        extractor="clip",
    ),
    "accuracy": Metric(
        {"accuracy": "higher"},
        ("logits",),
        _accuracy,
        "share of samples that the classifier takes for their class",
        False,
        False,
        extractor="classifier",
    ),
}


def chosen(names: list[str]) -> dict[str, Metric]:
    """Metrics by name, in the order of METRICS. HemstitchError for unknown ones."""
    wrong = [name for name in names if name not in METRICS]
    if wrong or not names:
        raise HemstitchError(f"metrics are some of {', '.join(METRICS)}, not {', '.join(wrong) or 'none'}")
    return {name: metric for name, metric in METRICS.items() if name in names}


def title(figure: str, extractor: str) -> str:
    """What a figure is called: FID and KID are Inception's by definition, and those of another network say so."""
    known = {"fid": "FID", "sfid": "sFID", "is": "IS", "kid": "KID", "fd_dinov2": "FD-DINOv2", "cmmd": "CMMD"}
    if extractor == "inception" or figure not in ("fid", "sfid", "is", "kid"):
        return known.get(figure, figure)
    return {"fid": "FD", "sfid": "sFD", "is": "class score", "kid": "KD"}[figure] + f" ({extractor})"
