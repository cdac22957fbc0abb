"""The class of a stitched model: a subclass of StitchedModel and of its members' own class.

A pipeline asks a component for its class (`isinstance`, type hints), and calls the methods of that class to change it.
Here the first holds, and the second is handed on to every member.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from diffusers import ModelMixin

from .adapted import Adapted
from .wrapper import StitchedModel

OWN = {*vars(StitchedModel), *vars(Adapted)}  # what a stitched model answers itself

# Methods of ModelMixin that change a network: handed on to every member. The others are the wrapper's own.
CHANGING = (
    "compile_repeated_blocks",
    "dequantize",
    "disable_gradient_checkpointing",
    "disable_npu_flash_attention",
    "disable_xformers_memory_efficient_attention",
    "disable_xla_flash_attention",
    "enable_gradient_checkpointing",
    "enable_group_offload",
    "enable_layerwise_casting",
    "enable_npu_flash_attention",
    "enable_parallelism",
    "enable_xformers_memory_efficient_attention",
    "enable_xla_flash_attention",
    "reset_attention_backend",
    "set_attention_backend",
    "set_use_memory_efficient_attention_xformers",
    "set_use_npu_flash_attention",
    "set_use_xla_flash_attention",
)


class _Standing(type):
    """The class of a stitched model equals that of its members.

    `DiffusionPipeline.from_pipe` keeps a component only where `type(component) in (the hinted classes)`.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or (other is not None and cls.__dict__.get("member_class") is other)

    __hash__ = type.__hash__


def stitched_class(member_class: Any) -> type[StitchedModel]:
    """The class of stitched models whose members are networks of `member_class`."""
    return _stitched_class(member_class)


@cache
def _stitched_class(member_class: Any) -> Any:
    """The subclass of StitchedModel and of a class of networks, whose methods are handed on to every member."""
    parts: dict[str, Any] = {"member_class": member_class, "__module__": StitchedModel.__module__}
    parts["__doc__"] = StitchedModel.__doc__
    for base in member_class.__mro__:
        if base.__module__.split(".")[0] in ("torch", "builtins", "typing") or base is ModelMixin:
            continue
        if base.__module__ in ("diffusers.configuration_utils", "diffusers.utils.hub_utils"):
            continue
        for name, value in vars(base).items():
            if name in parts or name in OWN or name.startswith("__"):
                continue
            if inspect.isfunction(value):
                parts[name] = _handed_on(name, value)
            elif isinstance(value, property):
                parts[name] = _of_own(name)
    for name in CHANGING:
        if hasattr(ModelMixin, name):
            parts[name] = _handed_on(name, getattr(ModelMixin, name))
    return _Standing("StitchedModel", (StitchedModel, member_class), parts)


def _handed_on(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: StitchedModel, *args: Any, **kwargs: Any) -> Any:
        return self.each(name, *args, **kwargs)

    method.__name__, method.__doc__ = name, function.__doc__
    setattr(method, "__signature__", inspect.signature(function))  # noqa: B010
    return method


def _of_own(name: str) -> property:
    def read(self: Any) -> Any:
        return getattr(self.own, name)

    return property(read)
