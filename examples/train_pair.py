"""Trains a pair of text-to-image pipelines that differ only in the size of their U-Net, on one CPU core in minutes.

    python examples/train_pair.py pair                     # pair/large: a StableDiffusionPipeline; pair/small: a U-Net
    python examples/fraction_row.py --large pair/large --small pair/small --guidance 2 --prompt "a red three"

The pictures are scikit-learn's handwritten digits, drawn in one of six inks; the prompts name ink and digit. Everything
is a stock diffusers or transformers class: a small variational autoencoder (32x32 pixels, 8x8 latents of 4 channels), a
CLIP text encoder that stays as it was drawn at random (each word is one token, and sixteen words need no training), and
two UNet2DConditionModels that were trained alike: the same data, seed, noise, batches and number of updates.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from hemstitch.data import Digits
from hemstitch.provenance import provenance

# B batch, C channels, H height, W width; L tokens, D width of the text
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {  # RGB, 0..1
    "red": (0.85, 0.10, 0.15),
    "green": (0.05, 0.60, 0.20),
    "blue": (0.10, 0.25, 0.90),
    "orange": (0.95, 0.55, 0.05),
    "purple": (0.55, 0.15, 0.70),
    "black": (0.05, 0.05, 0.05),
}
PIXELS, LATENTS = 32, 8  # picture and latents are square
WORDS, WIDTH = 5, 64  # tokens of a prompt, its begin and end included; of the text encoder
WIDTHS = {"large": (32, 64), "small": (16, 32)}
LAYERS = {"large": 2, "small": 1}
DROPPED = 0.1  # share of prompts left empty, for guidance


def prompt_of(ink: str, digit: str) -> str:
    return f"{'an' if ink == 'orange' else 'a'} {ink} {digit}"


PROMPTS = [prompt_of(ink, digit) for ink in INKS for digit in DIGITS]  # row = ink * 10 + digit


class Inked:
    """Digits in coloured ink on white paper, (B, 3, 32, 32) in -1..1, and the rows of their prompts."""

    def __init__(self, count: int | None = None) -> None:
        """count: of the first digits; all 1,797 if None."""
        digits = Digits("all")
        self.labels = digits.labels[:count]
        grey = F.interpolate(digits.images(torch.arange(len(self.labels))), PIXELS, mode="bicubic").clamp(-1, 1)
        self.ink_BHW = (grey[:, 0] + 1) / 2  # 0 paper, 1 ink
        self.colours = torch.tensor(list(INKS.values()))

    def __len__(self) -> int:
        return len(self.labels) * len(INKS)

    def __getitem__(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        digit, ink = index_B // len(INKS), index_B % len(INKS)
        shade = self.ink_BHW[digit, None] * (1 - self.colours[ink, :, None, None])
        return 1 - 2 * shade, ink * len(DIGITS) + self.labels[digit]

    def draw(self, B: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self), (B,), generator=generator)


def new_pipeline() -> StableDiffusionPipeline:
    """The large pipeline before training."""
    tokenizer = tiny.clip_tokenizer()
    tokenizer.add_tokens([*DIGITS, *INKS, "an"])
    tokenizer.model_max_length = WORDS
    text_encoder = tiny.clip_text(WIDTH, vocab_size=len(tokenizer), max_position_embeddings=WORDS)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=PIXELS,
        mid_block_add_attention=False,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=new_unet("large"),
        scheduler=tiny.sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_unet(size: str) -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=LATENTS,
        in_channels=4,
        out_channels=4,
        layers_per_block=LAYERS[size],
        block_out_channels=WIDTHS[size],
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, in spite of its name
        norm_num_groups=4,
    )


def optimiser(
    net: nn.Module, rate: float, updates: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    adam = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.0)
    return adam, torch.optim.lr_scheduler.OneCycleLR(adam, rate, updates, pct_start=0.05)


def train_autoencoder(vae: AutoencoderKL, data: Inked, updates: int, batch: int = 32) -> float:
    """Squared error and a light Kullback-Leibler term; sets the scaling factor. The last mean squared error."""
    generator = torch.Generator().manual_seed(2)
    adam, rate = optimiser(vae, 2e-3, updates)
    error = torch.zeros(())
    for _ in range(updates):
        picture, _ = data[data.draw(batch, generator)]
        posterior = vae.encode(picture).latent_dist
        error = F.mse_loss(vae.decode(posterior.sample(generator)).sample, picture)
        (error + 1e-5 * posterior.kl().mean()).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adam.step()
        rate.step()
        adam.zero_grad()
    with torch.no_grad():
        spread = vae.encode(data[data.draw(256, generator)][0]).latent_dist.mode().std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    return float(error.detach())


@torch.no_grad()
def encoded(pipe: StableDiffusionPipeline, data: Inked) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (len(data), 4, 8, 8), the rows of their prompts, and the texts (61, L, D) by row, the empty one last."""
    latents, rows = [], []
    for index in torch.arange(len(data)).split(256):
        picture, row = data[index]
        latents.append(pipe.vae.encode(picture).latent_dist.mode() * pipe.vae.config.scaling_factor)
        rows.append(row)
    tokens = pipe.tokenizer(
        [*PROMPTS, ""], padding="max_length", max_length=WORDS, truncation=True, return_tensors="pt"
    )
    return torch.cat(latents), torch.cat(rows), pipe.text_encoder(tokens.input_ids)[0]


