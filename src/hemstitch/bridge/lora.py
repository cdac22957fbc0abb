"""LoRA on a stitched model: a member gets the modules that it has, or nothing where widths differ."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import StitchError

logger = logging.getLogger(__name__)


def load(members: Mapping[str, Any], weights: Any, prefix: str | None, **more: Any) -> dict[str, dict[str, str]]:
    """Load a LoRA state dict, as pipelines pass it, into the members that it fits.

    Answers {adapter: {member: "all 32 modules", "20 of 32 modules" or why none}}; nothing if no weight has the prefix.
    A member that lacks modules takes those it has; one whose modules of the same name have another shape takes none.
    From then on the adapter is the active one of all these members, as it is of a plain model.

    Raises StitchError if it fits none; whatever else is raised, no member keeps a part of it.
    """
    weights = _ours(weights, prefix)
    if not weights:
        logger.warning("this LoRA has no weights of %s: the members stay as they are", prefix)
        return {}
    adapter: str = more.pop("adapter_name", None) or _free_name(members.values())
    said, keeping = _fits(members, weights, prefix)
    if not keeping:
        raise StitchError(f"this LoRA fits no member ({'; '.join(f'{k}: {v}' for k, v in said.items())})")
    for name in _not_for(adapter, {name: members[name] for name in keeping}, bool(more.get("hotswap"))):
        said[name] = "none: keeps the one of this name" if adapter in _adapters(members[name]) else "none to swap"
        del keeping[name]

    alphas = more.pop("network_alphas", None)
    before = {name: set(_adapters(members[name])) for name in keeping}
    try:
        for name, state in keeping.items():
            theirs = None if alphas is None else _of_state(alphas, state)
            members[name].load_lora_adapter(state, prefix=prefix, network_alphas=theirs, adapter_name=adapter, **more)
    except Exception:
        for name in keeping:
            if adapter not in before[name]:
                _take_away(members[name], adapter)
        raise
    for name in members.keys() - keeping.keys():
        activate(members[name], adapter)
    level = logging.INFO if all(text.startswith("all") for text in said.values()) else logging.WARNING
    logger.log(level, "LoRA %s: %s", adapter, "; ".join(f"{name}: {text}" for name, text in said.items()))
    return {adapter: said}


def fitting(member: Any, weights: Mapping[str, Tensor], prefix: str | None) -> tuple[list[str], list[str], list[str]]:
    """The modules that a LoRA adapts: those that the member has in this shape, those it lacks, those that differ."""
    modules = dict(member.named_modules())
    verdicts: dict[str, str] = {}
    for key, value in weights.items():
        named = _module_of(key, prefix)
        if named is None:
            continue
        module, part = named
        if module not in modules:
            verdicts[module] = "missing"
        elif value.ndim >= 2 and not _fits_module(modules[module], part, value):
            verdicts[module] = "misfit"
        else:
            verdicts.setdefault(module, "kept")
    of = {verdict: [m for m, v in verdicts.items() if v == verdict] for verdict in ("kept", "missing", "misfit")}
    return of["kept"], of["missing"], of["misfit"]


def activate(member: Any, names: Sequence[str] | str, weights: Any = None) -> None:
    """Make those of the adapters that a member has its active ones; weights as `set_adapters` takes them, or unchanged.

    A member that has none of them runs without any.
    """
    if not getattr(member, "_hf_peft_config_loaded", False):
        return
    listed = [names] if isinstance(names, str) else list(names)
    have = [i for i, name in enumerate(listed) if name in _adapters(member)]
    chosen = [listed[i] for i in have]
    if weights is None or not have:
        member.set_adapter(chosen)
    else:
        member.set_adapters(chosen, [weights[i] for i in have] if isinstance(weights, list | tuple) else weights)


def active(member: Any) -> list[str]:
    """The names of a member's active adapters."""
    if not getattr(member, "_hf_peft_config_loaded", False):
        return []
    found = member.active_adapters() or []
    return [found] if isinstance(found, str) else list(found)


def delete(members: Iterable[Any], names: Sequence[str] | str) -> None:
    """Delete adapters from the members that have them.

    peft then makes a remaining one active; a member that had none active follows the others in this.
    """
    listed = [names] if isinstance(names, str) else list(names)
    left: list[str] = []
    for member in (members := list(members)):
        have = [name for name in listed if name in _adapters(member)]
        if have:
            member.delete_adapters(have)
            left += active(member)
    for member in members:
        if left and not active(member):
            activate(member, list(dict.fromkeys(left)))


def fuse(member: Any, scale: float, safe: bool, names: Sequence[str] | None) -> None:
    """fuse_lora on a member, for those of the names that it has (all of its own if none are given)."""
    if not getattr(member, "_hf_peft_config_loaded", False):
        return
    have = None if names is None else [name for name in names if name in _adapters(member)]
    if have or have is None:
        member.fuse_lora(scale, safe_fusing=safe, adapter_names=have)


