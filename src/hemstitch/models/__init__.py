"""Networks: name to builder."""

from __future__ import annotations

from collections.abc import Callable

from .config import NetConfig, preset
from .dit import DiT
from .dtr import DTR
from .switch_dit import SwitchDiT

MODELS: dict[str, Callable[[NetConfig], DiT]] = {
    "dit": DiT,
    "dtr": DTR,
    "switch_dit": SwitchDiT,
}


def build(config: NetConfig | str) -> DiT:
    """A freshly initialised network, of a config or a preset name such as "switch_dit_s2"."""
    if isinstance(config, str):
        config = preset(config)
    return MODELS[config.family](config)


__all__ = ["DTR", "MODELS", "DiT", "NetConfig", "SwitchDiT", "build", "preset"]
