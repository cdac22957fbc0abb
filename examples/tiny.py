"""Tiny random diffusers pipelines of every family, built offline on a CPU in well under a second each.

    pipe = tiny.build("sdxl")                  # a StableDiffusionXLPipeline with random weights
    latents = tiny.run("sdxl", pipe)           # its smallest call
    pipe.unet = tiny.small("sdxl")             # another U-Net of the family: fewer channels and blocks
    pipe.unet = tiny.thin("sdxl")              # or fewer blocks at the same widths, as BK-SDM and SSD-1B have

`FAMILIES` lists the names, `DENOISER[name]` is "unet" or "transformer", `MAKE[name]` builds the family's denoisers. The
members of a family agree in all that a stitched pipeline needs: latents, text width, prediction, timesteps.

There are no files: tokenizers split text into characters, weights come from seeds. `python examples/tiny.py` runs all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

SIZE = 32  # pixels of a side
PROMPT = "a red cat"


# Text: tokenizers and encoders without files


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer without merges: each character is a token, 77 at most."""
    letters = sorted(ByteLevel.alphabet())
    words = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


CLIP_VOCABULARY = 2 * 256 + 2


def clip_text(width: int = 32, projection: int | None = None, seed: int = 0, **config: Any) -> nn.Module:
    """A CLIP text encoder; with a projection where `projection` gives its width."""
    torch.manual_seed(seed)
    chosen = {
        "hidden_size": width,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "projection_dim": projection or width,
        "vocab_size": CLIP_VOCABULARY,
        "max_position_embeddings": 77,
        "bos_token_id": CLIP_VOCABULARY - 2,
        "eos_token_id": CLIP_VOCABULARY - 1,  # pooling looks for it
        "pad_token_id": CLIP_VOCABULARY - 1,
    }
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(CLIPTextConfig(**{**chosen, **config})).eval()


def t5_tokenizer(length: int = 16) -> T5Tokenizer:
    """A unigram tokenizer over the printable ASCII characters."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocabulary += [(chr(c), -3.0) for c in range(33, 127)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def t5_text(width: int = 32, seed: int = 0, umt5: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    config = {"vocab_size": 128, "d_model": width, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return (UMT5EncoderModel(UMT5Config(**config)) if umt5 else T5EncoderModel(T5Config(**config))).eval()


def clip_model(seed: int = 6) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP of text and pictures, and what prepares both for it: random, as all is here."""
    torch.manual_seed(seed)
    text = clip_text(seed=seed).config.to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": SIZE,
        "patch_size": 8,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return model, CLIPProcessor(pictures, clip_tokenizer())


# Autoencoders and schedulers


