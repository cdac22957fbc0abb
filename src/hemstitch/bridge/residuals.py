"""Whether what a ControlNet or an adapter adds to one denoiser fits another.

The pipeline's own denoiser is the measure: a member fits where it has the same places for residuals. A U-Net adds only
as many as it has places for and says nothing of the rest, so this is decided when the stitch is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import StitchError


def misfit(member: Any, own: Any, source: str) -> str | None:
    """Why the residuals made for `own` do not fit `member`; None if they do. source: "controlnet" or "adapter"."""
    if not hasattr(own, "down_blocks"):
        return _width_misfit(member, own)
    if source == "adapter":
        theirs, ours = (list(net.config.block_out_channels) for net in (member, own))
    else:
        theirs, ours = skips(member), skips(own)
    if theirs == ours:
        return None
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} places for residuals, the pipeline's own {len(ours)}"
    return f"its places for residuals have {theirs} channels, the pipeline's own {ours}"


def refuse_cut(name: str, member: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a call with more residuals than the member has places for (a ControlNet that came after the stitch)."""
    given = arguments.get("down_block_additional_residuals")
    if given is None or not hasattr(member, "down_blocks"):
        return
    places = len(skips(member)) - 1
    if len(given) != places and arguments.get("mid_block_additional_residual") is not None:
        raise StitchError(
            f"the ControlNet gives {len(given)} residuals and the member {name!r} has {places} places for them: stitch "
            f'the pipeline that has the ControlNet, with controlnets= or residuals={{{name!r}: "drop"}}'
        )


def skips(unet: Any) -> list[int]:
    """The channels of a U-Net's skip connections in their order, and of its middle: what a ControlNet adds to."""
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        channels += [resnet.out_channels for resnet in block.resnets]
        channels += [sampler.out_channels for sampler in block.downsamplers or []]
    middle = unet.mid_block.resnets[-1].out_channels if unet.mid_block is not None else channels[-1]
    return [*channels, middle]


def _width_misfit(member: Any, own: Any) -> str | None:
    """Transformers spread a ControlNet's residuals over their blocks by ratio: any depth goes, the width must agree."""
    theirs, ours = (int(net.config.num_attention_heads) * int(net.config.attention_head_dim) for net in (member, own))
    return None if theirs == ours else f"its blocks are {theirs} wide, the pipeline's own {ours}"
