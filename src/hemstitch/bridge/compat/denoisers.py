"""Whether two diffusers denoisers can take turns at one trajectory, told from their configurations.

A rule compares one thing: what the pipeline hands to the denoiser or takes from it. Depth, width and heads may differ:
they are the point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .findings import Finding, compared, plain, text, whole

# What diffusers (0.42) takes a key for that is not in a configuration; None for all others.
DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "time_embedding_type": "positional",
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
    },
    "UNet2DModel": {
        "in_channels": 3,
        "out_channels": 3,
        "time_embedding_type": "positional",
        "block_out_channels": [224, 448, 672, 896],
        "layers_per_block": 2,
    },
    "DiTTransformer2DModel": {"in_channels": 4, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000},
    "PixArtTransformer2DModel": {
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 128,
        "patch_size": 2,
        "cross_attention_dim": 1152,
    },
    "SD3Transformer2DModel": {
        "in_channels": 16,
        "out_channels": 16,
        "sample_size": 128,
        "patch_size": 2,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 96,
    },
    "FluxTransformer2DModel": {
        "in_channels": 64,
        "patch_size": 1,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": False,
    },
    "WanTransformer3DModel": {"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "text_dim": 4096},
}
_LEGACY = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}

_INPUTS = {
    ("UNet2DConditionModel", 8): "picture editing (InstructPix2Pix)",
    ("UNet2DConditionModel", 9): "inpainting: latents, a mask and the masked picture",
    ("FluxTransformer2DModel", 64): "16 latent channels, packed two by two",
    ("FluxTransformer2DModel", 128): "Flux Control (depth, canny)",
    ("FluxTransformer2DModel", 384): "Flux Fill",
    ("WanTransformer3DModel", 36): "image to video",
    ("WanTransformer3DModel", 48): "Wan 2.2's own VAE of 48 channels",
}


@dataclass(frozen=True)
class Denoiser:
    """A configuration: its class, as diffusers would load it today, and its values with diffusers' defaults."""

    name: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Denoiser:
        name = text(config.get("_class_name"))
        if name == "Transformer2DModel":
            name = _LEGACY.get(str(config.get("norm_type")), name)
        return cls(name, config)

    def __getitem__(self, key: str) -> Any:
        return plain(self.values.get(key, DEFAULTS.get(self.name, {}).get(key)))

    @property
    def unet(self) -> bool:
        return self["block_out_channels"] is not None

    @property
    def out_channels(self) -> Any:
        return self["in_channels"] if self["out_channels"] is None else self["out_channels"]

    @property
    def text_width(self) -> Any:
        """Of the embeddings that it reads."""
        projected = self["caption_channels"]  # where there is one, cross_attention_dim is a width of the network's own
        if projected is not None or self.name == "PixArtTransformer2DModel":
            return self["cross_attention_dim"] if projected is None else projected
        for key in ("encoder_hid_dim", "cross_attention_dim", "joint_attention_dim", "text_dim", "text_embed_dim"):
            if (width := self[key]) is not None:
                same = isinstance(width, list) and width and width.count(width[0]) == len(width)
                return width[0] if same else width
        return None

    @property
    def size(self) -> str:
        """Block widths and layers, in words."""
        if self.unet:
            return f"{text(self['block_out_channels'])} × {text(self['layers_per_block'])} layers"
        if self["num_layers"] is None:
            return "not known"
        layers = text(self["num_layers"])
        if self["num_single_layers"] is not None:
            layers += f" + {text(self['num_single_layers'])}"
        return f"{layers} layers, {text(self['num_attention_heads'])} × {text(self['attention_head_dim'])} wide"

    @property
    def sees_size(self) -> bool:
        """Whether a PixArt network embeds the picture's resolution and aspect ratio (micro-conditions)."""
        asked = self["use_additional_conditions"]
        return self["sample_size"] == 128 if asked is None else bool(asked)