def vae(latents: int = 4, seed: int = 0, **config: Any) -> AutoencoderKL:
    """Two blocks: latents are half as wide as the picture."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=SIZE,
        **config,
    ).eval()


SD_BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def sd_scheduler() -> DDIMScheduler:
    return DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


# Denoisers. size: "large" | "small" (narrower and shallower) | "thin" (shallower, the same widths)


def unet_sd(size: str = "large", seed: int = 1, **config: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    chosen = {
        "sample_size": SIZE // 2,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2 if size == "large" else 1,
        "block_out_channels": (8, 16) if size == "small" else (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**chosen, **config}).eval()


def unet_lcm(size: str = "large", seed: int = 1) -> UNet2DConditionModel:
    """Takes an embedding of the guidance, as latent consistency models do."""
    return unet_sd(size, seed, time_cond_proj_dim=32)


def unet_inpaint9(size: str = "large", seed: int = 1) -> UNet2DConditionModel:
    return unet_sd(size, seed, in_channels=9)


def unet_sdxl(size: str = "large", seed: int = 1, **config: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    chosen = {
        "sample_size": SIZE // 2,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2 if size == "large" else 1,
        "block_out_channels": (8, 16) if size == "small" else (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2) if size == "large" else (1, 1),
        "projection_class_embeddings_input_dim": 6 * 8 + 32,  # six time ids and the pooled text
        "cross_attention_dim": 64,  # 32 of each encoder
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**chosen, **config}).eval()


def unet_sdxl_adapter(size: str = "large", seed: int = 1) -> UNet2DConditionModel:
    """Three blocks, as the T2I adapter below has."""
    return unet_sdxl(
        size,
        seed,
        block_out_channels=(8, 8, 16) if size == "small" else (16, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2, 4),
        transformer_layers_per_block=1,
    )


def unet_uncond(
    size: str = "large", seed: int = 1, channels: int = 3, sample: int = SIZE // 2, **config: Any
) -> UNet2DModel:
    torch.manual_seed(seed)
    chosen = {
        "sample_size": sample,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 2 if size == "large" else 1,
        "block_out_channels": (8, 16) if size == "small" else (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return UNet2DModel(**{**chosen, **config}).eval()


def unet_class(size: str = "large", seed: int = 1, classes: int = 10) -> UNet2DModel:
    """Class-conditional: unet(x, t, class_labels). No stock pipeline calls it with labels."""
    return unet_uncond(size, seed, num_class_embeds=classes)


def transformer_dit(size: str = "large", seed: int = 1, classes: int = 1000, **config: Any) -> DiTTransformer2DModel:
    torch.manual_seed(seed)
    chosen = {
        "sample_size": 8,
        "patch_size": 2,
        "num_layers": 2 if size == "large" else 1,
        "num_attention_heads": 2 if size == "small" else 4,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
    }
    return _unzeroed(DiTTransformer2DModel(**{**chosen, **config}).eval())


def transformer_pixart(size: str = "large", seed: int = 1, **config: Any) -> PixArtTransformer2DModel:
    torch.manual_seed(seed)
    heads = 2 if size == "small" else 4
    chosen = {
        "sample_size": SIZE // 2,
        "patch_size": 2,
        "num_layers": 2 if size == "large" else 1,
        "num_attention_heads": heads,
        "attention_head_dim": 8,
        "cross_attention_dim": heads * 8,
        "caption_channels": 32,
        "in_channels": 4,
        "out_channels": 8,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
    }
    return PixArtTransformer2DModel(**{**chosen, **config}).eval()


def transformer_sd3(size: str = "large", seed: int = 1, **config: Any) -> SD3Transformer2DModel:
    torch.manual_seed(seed)
    heads = 2 if size == "small" else 4
    chosen = {
        "sample_size": SIZE // 2,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2 if size == "large" else 1,
        "attention_head_dim": 8,
        "num_attention_heads": heads,
        "joint_attention_dim": 64,
        "caption_projection_dim": heads * 8,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": SIZE // 2,
    }
    return SD3Transformer2DModel(**{**chosen, **config}).eval()


def transformer_flux(size: str = "large", seed: int = 1, **config: Any) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    chosen = {
        "patch_size": 1,
        "in_channels": 16,  # four latent channels, packed two by two
        "num_layers": 2 if size == "large" else 1,
        "num_single_layers": 2 if size == "large" else 1,
        "attention_head_dim": 16,
        "num_attention_heads": 1 if size == "small" else 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": False,
    }
    return FluxTransformer2DModel(**{**chosen, **config}).eval()


def transformer_wan(size: str = "large", seed: int = 1, **config: Any) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    chosen = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 1 if size == "small" else 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 16 if size == "small" else 32,
        "num_layers": 2 if size == "large" else 1,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**{**chosen, **config}).eval()


@torch.no_grad()
def _unzeroed(net: nn.Module) -> nn.Module:
    """Fills parameters that start at zero (adaLN-zero, a ControlNet's last maps): inputs matter to the output then."""
    for parameter in net.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.02)
    return net


# What is added to a U-Net


