"""hemstitch: diffusion models whose compute follows the noise level.

The names below are the public API. They load on first use, so that `import hemstitch` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .denoiser import Denoiser, Guided, NetDenoiser, Prediction, Spec
    from .description import describe
    from .errors import CheckpointError, HemstitchError, StitchError
    from .models import NetConfig, build
    from .process import Process
    from .sampling import Step, generate, sample
    from .stitch.adaptive import AdaptivePlan
    from .stitch.plan import Plan
    from .stitch.search import Found, search
    from .stitch.stitched import Stitched
    from .weights import load, save

_HOME = {
    "AdaptivePlan": "stitch.adaptive",
    "CheckpointError": "errors",
    "Denoiser": "denoiser",
    "Found": "stitch.search",
    "Guided": "denoiser",
    "HemstitchError": "errors",
    "NetConfig": "models",
    "NetDenoiser": "denoiser",
    "Plan": "stitch.plan",
    "Prediction": "denoiser",
    "Process": "process",
    "Spec": "denoiser",
    "Step": "sampling",
    "StitchError": "errors",
    "Stitched": "stitch.stitched",
    "build": "models",
    "describe": "description",
    "generate": "sampling",
    "load": "weights",
    "sample": "sampling",
    "search": "stitch.search",
    "save": "weights",
}

__version__ = "0.1.0.dev0"
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hemstitch' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
