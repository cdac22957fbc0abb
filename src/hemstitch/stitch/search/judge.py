"""How good samples are: a distance that plans are ranked by, with the resamples that tell its error.

Shape suffixes: N samples, F features, C channels, S size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from ...bulk.settings import Quantise, to_pixels
from ...data.dataset import restored
from ...denoiser import Spec
from ...evaluate.extractors import Extractor
from ...evaluate.frechet import Moments, bootstrap_distances, frechet_distance
from ...evaluate.score import Score, resampled_means

RESAMPLES = 40


class Judge(Protocol):
    """Rows are what is kept of each sample, a score is of rows. unit: what it measures. hash: tells judges apart."""

    @property
    def unit(self) -> str: ...

    @property
    def hash(self) -> str: ...

    @property
    def paired(self) -> bool:
        """Whether rows need the largest member's samples beside."""
        ...

    def rows(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """(N, F) float32 on the host, of samples x (N, C, S, S). beside: the largest member's of the same seeds."""
        ...

    def score(self, rows_NF: Tensor) -> Score:
        """The distance of a set of samples. Sets of N rows are resampled alike."""
        ...


@dataclass(frozen=True)
class Pixels:
    """How samples become pictures: (N, 3, H, W) uint8."""

    spec: Spec
    decode: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        quantise: Quantise = "floor" if self.decode is None else "round"
        images = restored(x, self.spec.mean, self.spec.std) if self.decode is None else self.decode(x)
        return to_pixels(images.cpu(), quantise).expand(-1, 3, -1, -1)


@final
@dataclass(frozen=True)
class Frechet:
    """Fréchet distance of pooled features to a reference (Heusel et al. 2017). At equal N its bias is much the same."""

    pixels: Pixels
    extractor: Extractor
    reference: Moments
    source: str

    @property
    def unit(self) -> str:
        return f"Fréchet distance ({self.extractor.name})"

    @property
    def hash(self) -> str:
        return f"frechet {self.extractor.name} {self.extractor.hash} {self.source}"

    @property
    def paired(self) -> bool:
        return False

    def rows(self, x: Tensor, beside: Tensor | None) -> Tensor:
        return self.extractor(self.pixels(x))["pool"].float().cpu()

    def score(self, rows_NF: Tensor) -> Score:
        N = len(rows_NF)
        draws = bootstrap_distances(rows_NF, self.reference, RESAMPLES)
        value = frechet_distance(Moments.of(rows_NF), self.reference)
        return Score(value, draws, resampled=N, biased_by_size=True)


@final
@dataclass(frozen=True)
class Paired:
    """Without a reference: the mean square by which a sample differs from the largest member's of the same seed.

    Of pooled features where there is an extractor, else of the samples themselves. It counts every change as a loss.
    """

    pixels: Pixels | None = None
    extractor: Extractor | None = None

    @property
    def unit(self) -> str:
        of = "samples" if self.extractor is None else f"features ({self.extractor.name})"
        return f"mean square difference from the largest member's {of}"

    @property
    def hash(self) -> str:
        return "paired" if self.extractor is None else f"paired {self.extractor.name} {self.extractor.hash}"

    @property
    def paired(self) -> bool:
        return True

    def rows(self, x: Tensor, beside: Tensor | None) -> Tensor:
        assert beside is not None  # asked for
        if self.extractor is not None and self.pixels is not None:
            ours, theirs = (self.extractor(self.pixels(samples))["pool"] for samples in (x, beside))
        else:
            ours, theirs = x, beside
        gap_NF = (ours.cpu().double() - theirs.cpu().double()).flatten(1)
        return torch.mean(gap_NF**2, 1, keepdim=True).float()

    def score(self, rows_NF: Tensor) -> Score:
        values = rows_NF[:, 0].double().numpy()
        draws = resampled_means(values, RESAMPLES)
        return Score(float(np.mean(values)), draws, resampled=len(values))