def _ours(weights: Any, prefix: str | None) -> dict[str, Tensor]:
    """The weights with the prefix, in peft's names (kohya's and diffusers' older ones are translated)."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    if not isinstance(weights, Mapping):
        raise StitchError("load a LoRA with pipe.load_lora_weights(…), which reads its file into a state dict")
    ours = {key: value for key, value in weights.items() if prefix is None or key.startswith(f"{prefix}.")}
    if any(".lokr_" in key for key in ours):
        raise StitchError("LoKr adapters are not for a stitched pipeline: load it before stitch(…), or a LoRA")
    if ours and "lora_A" not in next(iter(ours)):
        ours = convert_unet_state_dict_to_peft(ours)
    return ours


def _fits(
    members: Mapping[str, Any], weights: Mapping[str, Tensor], prefix: str | None
) -> tuple[dict[str, str], dict[str, dict[str, Tensor]]]:
    """What is said of each member, and the weights for each that takes some."""
    said: dict[str, str] = {}
    keeping: dict[str, dict[str, Tensor]] = {}
    for name, member in members.items():
        kept, missing, misfits = fitting(member, weights, prefix)
        total = len(kept) + len(missing) + len(misfits)
        if misfits:
            said[name] = f"none: {len(misfits)} of {total} modules have other shapes, {misfits[0]} first"
        elif not kept:
            said[name] = f"none of {total} modules is there"
        else:
            said[name] = f"all {total} modules" if not missing else f"{len(kept)} of {total} modules"
            keeping[name] = _of_modules(weights, prefix, set(kept))
    return said, keeping


def _not_for(adapter: str, members: Mapping[str, Any], hotswap: bool) -> list[str]:
    """The members that are passed over: they have an adapter of this name (to swap: have none), and others do not.

    Where all have it (to swap: none has), none is passed over, and diffusers says what is wrong.
    """
    passed = [name for name, member in members.items() if (adapter in _adapters(member)) != hotswap]
    return passed if len(passed) < len(members) else []


def _free_name(members: Iterable[Any]) -> str:
    """The name of an adapter that was given none: diffusers' default, free in every member."""
    taken = [_adapters(member) for member in members]
    number = max((len(names) for names in taken), default=0)
    while any(f"default_{number}" in names for names in taken):
        number += 1
    return f"default_{number}"


def _adapters(member: Any) -> Mapping[str, Any]:
    return getattr(member, "peft_config", {})


def _take_away(member: Any, adapter: str) -> None:
    """Delete an adapter that was loaded in part, and the layers made for it where there is no other."""
    member.delete_adapters(adapter)
    if not _adapters(member):
        member.unload_lora()


def _fits_module(module: Any, part: str, value: Tensor) -> bool:
    """Whether a LoRA's factor A (…, in) or B (out, …) fits a linear map or a convolution, quantised or not."""
    names, axis = (("in_features", "in_channels"), 1) if part[0] in "Ad" else (("out_features", "out_channels"), 0)
    sizes = [getattr(module, name) for name in names if hasattr(module, name)]
    weight = getattr(module, "weight", None)
    if not sizes and isinstance(weight, Tensor) and weight.ndim > axis:
        sizes = [weight.shape[axis]]
    return bool(sizes) and value.shape[axis] == sizes[0]


def _module_of(key: str, prefix: str | None) -> tuple[str, str] | None:
    """("down_blocks.0.….to_q", "A.weight") of "unet.down_blocks.0.….to_q.lora_A.weight"."""
    start = f"{prefix}." if prefix else ""
    if not key.startswith(start) or ".lora_" not in key:
        return None
    module, part = key[len(start) :].split(".lora_", 1)
    return module, part


def _of_modules(weights: Mapping[str, Tensor], prefix: str | None, modules: set[str]) -> dict[str, Tensor]:
    kept = {}
    for key, value in weights.items():
        named = _module_of(key, prefix)
        if named is not None and named[0] in modules:
            kept[key] = value
    return kept


def _of_state(alphas: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The alphas of the modules that a state dict has, named as they came: diffusers reads those as it would all."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    modules = {key.split(".lora_")[0] for key in state}
    translated = zip(alphas.items(), convert_unet_state_dict_to_peft(dict(alphas)), strict=True)
    return {key: alpha for (key, alpha), named in translated if _stem(named) in modules}


def _stem(alpha: str) -> str:
    """The module of an alpha: "….to_q" of "….to_q.alpha" and of "….to_q.lora_A.weight.alpha"."""
    return alpha.removesuffix(".alpha").split(".lora_")[0]