def compare_denoisers(
    small: Mapping[str, Any], large: Mapping[str, Any], scheduler: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Every rule over the configurations of two denoisers (mappings with "_class_name").

    scheduler: the large pipeline's configuration, where known; it decides whether a missing learned variance matters.
    """
    a, b = Denoiser.of(small), Denoiser.of(large)
    fix = f"the pipeline calls a {b.name}, and a {a.name} takes other arguments; take a small {b.name}"
    found = compared("denoiser", (a.name, b.name), fix)
    if a.name == b.name:
        for rule in _RULES:
            found += rule(a, b)
        found += _variance(a, b, scheduler)
    found.append(Finding("ok", "size", a.size, b.size))
    if a["quantization_config"] or b["quantization_config"]:
        stored = ["quantised" if d["quantization_config"] else "no" for d in (a, b)]
        fix = 'quantised weights may neither move nor change dtype: load both members to where they run, keep="both"'
        found.append(Finding("note", "quantisation", stored[0], stored[1], fix))
    return found


def _latents(a: Denoiser, b: Denoiser) -> list[Finding]:
    pair = a["in_channels"], b["in_channels"]
    meant = [_INPUTS.get((d.name, n)) if whole(n) else None for d, n in zip((a, b), pair, strict=True)]
    shown = [text(n) + (f" ({m})" if m else "") for n, m in zip(pair, meant, strict=True)]
    fix = f"the pipeline hands over {shown[1]} channels, and the small one reads {shown[0]}; "
    if b.name == "UNet2DConditionModel" and sorted(map(str, pair)) == ["4", "9"]:
        fix += "take two inpainting U-Nets, or two of 4 channels: StableDiffusionInpaintPipeline runs those too"
    else:
        fix += f"take a small one of {text(pair[1])} channels, trained on the same autoencoder for the same task"
    return compared("latent channels", pair, fix)


def _variance(a: Denoiser, b: Denoiser, scheduler: Mapping[str, Any] | None) -> list[Finding]:
    """A network that also predicts a variance answers twice the channels."""
    pair, what = (a.out_channels, b.out_channels), "output channels"
    few, many = sorted(pair) if all(whole(n) for n in pair) else (1, 0)
    if many != 2 * few:
        return compared(what, pair, "the members predict different things; take two that predict the same")
    small_lacks = pair[0] == few
    lacks, has = ("small", "large") if small_lacks else ("large", "small")
    if str((scheduler or {}).get("variance_type")).startswith("learned"):
        fix = (
            f"the scheduler reads a learned variance, and the {lacks} one predicts none; give the pipeline one that "
            'doesn\'t: DDPMScheduler.from_config(pipe.scheduler.config, variance_type="fixed_small"), or DDIM'
        )
        return compared(what, pair, fix)
    fix = (
        f"the {has} one also predicts a variance, which no scheduler reads unless its variance_type is learned; "
        f"the small one's is {'filled with zeros' if small_lacks else 'cut off'}"
    )
    return compared(what, pair, fix, "note")


def _resolution(a: Denoiser, b: Denoiser) -> list[Finding]:
    pair, what = (a["sample_size"], b["sample_size"]), "resolution"
    ours, theirs = map(text, pair)
    if b.name in ("FluxTransformer2DModel", "WanTransformer3DModel"):
        return []  # rotary positions: any size
    if b.name == "DiTTransformer2DModel":
        fix = (
            "a DiT is trained at one size: at another it runs, its positions stretched, and draws badly; "
            f"take a small one of sample_size {theirs}"
        )
        return compared(what, pair, fix)
    blocks, side = a["block_out_channels"], whole(b["sample_size"])
    if b.name == "UNet2DModel" and side and isinstance(blocks, list) and side % 2 ** max(min(len(blocks), 32) - 1, 0):
        halvings = len(blocks) - 1
        fix = f"the small one halves its input {halvings} times, and {side} is no multiple of 2^{halvings}; "
        return compared(what, pair, fix + "take one of fewer blocks", alike=False)
    fix = (
        f"latents may have any size, and {theirs} is what the pipeline draws unless told; a small one made for {ours} "
        "is best there: compare pictures at height= and width= of both"
    )
    return compared(what, pair, fix, "note")


def _positions(a: Denoiser, b: Denoiser) -> list[Finding]:
    """SD3 cuts its positions out of a table, and raises beyond it."""
    pair = whole(a["pos_embed_max_size"]), whole(b["pos_embed_max_size"])
    if pair[0] is None or pair[1] is None:
        return []
    most = pair[0] * (whole(a["patch_size"]) or 1)
    fix = f"the small one's table of positions ends at latents of {most} a side; "
    if (side := whole(b["sample_size"]) or 0) > most:
        fix += f"the pipeline draws {side} unless told: always give height= and width= within it"
    else:
        fix += "pictures up to that size can be stitched"
    return compared("positions", pair, fix, "note", alike=pair[0] >= pair[1])


def _micro(a: Denoiser, b: Denoiser) -> list[Finding]:
    if b.name != "PixArtTransformer2DModel":
        return []
    pair, what = (a.sees_size, b.sees_size), "micro-conditions"
    if a.sees_size and not b.sees_size:
        fix = (
            "the small one embeds the picture's resolution and aspect ratio, which the large one's pipeline doesn't "
            "give (PixArt-α does at sample_size 128, Σ never); take a small one without use_additional_conditions"
        )
        return compared(what, pair, fix)
    fix = "the large one embeds the picture's resolution and aspect ratio; the small one does without"
    return compared(what, pair, fix, "note")


def _patches(a: Denoiser, b: Denoiser) -> list[Finding]:
    fix = "each cuts the same latents its own way: height and width must be multiples of both, times the VAE's factor"
    return compared("patch size", (a["patch_size"], b["patch_size"]), fix, "note")


def _text(a: Denoiser, b: Denoiser) -> list[Finding]:
    pair = a.text_width, b.text_width
    fix = (
        f"the pipeline's text encoders give embeddings {text(pair[1])} wide, and the small one reads {text(pair[0])}: "
        "it was trained with others (768: CLIP-L, SD 1.x; 1024: OpenCLIP-H, SD 2.x; 2048: both of SDXL; 4096: "
        "T5-XXL); take a small one of the large one's family"
    )
    return compared("text width", pair, fix)


def _pooled(a: Denoiser, b: Denoiser) -> list[Finding]:
    pair = a["pooled_projection_dim"], b["pooled_projection_dim"]
    fix = f"the pipeline gives a pooled text {text(pair[1])} wide; take a small one trained with the same text encoders"
    return compared("pooled text", pair, fix)


def _added(a: Denoiser, b: Denoiser) -> list[Finding]:
    keys = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    pair = [[d[key] for key in keys if d[key] is not None] or None for d in (a, b)]
    fix = (
        "beside the prompt the members take different conditions (text_time of 2816 is SDXL's base, its pooled text "
        "and six sizes; of 2560 its refiner; none is SD 1.x and 2.x); take a small one of the same kind, such as "
        "SSD-1B for SDXL's base"
    )
    return compared("added conditions", pair, fix)


def _pictures(a: Denoiser, b: Denoiser) -> list[Finding]:
    """Picture prompts: IP-Adapter, Kandinsky, Wan's image to video."""
    pair = [_picture_kind(d) for d in (a, b)]
    fix = "one member takes a picture beside the prompt, and the other takes none or another kind: "
    if "ip_image_proj" in pair:
        fix += "pipe.unload_ip_adapter() before, or load the IP-Adapter into both"
    else:
        fix += "take two of one task (both text to video, or both image to video)"
    return compared("picture prompt", pair, fix)


def _picture_kind(d: Denoiser) -> str | None:
    if d["image_dim"] is not None or d["added_kv_proj_dim"] is not None:
        return f"{text(d['image_dim'])} wide, keys of {text(d['added_kv_proj_dim'])}"
    kind = d["encoder_hid_dim_type"]
    return None if kind is None or kind == "text_proj" else text(kind)


def _classes(a: Denoiser, b: Denoiser) -> list[Finding]:
    key = "num_embeds_ada_norm" if b.name == "DiTTransformer2DModel" else "num_class_embeds"
    fix = (
        f"the small one knows {text(a[key])} classes and the large one {text(b[key])}: a label means another thing to "
        "each; take two trained on the same classes"
    )
    found = compared("classes", (a[key], b[key]), fix)
    fix = "labels reach the members in different forms; take two of the same class_embed_type"
    return found + compared("class embedding", (a["class_embed_type"], b["class_embed_type"]), fix)


def _time(a: Denoiser, b: Denoiser) -> list[Finding]:
    pair = a["time_embedding_type"], b["time_embedding_type"]
    fix = "one member is told the noise's size (fourier), the other the number of a timestep; take two alike"
    return compared("time embedding", pair, fix) if "fourier" in pair else []


def _guidance(a: Denoiser, b: Denoiser) -> list[Finding]:
    """A guided student (LCM, Flux dev) is told the guidance scale and runs once a step; others know no such input."""
    told = [d["guidance_embeds"] if d["time_cond_proj_dim"] is None else d["time_cond_proj_dim"] for d in (a, b)]
    pair = [("guidance embedding" + (f" of {text(t)}" if whole(t) else "")) if t else "classical" for t in told]
    if bool(told[0]) != bool(told[1]):
        student, other = ("small", "large") if told[0] else ("large", "small")
        fix = (
            f"the {student} one is a guided student: it expects the guidance scale as an embedding and no "
            f"classifier-free guidance; the {other} one is classical: it knows no embedding, and to be guided it needs "
            "two passes. One pipeline does one of these; take two students, or two classical members (an LCM-LoRA on "
            "both keeps both classical)"
        )
    else:
        fix = (
            "the pipeline makes one embedding of the guidance scale, and the members read different widths of it; take "
            "two students of one time_cond_proj_dim"
        )
    return compared("time conditioning", pair, fix)


_RULES: tuple[Callable[[Denoiser, Denoiser], list[Finding]], ...] = (
    _latents,
    _resolution,
    _positions,
    _micro,
    _patches,
    _text,
    _pooled,
    _added,
    _pictures,
    _classes,
    _time,
    _guidance,
)