def controlnet_for(unet: UNet2DConditionModel, seed: int = 3) -> ControlNetModel:
    """A ControlNet whose residuals fit `unet`."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(
        unet, conditioning_channels=3, load_weights_from_unet=False, conditioning_embedding_out_channels=(8, 16)
    )
    return _unzeroed(net.eval())


def t2i_adapter(widths: tuple[int, ...] = (16, 16, 32), seed: int = 3) -> T2IAdapter:
    torch.manual_seed(seed)
    return T2IAdapter(
        in_channels=3, channels=list(widths), num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl"
    ).eval()


def lora_for(net: nn.Module, part: str, rank: int = 2, seed: int = 4) -> dict[str, Tensor]:
    """A random LoRA of the attention's queries and values, as pipe.load_lora_weights takes it. part: "unet", …"""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and name.endswith((".to_q", ".to_v")):
            state[f"{part}.{name}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=generator)
            state[f"{part}.{name}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=generator)
    return state


# Pipelines


def _sd_parts(unet: nn.Module, scheduler: Any = None) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip_text(),
        "tokenizer": clip_tokenizer(),
        "unet": unet,
        "scheduler": scheduler or sd_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sd() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**_sd_parts(unet_sd()))


def sd_img2img() -> StableDiffusionImg2ImgPipeline:
    return StableDiffusionImg2ImgPipeline(**_sd_parts(unet_sd()))


def sd_inpaint() -> StableDiffusionInpaintPipeline:
    """Four channels: the mask is applied to the latents."""
    return StableDiffusionInpaintPipeline(**_sd_parts(unet_sd()))


def sd_inpaint9() -> StableDiffusionInpaintPipeline:
    """Nine channels: mask and masked latents enter the U-Net."""
    return StableDiffusionInpaintPipeline(**_sd_parts(unet_inpaint9()))


def lcm() -> LatentConsistencyModelPipeline:
    return LatentConsistencyModelPipeline(**_sd_parts(unet_lcm(), LCMScheduler(**SD_BETAS)))


def _sdxl_parts(unet: nn.Module) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip_text(),
        "text_encoder_2": clip_text(projection=32, seed=2),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet,
        "scheduler": sd_scheduler(),
    }


def sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(**_sdxl_parts(unet_sdxl()), add_watermarker=False)


def sdxl_controlnet() -> StableDiffusionXLControlNetPipeline:
    unet = unet_sdxl()
    return StableDiffusionXLControlNetPipeline(
        **_sdxl_parts(unet), controlnet=controlnet_for(unet), add_watermarker=False
    )


def sdxl_adapter() -> StableDiffusionXLAdapterPipeline:
    return StableDiffusionXLAdapterPipeline(**_sdxl_parts(unet_sdxl_adapter()), adapter=t2i_adapter())


def ldm() -> LDMPipeline:
    torch.manual_seed(0)
    vqvae = VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=4,
        sample_size=SIZE,
    ).eval()
    return LDMPipeline(vqvae=vqvae, unet=unet_uncond(), scheduler=sd_scheduler())


def ddim() -> DDIMPipeline:
    return DDIMPipeline(unet=unet_uncond(), scheduler=DDIMScheduler())


def ddpm() -> DDPMPipeline:
    return DDPMPipeline(unet=unet_uncond(), scheduler=DDPMScheduler())


def dit() -> DiTPipeline:
    return DiTPipeline(
        transformer=transformer_dit(),
        vae=vae(),
        scheduler=DDIMScheduler(),
        id2label={str(i): f"label {i}" for i in range(1000)},
    )


def _pixart_parts() -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_text(),
        "vae": vae(),
        "transformer": transformer_pixart(),
        "scheduler": DPMSolverMultistepScheduler(),
    }


def pixart_alpha() -> PixArtAlphaPipeline:
    return PixArtAlphaPipeline(**_pixart_parts())


def pixart_sigma() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(**_pixart_parts())


def sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=transformer_sd3(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=clip_text(projection=32),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=32, seed=2),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(64),
        tokenizer_3=t5_tokenizer(),
    )


def flux(guidance_embeds: bool = False) -> FluxPipeline:
    return FluxPipeline(
        transformer=transformer_flux(guidance_embeds=guidance_embeds),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
    )


def wan(two: bool = False) -> WanPipeline:
    torch.manual_seed(0)
    video = AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(umt5=True),
        vae=video,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=transformer_wan(),
        transformer_2=transformer_wan(seed=5) if two else None,
        boundary_ratio=0.875 if two else None,
    )


def wan_two() -> WanPipeline:
    """As Wan 2.2: `transformer` denoises where there is much noise and `transformer_2` where there is little."""
    return wan(two=True)


# All of them by name

