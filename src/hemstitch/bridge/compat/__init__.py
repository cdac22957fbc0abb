"""What can be stitched and what not, and why, before any weights are loaded.

    print(check("segmind/small-sd", "stable-diffusion-v1-5/stable-diffusion-v1-5"))

What is refused would raise in the middle of a run, or draw a bad picture without a word. Each refusal has its fix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .denoisers import Denoiser, compare_denoisers
from .findings import CONVERTED, Finding, Findings, compared, text
from .parts import compare_autoencoders, compare_schedulers, compare_text_encoders
from .sources import Side, same_weights, side_of

__all__ = ["CONVERTED", "Finding", "Findings", "check", "compare_denoisers", "compare_schedulers"]

Config = Mapping[str, Any]

_ENCODERS = re.compile(r"(text|image)_encoder(_\d)?")
# A component whose residuals enter the U-Net: what they must agree with, what stitch() is told where they don't.
_RESIDUALS = {
    "controlnet": (
        ("block_out_channels", "layers_per_block"),
        'controlnets={"small": one made for it} or residuals={"small": "drop"}',
    ),
    "adapter": (("block_out_channels",), 'residuals={"small": "drop"}'),
}


def check(small: Any, large: Any, subfolder: str | None = None) -> Findings:
    """Compare two denoisers and, where both came with a pipeline, what stands around them.

    small, large: each the path or hub id of a pipeline (model_index.json) or of a lone denoiser (config.json), or a
    live pipeline or module. subfolder: the denoiser's folder within them, where it is not unet or transformer. JSON is
    read, never weights; two VAEs on disk are compared by the sha256 of their files.

    Raises HemstitchError for what is none of these, damaged, or without a denoiser; MissingExtraError for a hub id
    without huggingface_hub.
    """
    a, b = side_of(small, subfolder), side_of(large, subfolder)
    found = compare_denoisers(a.denoiser, b.denoiser, b.config("scheduler"))
    found += _text_encoders(a, b)
    found += _autoencoders(a, b)
    found += _compared("scheduler", "scheduler", a, b, compare_schedulers)
    found += _pipelines(a, b)
    return Findings(tuple(found))


def _compared(
    component: str, what: str, a: Side, b: Side, compare: Callable[[Config, Config], list[Finding]]
) -> list[Finding]:
    ours, theirs = a.config(component), b.config(component)
    return _unknown(what, a, b, ours, theirs) if ours is None or theirs is None else compare(ours, theirs)


def _unknown(what: str, a: Side, b: Side, ours: Any, theirs: Any) -> list[Finding]:
    """What cannot be compared is said: of a lone denoiser only itself is known."""
    if ours is None and theirs is None and not (a.lone and b.lone):
        return []
    sides = ((a, ours), (b, theirs))
    said = ["not known" if side.lone else "none" if config is None else "known" for side, config in sides]
    why = [f"{text(side.name)} {'is a lone denoiser' if side.lone else 'has none'}" for side, c in sides if c is None]
    fix = f"not known: {' and '.join(dict.fromkeys(why))}; both members must have been trained with the same"
    return [Finding("note", what, said[0], said[1], fix)]


def _text_encoders(a: Side, b: Side) -> list[Finding]:
    if a.lone or b.lone:
        if Denoiser.of(b.denoiser).text_width is None:
            return []
        return _unknown("text encoder", a, b, *(None if side.lone else side for side in (a, b)))
    found: list[Finding] = []
    for name in sorted({name for side in (a, b) for name in side.index if _ENCODERS.fullmatch(name)}):
        what = name.replace("_", " ")
        said = _compared(name, what, a, b, partial(compare_text_encoders, what))
        found += said
        tokenizer = name.replace("text_encoder", "tokenizer")
        classes = [str(side.component_class(tokenizer)).removesuffix("Fast") for side in (a, b)]
        if "None" not in classes and classes[0] != classes[1] and [f.level for f in said] == ["ok"]:
            fix = "the large pipeline's cuts the prompts for both, and the small one was trained with another"
            found += compared(tokenizer.replace("_", " "), classes, fix, "note")
    return found


def _autoencoders(a: Side, b: Side) -> list[Finding]:
    names = [next((c for c in ("vqvae", "vae") if c in side.index), None) for side in (a, b)]
    if not (a.lone or b.lone) and (names[0] is None) != (names[1] is None):
        fix = "one member denoises pixels and the other latents; take two of a kind"
        return compared("VAE", ["none (pixels)" if name is None else "latents" for name in names], fix)
    ours, theirs = [side.config(name) if name else None for side, name in zip((a, b), names, strict=True)]
    if ours is None or theirs is None:
        return _unknown("VAE", a, b, ours, theirs)
    equal = None
    if a.folder is not None and b.folder is not None:
        equal = same_weights(a.folder / str(names[0]), b.folder / str(names[1]))
    return compare_autoencoders(ours, theirs, equal)


def _pipelines(a: Side, b: Side) -> list[Finding]:
    """What the pipelines themselves say: Wan's timesteps and pairs; ControlNets and adapters."""
    found: list[Finding] = []
    patches = [bool(side.index.get("expand_timesteps")) for side in (a, b)]
    if patches[0] != patches[1] and not (a.lone or b.lone):
        fix = (
            "with expand_timesteps each patch has a timestep of its own, and given frames enter clean, at 0; a member "
            "trained without never saw that: take two of Wan 2.2's 5B, or two others"
        )
        found += compared("timesteps of patches", patches, fix)
    if b.component_class("transformer_2"):
        fix = (
            "the large pipeline has two transformers, one each side of its boundary_ratio; stitch(pipe, small, "
            'component="transformer") replaces the first, "transformer_2" the second'
        )
        have = "two" if a.component_class("transformer_2") else "one"
        found.append(Finding("note", "transformers", have, "two", fix))
    for component, (keys, lifted) in _RESIDUALS.items():
        if b.component_class(component):
            fit = [" × ".join(text(Denoiser.of(side.denoiser)[key]) for key in keys) for side in (a, b)]
            fix = f"its residuals are made for the large U-Net and don't fit the small one; tell stitch() {lifted}"
            found += compared(component, fit, fix, "note")
    return found
