"""Measuring samples: sets of pictures, extractors, metrics with their intervals.

The names below load on first use. Single metrics are functions of features: `frechet_distance`, `kernel_distance`,
`cmmd`, `inception_score.inception_score`, `neighbours.neighbours`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import Measuring, Report, evaluate
    from .extractors import Extractor, extractor, wrapped
    from .frechet import Accumulator, Moments, frechet_distance, frechet_score
    from .images import TensorImages, open_images
    from .kernels import cmmd, kernel_distance
    from .neighbours import Manifold
    from .reference import open_reference, open_source
    from .score import Score, compared

_HOME = {
    "Accumulator": "frechet",
    "Extractor": "extractors",
    "Manifold": "neighbours",
    "Measuring": "evaluation",
    "Moments": "frechet",
    "Report": "evaluation",
    "Score": "score",
    "TensorImages": "images",
    "cmmd": "kernels",
    "compared": "score",
    "evaluate": "evaluation",
    "extractor": "extractors",
    "frechet_distance": "frechet",
    "frechet_score": "frechet",
    "kernel_distance": "kernels",
    "open_images": "images",
    "open_reference": "reference",
    "open_source": "reference",
    "wrapped": "extractors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hemstitch.evaluate' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
