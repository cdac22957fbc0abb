"""Libraries that reuse features of earlier steps, with a state per member that is forgotten at each seam.

diffusers' own caches (`pipe.transformer.enable_cache(…)`) and token merging (`tomesd.apply_patch(pipe)`) work on a
stitched pipeline as they are. These two keep their state by the model that they are given, so each member gets one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from ..errors import MissingExtraError, StitchError
from .convert import process_of
from .stitching import stitched, stitched_parts
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
    _refuse_other_times(pipe, model)
    helpers: dict[int, Any] = {}
    with ExitStack() as undo:
        for i in model._targets:
            member = model._member(i)
            helper = helpers[i] = DeepCacheSDHelper(pipe=_AsPipeline(pipe, member))
            helper.set_params(cache_interval=cache_interval, cache_branch_id=cache_branch_id, **more)
            undo.callback(_enabled(member, helper.enable, helper.disable))

        def reset(i: int, ahead: int) -> None:
            helpers[i].cached_output = {}
            helpers[i].start_timestep = None

        model.caching["DeepCache"] = dict.fromkeys(helpers, reset)
        undo.callback(model.caching.pop, "DeepCache", None)
        return undo.pop_all().close


def enable_cache_dit(pipe: Any, **more: Any) -> Callable[[], None]:
    """cache-dit on every member of a stitched transformer; arguments as `cache_dit.enable_cache`.

    Answers a function that switches it off again. stitched(pipe).only("large") limits it to chosen members; Wan 2.2's
    two transformers are both meant.
    """
    try:
        import cache_dit
    except ImportError:
        raise MissingExtraError("cache-dit", "caches") from None
    first = stitched(pipe)
    models = [model for model in stitched_parts(pipe) if model.member_class is first.member_class]
    if "cache-dit" in first.caching:
        raise StitchError("cache-dit is on already: call the function that enable_cache_dit answered to switch it off")
    names = [first._names[i] for i in first._targets]
    cached: set[Any] = set()
    with ExitStack() as undo:
        for model in models:
            with model.only(*names):
                members = {i: model._member(i) for i in model._targets}
            for member in set(members.values()) - cached:  # two models may share one
                enable = partial(cache_dit.enable_cache, member, **more)
                undo.callback(_enabled(member, enable, partial(cache_dit.disable_cache, member)))
                cached.add(member)

            def reset(i: int, ahead: int, members: dict[int, Any] = members) -> None:
                cache_dit.refresh_context(members[i], num_inference_steps=ahead)

            model.caching["cache-dit"] = dict.fromkeys(members, reset)
            undo.callback(model.caching.pop, "cache-dit", None)
        return undo.pop_all().close


def _enabled(member: nn.Module, enable: Callable[[], Any], disable: Callable[[], Any]) -> Callable[[], None]:
    """Enable a cache on a member; what disables it, and takes away the attributes that it leaves on the modules."""
    before = _attributes(member)

    def clear(added: set[tuple[nn.Module, str]]) -> None:
        for module, name in added:
            module.__dict__.pop(name, None)
            module._modules.pop(name, None)

    try:
        enable()
    except Exception:
        clear(_attributes(member) - before)
        raise
    added = _attributes(member) - before

    def undo() -> None:
        disable()
        clear(added)

    return undo


def _attributes(member: nn.Module) -> set[tuple[nn.Module, str]]:
    return {(module, name) for module in member.modules() for name in (*vars(module), *module._modules)}


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


def _refuse_other_times(pipe: Any, model: StitchedModel) -> None:
    """DeepCache looks a call's timestep up among the scheduler's."""
    for i in model._targets:
        adapter = model._adapters.get(i)
        if adapter is not None and adapter.theirs and not adapter.theirs.same_noise(process_of(pipe.scheduler)):
            raise StitchError(
                f"the member {model._names[i]!r} has a noise schedule of its own and is asked at other timesteps than "
                "the pipeline's, by which DeepCache counts: enable it for the others, with stitched(pipe).only(…)"
            )
