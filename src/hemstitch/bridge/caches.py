"""Libraries that reuse features of earlier steps, with a state per member that is forgotten at each seam.

diffusers' own caches (`pipe.transformer.enable_cache(…)`) and token merging (`tomesd.apply_patch(pipe)`) work on a
stitched pipeline as they are. These two keep their state by the model that they are given, so each member gets one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..errors import MissingExtraError, StitchError
from .stitching import stitched
from .wrapper import StitchedModel


def enable_deepcache(pipe: Any, cache_interval: int = 3, cache_branch_id: int = 0, **more: Any) -> Callable[[], None]:
    """DeepCache (Ma et al. 2024) on every member of a stitched U-Net; arguments as `DeepCacheSDHelper.set_params`.

    Every member caches its own features, and takes a full step first behind each seam. Answers a function that
    switches it off again. stitched(pipe).only("large") limits it to chosen members.
    """
    try:
        from DeepCache import DeepCacheSDHelper
    except ImportError:
        raise MissingExtraError("DeepCache", "caches") from None
    model = _unet(pipe)
    if "DeepCache" in model.caching:
        raise StitchError("DeepCache is on already: call the function that enable_deepcache answered to switch it off")
    helpers = {}
    for i in model._targets:
        helper = DeepCacheSDHelper(pipe=_AsPipeline(pipe, model._member(i)))
        helper.set_params(cache_interval=cache_interval, cache_branch_id=cache_branch_id, **more)
        helper.enable()
        helpers[i] = helper

    def reset(i: int, ahead: int) -> None:
        helpers[i].cached_output = {}
        helpers[i].start_timestep = None

    def disable() -> None:
        model.caching.pop("DeepCache", None)
        for i, helper in helpers.items():
            helper.disable()
            model._member(i).__dict__.pop("forward", None)  # it leaves a bound method behind

    model.caching["DeepCache"] = dict.fromkeys(helpers, reset)
    return disable


def enable_cache_dit(pipe: Any, **more: Any) -> Callable[[], None]:
    """cache-dit on every member of a stitched transformer; arguments as `cache_dit.enable_cache`.

    Answers a function that switches it off again. stitched(pipe).only("large") limits it to chosen members.
    """
    try:
        import cache_dit
    except ImportError:
        raise MissingExtraError("cache-dit", "caches") from None
    model = stitched(pipe)
    if "cache-dit" in model.caching:
        raise StitchError("cache-dit is on already: call the function that enable_cache_dit answered to switch it off")
    members = {i: model._member(i) for i in model._targets}
    for member in members.values():
        cache_dit.enable_cache(member, **more)

    def reset(i: int, ahead: int) -> None:
        cache_dit.refresh_context(members[i], num_inference_steps=ahead)

    def disable() -> None:
        model.caching.pop("cache-dit", None)
        for member in members.values():
            cache_dit.disable_cache(member)

    model.caching["cache-dit"] = dict.fromkeys(members, reset)
    return disable


class _AsPipeline(SimpleNamespace):
    """What DeepCache's helper takes for a pipeline: one member as its U-Net, and the pipeline's scheduler of today."""

    def __init__(self, pipe: Any, member: Any) -> None:
        super().__init__(unet=member)
        self._pipe = pipe

    @property
    def scheduler(self) -> Any:
        return self._pipe.scheduler


def _unet(pipe: Any) -> StitchedModel:
    model = stitched(pipe)
    if not hasattr(model.own, "down_blocks"):
        raise StitchError(f"DeepCache caches a U-Net's skip branches; this pipeline has a {type(model.own).__name__}")
    return model
