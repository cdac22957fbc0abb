"""What pipelines ask of a network to load adapters into it, answered by a stitched model for its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import StitchError
from . import ip_adapter, lora


class Adapted:
    """The part of a stitched model that loads, sets and takes away LoRAs and IP-Adapters, on the members they fit.

    fits: adapter -> member -> what of it fits.
    """

    fits: dict[str, dict[str, str]]
    _names: list[str]
    _own: int
    _chosen: frozenset[int] | None
    own: Any

    # of StitchedModel
    def _member(self, i: int) -> Any:
        raise NotImplementedError

    @property
    def _loaded(self) -> list[int]:
        raise NotImplementedError

    @property
    def _targets(self) -> list[int]:
        raise NotImplementedError

    @property
    def _hf_peft_config_loaded(self) -> bool:
        return any(getattr(self._member(i), "_hf_peft_config_loaded", False) for i in self._loaded)

    @_hf_peft_config_loaded.setter
    def _hf_peft_config_loaded(self, value: bool) -> None:
        raise AttributeError("adapters are the members'")

    @property
    def peft_config(self) -> dict[str, Any]:
        configs: dict[str, Any] = {}
        for i in self._loaded:
            configs.update(self._member(i).__dict__.get("peft_config", {}))
        if not configs:
            raise AttributeError("peft_config")
        return configs

    def load_lora_adapter(self, weights: Any, prefix: str | None = "transformer", **more: Any) -> None:
        """Load a LoRA into the members that it fits; `fits` says which, and a log line."""
        members = {self._names[i]: self._member(i) for i in self._targets}
        for adapter, said in lora.load(members, weights, prefix, **more).items():
            self.fits.setdefault(adapter, {}).update(said)

    @property
    def _adaptable(self) -> list[Any]:
        """Of the members that a change is made to, those at hand: one not loaded has no adapters."""
        return [self._member(i) for i in self._loaded if self._chosen is None or i in self._chosen]

    def _adapted(self, method: str, *args: Any, **kwargs: Any) -> None:
        for member in self._adaptable:
            if getattr(member, "_hf_peft_config_loaded", False):
                getattr(member, method)(*args, **kwargs)

    def set_adapters(self, adapter_names: Sequence[str] | str, weights: Any = None) -> None:
        for member in self._adaptable:
            lora.activate(member, adapter_names, 1.0 if weights is None else weights)

    def set_adapter(self, adapter_name: Sequence[str] | str) -> None:
        for member in self._adaptable:
            lora.activate(member, adapter_name)

    def active_adapters(self) -> list[str]:
        """The active adapters of any member."""
        return list(dict.fromkeys(name for member in self._adaptable for name in lora.active(member)))

    def delete_adapters(self, adapter_names: Sequence[str] | str) -> None:
        lora.delete(self._adaptable, adapter_names)
        self._forget_fits([adapter_names] if isinstance(adapter_names, str) else list(adapter_names))

    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: Any = None) -> None:
        for member in self._adaptable:
            lora.fuse(member, lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        self._adapted("unfuse_lora")

    def unload_lora(self) -> None:
        self._adapted("unload_lora")
        self._forget_fits(list(self.fits))

    def _forget_fits(self, adapters: Sequence[str]) -> None:
        chosen = {name for i, name in enumerate(self._names) if self._chosen is None or i in self._chosen}
        for adapter in adapters:
            left = {name: said for name, said in self.fits.pop(adapter, {}).items() if name not in chosen}
            if left:
                self.fits[adapter] = left

    def disable_lora(self) -> None:
        self._adapted("disable_lora")

    def enable_lora(self) -> None:
        self._adapted("enable_lora")

    def disable_adapters(self) -> None:
        self._adapted("disable_adapters")

    def enable_adapters(self) -> None:
        self._adapted("enable_adapters")

    def save_lora_adapter(self, *args: Any, **kwargs: Any) -> None:
        if self._chosen is None or len(self._chosen) != 1:
            raise StitchError(
                "each member has its own: save them one by one, with stitched(pipe).only(name), to folders of their own"
            )
        self._adapted("save_lora_adapter", *args, **kwargs)

    def _load_ip_adapter_weights(self, weights: Any, **more: Any) -> None:
        members = {self._names[i]: self._member(i) for i in self._targets}
        ip_adapter.load(members, self._names[self._own], self.own, weights, **more)
