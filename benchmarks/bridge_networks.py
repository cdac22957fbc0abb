"""Networks, pipelines and clocks of bridge.py: Stable Diffusion 1's U-Net and BK-SDM-Tiny's, and two DiTs.

Weights are random: they change neither what a network costs nor whether two ways to run it agree.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch import NetConfig, NetDenoiser, Process, build
from hemstitch.models import preset
from hemstitch.weights import convert, save, spec_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))  # tiny.py

SEEDS = {"networks": [1, 2], "noise": 0, "text": 7}

# The U-Nets' published configurations (stable-diffusion-v1-5; BK-SDM-Tiny, src/unet_config/bk_tiny of its repository).
_DOWN, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS: dict[str, dict[str, Any]] = {
    "large": {
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": (_DOWN, _DOWN, _DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", _UP, _UP, _UP),
    },
    "small": {
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 1,
        "down_block_types": (_DOWN,) * 3,
        "up_block_types": (_UP,) * 3,
        "mid_block_type": None,
    },
}
PARAMETERS = {"large": 859_520_964, "small": 323_384_964}  # at full width

# diffusers' timestep frequencies and epsilon: with these both run the same function
DIFFUSERS_LIKE = {"frequency_shift": 1, "mlp_norm_eps": 1e-5}


@dataclass(frozen=True)
class Size:
    """shrink: the U-Nets' widths are divided by it. heads, groups: of attention and normalisation. text: width of the
    prompt's embedding. latents: side of the latents. steps: solver steps of a run. rounds: timed runs of each variant.
    calls: timed pairs of calls. dits: the two DiTs. memory_shrink: of the pair whose memory is measured. pictures: of a
    run whose speed is measured: on a GPU as many as keep it busy, beside runs of one.
    """

    shrink: int
    heads: int
    groups: int
    text: int
    latents: int
    steps: int
    rounds: int
    calls: int
    dits: dict[str, NetConfig]
    memory_shrink: int
    pictures: int = 1


def _dit(size: int, width: int, depth: int, heads: int) -> NetConfig:
    return NetConfig("dit", size, 4, 2, width, depth, heads, 1000)


def size_of(name: str, device: str) -> Size:
    if name == "tiny":
        dits = {"small": _dit(8, 32, 1, 2), "large": _dit(8, 64, 2, 4)}
        return Size(20, 1, 8, 32, 8, 5, 3, 6, dits, memory_shrink=20)
    if device == "cpu":
        dits = {"small": _dit(16, 96, 3, 3), "large": _dit(16, 192, 6, 6)}
        return Size(8, 1, 8, 768, 32, 10, 20, 300, dits, memory_shrink=2)
    dits = {"small": preset("dit_s2"), "large": preset("dit_b2")}
    return Size(1, 8, 32, 768, 64, 20, 9, 300, dits, memory_shrink=1, pictures=16)


@dataclass(frozen=True)
class Bench:
    device: str
    dtype: torch.dtype
    size: Size

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any]) -> float:
        self.wait()
        begin = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - begin

    def interleaved(self, variants: dict[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
        """Seconds of each variant by round; the variants take turns, and each round begins with another one."""
        times: dict[str, list[float]] = {name: [] for name in variants}
        order = list(variants)
        for turn in range(rounds + warm):
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                seconds = self.seconds(variants[name])
                if turn >= warm:
                    times[name].append(seconds)
        return times

    def unet(self, name: str, shrink: int | None = None, device: str | None = None) -> Any:
        from diffusers import UNet2DConditionModel

        size, shrink = self.size, shrink or self.size.shrink
        config = dict(UNETS[name])
        config["block_out_channels"] = tuple(width // shrink for width in config["block_out_channels"])
        full = shrink == 1
        torch.manual_seed(SEEDS["networks"][name == "large"])
        with torch.device(device or self.device):
            net = UNet2DConditionModel(
                **config,
                sample_size=size.latents,
                cross_attention_dim=768 if full else size.text,
                attention_head_dim=8 if full else size.heads,
                norm_num_groups=32 if full else size.groups,
            )
        if full and parameters(net) != PARAMETERS[name]:
            raise RuntimeError(f"the {name} U-Net has {parameters(net)} parameters, the published {PARAMETERS[name]}")
        return net.to(self.dtype).eval().requires_grad_(False)

    def pipeline(self, unet: Any, device: str | None = None) -> Any:
        """A StableDiffusionPipeline around `unet`, without text encoder: prompts are given as embeddings."""
        import tiny
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

        pipe = StableDiffusionPipeline(
            vae=tiny.vae().to(self.dtype),
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            scheduler=DPMSolverMultistepScheduler(**tiny.SD_BETAS, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device or self.device)

    def latents(self, pipe: Any, steps: int | None = None, pictures: int = 1) -> Tensor:
        """Pictures' latents, guided: two rows of each in every call of the network."""
        generator = torch.Generator().manual_seed(SEEDS["text"])
        width = pipe.unet.config.cross_attention_dim
        text = torch.randn(2, 77, width, generator=generator).to(pipe.unet.device, self.dtype)
        return pipe(
            prompt_embeds=text[:1],
            negative_prompt_embeds=text[1:],
            num_inference_steps=steps or self.size.steps,
            num_images_per_prompt=pictures,
            generator=torch.Generator().manual_seed(SEEDS["noise"]),
            output_type="latent",
            return_dict=False,
        )[0]

    def dits(self, folder: Path, **changes: Any) -> tuple[dict[str, NetDenoiser], dict[str, Any]]:
        """Two DiTs, ours, and the same read by diffusers from the folders that `convert` writes; in float32."""
        from diffusers import DiTTransformer2DModel

        ours, theirs = {}, {}
        for seed, (name, config) in enumerate(self.size.dits.items()):
            torch.manual_seed(seed)
            net = filled(build(replace(config, **(DIFFUSERS_LIKE | changes))))
            ours[name] = NetDenoiser(net, Process("linear", learned_variance=True), spec_of(net.config))
            save(ours[name], folder / f"{name}.safetensors")
            convert(folder / f"{name}.safetensors", folder / name, "diffusers")
            theirs[name] = DiTTransformer2DModel.from_pretrained(folder / name).to(self.device).eval()
            net.to(self.device)
        return ours, theirs