def train_unet(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    rows: Tensor,
    texts: Tensor,
    updates: int,
    batch: int,
) -> float:
    """Mean squared error of the noise. The mean of the last hundred updates."""
    generator = torch.Generator().manual_seed(3)
    adam, rate = optimiser(unet, 2e-3, updates)
    errors = []
    for _ in range(updates):
        index = torch.randint(len(rows), (batch,), generator=generator)
        row = rows[index].masked_fill(torch.rand(batch, generator=generator) < DROPPED, len(PROMPTS))
        noise = torch.randn((batch, *latents.shape[1:]), generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=generator)
        error = F.mse_loss(unet(scheduler.add_noise(latents[index], noise, t), t, texts[row]).sample, noise)
        error.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        adam.step()
        rate.step()
        adam.zero_grad()
        errors.append(float(error.detach()))
    return sum(errors[-100:]) / len(errors[-100:])


def train(folder: Path, updates: int = 1000, batch: int = 32, data: Inked | None = None) -> dict[str, Any]:
    """Writes the pair and pair.json into `folder`; what pair.json says."""
    data, pipe, said = data or Inked(), new_pipeline(), {}
    began = time.perf_counter()

    def tell(name: str, error: float, net: nn.Module) -> None:
        nonlocal began
        seconds, began = time.perf_counter() - began, time.perf_counter()
        said[name] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "error": round(error, 4),
            "seconds": round(seconds, 1),
        }
        print(f"{name:12s} {said[name]}", flush=True)

    tell("autoencoder", train_autoencoder(pipe.vae.train(), data, updates // 2), pipe.vae.eval())
    latents, rows, texts = encoded(pipe, data)
    small = new_unet("small")
    for name, unet in {"small": small, "large": pipe.unet}.items():
        tell(name, train_unet(unet.train(), pipe.scheduler, latents, rows, texts, updates, batch), unet.eval())
    pipe.save_pretrained(folder / "large")
    small.save_pretrained(folder / "small")
    note = {"provenance": provenance(), "updates": updates, "batch": batch, **said}
    (folder / "pair.json").write_text(json.dumps(note, indent=1) + "\n")
    return note


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=1000, help="of each network (1000)")
    parser.add_argument("--batch", type=int, default=32, help="pictures of an update (32)")
    known = parser.parse_args(given)
    train(known.folder, known.updates, known.batch)


if __name__ == "__main__":
    main()
