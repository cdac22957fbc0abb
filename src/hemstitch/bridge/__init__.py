"""hemstitch.bridge: any diffusers pipeline, stitched in one line.

    from hemstitch.bridge import stitch
    pipe = stitch(pipe, small, fraction=0.4)

The names below load on first use; diffusers is needed from then on. `import hemstitch.bridge` before
`from_pretrained` of a stitched pipeline: diffusers looks classes of other libraries up among the imported ones.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .caches import enable_cache_dit, enable_deepcache
    from .compat import Finding, Findings, check
    from .convert import process_of
    from .members import Lazy
    from .stitching import replan, stitch, stitched, unstitch
    from .wrapper import StitchedModel

_HOME = {
    "Finding": "compat",
    "Findings": "compat",
    "Lazy": "members",
    "ModelMixin": "wrapper",  # diffusers asks the module of a saved class for this name
    "StitchedModel": "wrapper",
    "check": "compat",
    "enable_cache_dit": "caches",
    "enable_deepcache": "caches",
    "process_of": "convert",
    "replan": "stitching",
    "stitch": "stitching",
    "stitched": "stitching",
    "unstitch": "stitching",
}

__all__ = [
    "Finding",
    "Findings",
    "Lazy",
    "StitchedModel",
    "check",
    "enable_cache_dit",
    "enable_deepcache",
    "process_of",
    "replan",
    "stitch",
    "stitched",
    "unstitch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hemstitch.bridge' has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise MissingExtraError("diffusers", "diffusers") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
