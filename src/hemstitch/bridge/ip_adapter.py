"""IP-Adapter on a stitched model: made for the attention layers of one network, told apart by their order alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import StitchError


def load(members: Mapping[str, Any], own_name: str, own: Any, weights: Any, **more: Any) -> None:
    """Load an IP-Adapter into members whose attention layers are those of the pipeline's own denoiser.

    Raises StitchError, with every member as it was, where one's are others, or where `own` is not among the members:
    the pipeline takes the picture's projection from there.
    """
    how = "with stitched(pipe).only({}): pipe.load_ip_adapter(…)"
    if own_name not in members:
        raise StitchError(
            f"the pipeline reads an IP-Adapter's picture projection from its own denoiser {own_name!r}: load it there "
            f"too, {how.format(', '.join(map(repr, (*members, own_name))))}"
        )
    ours = attentions(own)
    others = {name: attentions(member) for name, member in members.items()}
    unfit = {name: theirs for name, theirs in others.items() if theirs != ours}
    if unfit:
        name, theirs = next(iter(unfit.items()))
        fit = ", ".join(repr(name) for name in members if name not in unfit)
        raise StitchError(
            f"an IP-Adapter for {own_name!r} does not fit the member {name!r}, whose attention layers are others "
            f"({len(theirs)}, {own_name!r} has {len(ours)}, {_same(theirs, ours)} alike): load it into those "
            f"that it fits, {how.format(fit)}; the others run without"
        )
    members[own_name]._load_ip_adapter_weights(weights, **more)  # first: what raises here has changed no other
    for name, member in members.items():
        if name != own_name:
            member._load_ip_adapter_weights(weights, **more)
            _share_scales(member, own)


def attentions(member: Any) -> dict[str, tuple[int, int]]:
    """The attention layers of a network in their order: {name: (width of what it reads, of what it makes)}."""
    found = {}
    for name in member.attn_processors:
        keys = member.get_submodule(name.removesuffix(".processor")).to_k
        found[name] = (int(keys.in_features), int(keys.out_features))
    return found


def _same(theirs: Mapping[str, tuple[int, int]], ours: Mapping[str, tuple[int, int]]) -> int:
    return sum(ours.get(name) == widths for name, widths in theirs.items())


def _share_scales(member: Any, own: Any) -> None:
    """pipe.set_ip_adapter_scale writes into the scales of the pipeline's own denoiser: they are the member's too."""
    processors = own.attn_processors
    for name, processor in member.attn_processors.items():
        if hasattr(processor, "scale"):
            processor.scale = processors[name].scale
