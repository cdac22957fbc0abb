"""How good samples are: a distance that plans are ranked by, with the resamples that tell its error.

Shape suffixes: N samples, F features, C channels, S size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...bulk.settings import Quantise, to_pixels
from ...data.dataset import restored
from ...denoiser import Spec
from ...evaluate.extractors import Extractor
from ...evaluate.frechet import Moments
from ...evaluate.score import Score, counts, resampled_means

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
    """Fréchet distance of pooled features to a reference (Heusel et al. 2017).

    Few samples raise it, by more where they spread more: gaps of N samples are biased while N is not well above F.
    """

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
        x_NF = rows_NF.double().numpy()
        N = len(x_NF)
        value = self._distance(x_NF, np.ones(N))
        draws = np.array([self._distance(x_NF, counts(N, r).astype(np.float64)) for r in range(RESAMPLES)])
        return Score(value, draws, resampled=N, biased_by_size=True)

    @cached_property
    def _root(self) -> NDArray[np.float64]:
        """(F, F): the reference's covariance is root · rootᵀ."""
        values, vectors = np.linalg.eigh(self.reference.covariance)
        return vectors * np.sqrt(values.clip(0))

    def _distance(self, x_NF: NDArray[np.float64], weight_N: NDArray[np.float64]) -> float:
        """Of samples that count so often.

        tr √(Σ Σ_r) is the sum of the singular values of the centred samples times `_root`: of the smaller of N × N
        and F × F, so that wide features of few samples cost little.
        """
        total = weight_N.sum()
        mean = weight_N @ x_NF / total
        centred = (x_NF - mean) * np.sqrt(weight_N / (total - 1))[:, None]
        crossed = centred @ self._root
        gram = crossed @ crossed.T if len(x_NF) < x_NF.shape[1] else crossed.T @ crossed
        cross = float(np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum())
        offset = mean - self.reference.mean
        return float(offset @ offset + (centred**2).sum() + np.trace(self.reference.covariance)) - 2 * cross


@final
@dataclass(frozen=True)
class Paired:
    """Without a reference: by how much a sample differs from the largest member's of the same seed, the mean of RMS.

    Of pooled features where there is an extractor, else of the samples themselves. It counts every change as a loss.
    Not the mean of squares: a few samples that went another way would decide that.
    """

    pixels: Pixels | None = None
    extractor: Extractor | None = None

    @property
    def unit(self) -> str:
        of = "samples" if self.extractor is None else f"features ({self.extractor.name})"
        return f"mean RMS difference from the largest member's {of}"

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
        return torch.sqrt(torch.mean(gap_NF**2, 1, keepdim=True)).float()

    def score(self, rows_NF: Tensor) -> Score:
        values = rows_NF[:, 0].double().numpy()
        draws = resampled_means(values, RESAMPLES)
        return Score(float(np.mean(values)), draws, resampled=len(values))
