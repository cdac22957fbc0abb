"""The members of a stitched model: networks at hand, or to be loaded when they are first needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn

from ..errors import StitchError

logger = logging.getLogger(__name__)


class Lazy:
    """A network of a pipeline, loaded when it first runs (and released behind its steps under keep="active").

    cls: its diffusers class. path: a folder or hub id. more: what `cls.from_pretrained` takes, such as
    subfolder="unet", variant="fp16" or dtype=torch.float16.
    """

    def __init__(self, cls: Any, path: Any, **more: Any) -> None:
        if not (isinstance(cls, type) and issubclass(cls, ModelMixin) and issubclass(cls, ConfigMixin)):
            raise StitchError(f"a lazy member is a diffusers model class and its path; got the class {cls!r}")
        self.cls: Any = cls
        self.path = path
        self.more = more
        self._config: Mapping[str, Any] | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The network's configuration, read without its weights."""
        if self._config is None:
            where = {k: v for k, v in self.more.items() if k in ("subfolder", "revision", "token", "cache_dir")}
            config = dict(self.cls.load_config(self.path, **where))
            stored = config.get("_class_name", self.cls.__name__)
            if stored not in (self.cls.__name__, "Transformer2DModel"):  # DiT's and PixArt's name of old
                raise StitchError(f"{self.path} holds a {stored}, not a {self.cls.__name__}")
            self._config = {**config, "_class_name": self.cls.__name__}
        return self._config

    def load(self) -> Any:
        try:
            return self.cls.from_pretrained(self.path, **self.more).eval()
        except Exception as error:
            error.add_note(f"raised when {self!r}, a lazy member of a stitched model, was loaded for its first step")
            raise

    def skeleton(self) -> nn.Module:
        """The network without weights, for its shapes."""
        with torch.device("meta"):
            return self.cls.from_config(dict(self.config))

    def __repr__(self) -> str:
        return f"Lazy({self.cls.__name__}, {str(self.path)!r})"


def plain(model: Any) -> Any:
    """The model that `torch.compile` wrapped, or itself."""
    return getattr(model, "_orig_mod", model)


def config_of(member: Any) -> dict[str, Any]:
    config = dict(member.config)
    config.setdefault("_class_name", type(member).__name__)
    return config


def matched(name: str, member: Any, own: Any, move: bool = True) -> Any:
    """`member` in the dtype and (if `move`) on the device of the pipeline's own denoiser; said where it was not."""
    changes: dict[str, Any] = {}
    if member.dtype != own.dtype:
        changes["dtype"] = own.dtype
    if move and member.device != own.device:
        changes["device"] = own.device
    told = " and ".join(str(value) for value in changes.values())
    if changes:
        if getattr(member, "is_quantized", False):
            raise StitchError(
                f"the member {name!r} is quantised, {member.dtype} on {member.device}, and the pipeline's denoiser "
                f"{own.dtype} on {own.device}: load both alike"
            )
        logger.warning("the member %r is %s on %s: cast to the pipeline's %s", name, member.dtype, member.device, told)
        member = member.to(**changes)
    if member.training and not own.training:
        logger.warning("the member %r was in training mode: set to eval()", name)
        member.eval()
    return member