MAKE: dict[str, Callable[..., nn.Module]] = {
    "sd": unet_sd,
    "sd_img2img": unet_sd,
    "sd_inpaint": unet_sd,
    "sd_inpaint9": unet_inpaint9,
    "sdxl": unet_sdxl,
    "sdxl_controlnet": unet_sdxl,
    "sdxl_adapter": unet_sdxl_adapter,
    "lcm": unet_lcm,
    "ldm": unet_uncond,
    "ddim": unet_uncond,
    "ddpm": unet_uncond,
    "dit": transformer_dit,
    "pixart_alpha": transformer_pixart,
    "pixart_sigma": transformer_pixart,
    "sd3": transformer_sd3,
    "flux": transformer_flux,
    "wan": transformer_wan,
    "wan_two": transformer_wan,
}
FAMILIES = list(MAKE)
DENOISER = {name: "unet" if make.__name__.startswith("unet") else "transformer" for name, make in MAKE.items()}


def build(name: str) -> DiffusionPipeline:
    """The family's pipeline, without progress bars."""
    pipe = globals()[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small(name: str, seed: int = 11) -> nn.Module:
    """The family's denoiser with fewer channels and blocks."""
    return MAKE[name]("small", seed)


def thin(name: str, seed: int = 11) -> nn.Module:
    """The family's denoiser with fewer blocks at the same widths. ControlNet residuals need not fit: they are fewer."""
    return MAKE[name]("thin", seed)


def picture(seed: int = 0) -> Tensor:
    """Noise, (1, 3, 32, 32) in 0..1."""
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def call_kwargs(name: str, steps: int = 3, seed: int = 0) -> dict[str, Any]:
    """The family's smallest call. Its result is latents where the pipeline gives latents."""
    call: dict[str, Any] = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}
    square = {"height": SIZE, "width": SIZE}
    if name in ("ddim", "ldm", "ddpm"):
        return {**call, "batch_size": 1, "output_type": "np"}
    if name == "dit":
        return {**call, "class_labels": [1], "output_type": "np"}
    if name.startswith("wan"):  # diffusers cleans Wan's prompts with ftfy, which need not be installed
        embeds = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(7))
        text = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds.flip(1)}
        return {**call, **text, **square, "num_frames": 5, "output_type": "latent"}
    call.update(prompt=PROMPT, output_type="latent")
    if name == "sd_img2img":
        return {**call, "image": picture(), "strength": 1.0}
    if name.startswith("sd_inpaint"):
        mask = torch.zeros(1, 1, SIZE, SIZE)
        mask[..., : SIZE // 2] = 1
        return {**call, **square, "image": picture(), "mask_image": mask}
    if name in ("sdxl_controlnet", "sdxl_adapter"):
        return {**call, **square, "image": picture()}
    if name.startswith("pixart"):
        return {**call, **square, "use_resolution_binning": False, "clean_caption": False}
    if name in ("sd3", "flux"):
        return {**call, **square, "max_sequence_length": 16}
    return {**call, **square}


@torch.no_grad()
def run(name: str, pipe: DiffusionPipeline, steps: int = 3, seed: int = 0, **more: Any) -> Tensor:
    """One call: latents, or the picture where a family gives no latents. `more` goes to the pipeline."""
    out = pipe(**{**call_kwargs(name, steps, seed), **more})
    if isinstance(out, tuple):
        return torch.as_tensor(out[0])
    return torch.as_tensor(out.images if hasattr(out, "images") else out.frames)


def main() -> None:
    torch.set_num_threads(1)
    for name in FAMILIES:
        began = time.perf_counter()
        pipe = build(name)
        built = time.perf_counter()
        out = run(name, pipe)
        ran = time.perf_counter()
        nets = (getattr(pipe, DENOISER[name]), thin(name), small(name))
        counts = ", ".join(f"{sum(p.numel() for p in net.parameters()):,}" for net in nets)
        print(
            f"{name:16s} built in {built - began:.2f} s, ran in {ran - built:.2f} s: {tuple(out.shape)}, "
            f"repeats {torch.equal(out, run(name, pipe))}; parameters {counts}"
        )


if __name__ == "__main__":
    main()