def dit_pipeline(net: Any, spacing: str = "leading") -> Any:
    """A DiTPipeline whose VAE decodes to the latents themselves."""
    import tiny
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler = DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing=spacing
    )
    pipe = DiTPipeline(transformer=net, vae=tiny.vae(scaling_factor=1.0), scheduler=scheduler)
    pipe.vae.to(net.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dit_latents(pipe: Any, steps: int, labels: Sequence[int] = (1, 207), guidance: float = 1.5) -> Tensor:
    """What the pipeline hands to its VAE: it has no way to answer latents."""
    seen: list[Tensor] = []

    def decode(z: Tensor) -> Any:
        seen.append(z.clone())
        return SimpleNamespace(sample=z)

    pipe.vae.decode = decode
    generator = torch.Generator().manual_seed(SEEDS["noise"])
    pipe(list(labels), guidance, generator=generator, num_inference_steps=steps, output_type="pt")
    return seen[-1]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def weight_bytes(net: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*net.parameters(), *net.buffers()])


@torch.no_grad()
def filled(net: nn.Module) -> nn.Module:
    """Weights that start at zero (adaLN-zero) would hide what the network does with its inputs."""
    for parameter in net.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.02)
    return net.eval()


def spread(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Median; its 95 % interval by order statistics (binomial, no distribution assumed); quartiles."""
    ordered, n = sorted(values), len(values)
    outside, tail = 0, 1 / 2**n
    while outside < n // 2 and tail <= 0.025:
        outside += 1
        tail += math.comb(n, outside) / 2**n
    low = max(outside - 1, 0)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if n > 1 else [ordered[0]] * 3
    rounded = partial(round, ndigits=digits)
    return {
        "median": rounded(statistics.median(ordered)),
        "interval": [rounded(ordered[low]), rounded(ordered[n - 1 - low])],
        "quartiles": [rounded(quartiles[0]), rounded(quartiles[2])],
        "count": n,
    }


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
