"""Pictures of a run in training: samples of the averaged weights, and which expert runs when."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ..analyze.experts import expert_map, expert_map_png
from ..data.dataset import restored
from ..denoiser import NetDenoiser
from ..evaluate import pictures
from ..files import write_bytes
from ..marked import name_of
from ..models import SwitchDiT
from ..recipe import Recipe
from ..run import Run
from ..sampling import generate
from ..weights.native import Samples
from ..weights.stored import network, spec_of

COLUMNS, ROWS, STEPS, GUIDANCE = 8, 4, 25, 1.5


def look(
    run: Run, recipe: Recipe, samples: Samples, step: int, weights: Mapping[str, Tensor], device: torch.device
) -> None:
    """Write samples/step_N.png, the same seeds and labels at every step, and for a Switch-DiT experts/step_N.png."""
    classes = recipe.net.num_classes
    shown = min(classes, COLUMNS)
    labels = [i % shown * classes // shown for i in range(COLUMNS * ROWS)] if classes else None
    guidance = GUIDANCE if recipe.net.null_label and classes else 1.0
    try:
        net = network(recipe.net, weights, "the averaged weights").eval().to(device)
        model = NetDenoiser(net, recipe.process, spec_of(recipe.net, samples.space))
        images = generate(
            model,
            labels,
            seeds=[(recipe.train.seed, i) for i in range(COLUMNS * ROWS)],
            steps=min(STEPS, recipe.process.timesteps),
            guidance=guidance,
        ).cpu()
        sheet = pictures.grid(_visible(restored(images, samples.mean, samples.std)), COLUMNS)
        scale = max(1, 64 // recipe.net.input_size)
        write_bytes(run.path / "samples" / f"{name_of(step)}.png", pictures.png(sheet, scale))
        if isinstance(net, SwitchDiT):
            title = f"{recipe.name}, step {step}: gate probabilities by timestep"
            write_bytes(run.path / "experts" / f"{name_of(step)}.png", expert_map_png(expert_map(net), title))
    except Exception as error:  # no picture is worth a run
        warnings.warn(f"no pictures at step {step}: {error}", stacklevel=2)


def _visible(images: Tensor) -> Tensor:
    """Pixels as they are; of latents the first three channels, each to its own range."""
    if images.shape[1] in (1, 3):
        return images
    shown = images[:, :3]
    low, high = shown.amin((0, 2, 3), keepdim=True), shown.amax((0, 2, 3), keepdim=True)
    return (shown - low) / (high - low).clamp(min=1e-6) * 2 - 1
