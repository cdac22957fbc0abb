"""Presets: a name is a function that returns a recipe.

`dit_s2` … `switch_dit_xl8` are the published sizes with the published settings (batch 256, 400K steps, AdamW 1e-4
constant, EMA 0.9999) on a latents cache that the caller names: `hemstitch encode` with the published autoencoder and
`--normalise vae`. `dit_b2_ffhq` and the like are their unconditional twins. The digits and Fashion-MNIST presets train
on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .errors import HemstitchError
from .models.config import FAMILIES, SIZES, NetConfig, preset
from .process import Process
from .recipe import DataRecipe, Recipe, TrainRecipe

_DIGITS = NetConfig(input_size=8, channels=1, patch=2, num_classes=10, learned_variance=False)
_DIGITS_TRAIN = TrainRecipe(
    batch=128, learning_rate=3e-3, ema=0.995, clip=1.0, flip=False, checkpoint_every=500, log_every=25, sample_every=500
)


def debug() -> Recipe:
    """A tiny Switch-DiT on digits: about a tenth of a second per step on a CPU, to try commands with."""
    net = replace(_DIGITS, family="switch_dit", width=64, depth=4, heads=4)
    train = replace(_DIGITS_TRAIN, steps=200, batch=128, checkpoint_every=50, log_every=10, sample_every=100)
    return Recipe("debug", net, Process("linear"), DataRecipe("digits"), train)


def digits_small() -> Recipe:
    """The quickstart's small member: a DiT of width 32, two blocks."""
    net = replace(_DIGITS, width=32, depth=2, heads=2)
    return Recipe("digits_small", net, Process("linear"), DataRecipe("digits"), replace(_DIGITS_TRAIN, steps=2000))


def digits_large() -> Recipe:
    """The quickstart's large member: a Switch-DiT of width 96, three blocks."""
    net = replace(_DIGITS, family="switch_dit", width=96, depth=3, heads=4)
    return Recipe("digits_large", net, Process("linear"), DataRecipe("digits"), replace(_DIGITS_TRAIN, steps=1000))


def fashion_switch() -> Recipe:
    """A small Switch-DiT on Fashion-MNIST at 32x32, by flow matching: some minutes of a CPU to clothes one can name."""
    net = NetConfig("switch_dit", 32, 1, 4, width=128, depth=6, heads=4, num_classes=10, learned_variance=False)
    train = TrainRecipe(
        steps=3000,
        batch=64,
        learning_rate=1e-3,
        ema=0.995,
        clip=1.0,
        times="lognormal",
        time_mean=0.0,
        time_std=1.0,
        checkpoint_every=500,
        sample_every=500,
    )
    return Recipe("fashion_switch", net, Process("flow", "flow"), DataRecipe("fashion_mnist", size=32), train)


# FID-50K, inception score, precision, recall on ImageNet 256 at guidance 1.5, as published (PAPERS 1.6).
PUBLISHED = {
    "dit_s2": (44.28, 32.3, 0.41, 0.53),
    "dtr_s2": (37.43, 39.0, 0.47, 0.54),
    "switch_dit_s2": (33.99, 43.0, 0.52, 0.54),
    "dit_b2": (27.96, 64.7, 0.57, 0.52),
    "dtr_b2": (16.58, 87.9, 0.66, 0.53),
    "switch_dit_b2": (16.21, 88.1, 0.68, 0.53),
    "dit_l2": (12.59, 134.6, 0.73, 0.49),
    "dtr_l2": (8.90, 156.5, 0.77, 0.51),
    "switch_dit_l2": (8.78, 163.0, 0.78, 0.50),
    "dit_xl2": (9.40, 166.8, 0.77, 0.48),
    "dtr_xl2": (10.85, 158.5, 0.73, 0.47),
    "switch_dit_xl2": (8.76, 169.2, 0.79, 0.48),
}


def _published(name: str) -> Callable[[], Recipe]:
    def build() -> Recipe:
        return Recipe(
            name, preset(name), Process("linear", learned_variance=True), DataRecipe("latents"), TrainRecipe()
        )

    figures = PUBLISHED.get(name)
    build.__doc__ = f"{name}, with the published settings, on ImageNet 256 latents. " + (
        "Published at guidance 1.5: FID-50K {:.2f}, IS {:.1f}, precision {:.2f}, recall {:.2f}.".format(*figures)
        if figures
        else "No figures are published for it."
    )
    return build


def _unconditional(name: str) -> Callable[[], Recipe]:
    def build() -> Recipe:
        net = preset(name, num_classes=0, null_label=False)
        process = Process("linear", learned_variance=True)
        return Recipe(f"{name}_ffhq", net, process, DataRecipe("latents"), TrainRecipe(label_dropout=0.0))

    build.__doc__ = f"{name} without labels, for latents of FFHQ 256. Its published FID is not known to this project."
    return build


RECIPES: dict[str, Callable[[], Recipe]] = {
    "debug": debug,
    "digits_small": digits_small,
    "digits_large": digits_large,
    "fashion_switch": fashion_switch,
}
RECIPES |= {f"{f}_{s}{p}": _published(f"{f}_{s}{p}") for f in FAMILIES for s in SIZES for p in (2, 4, 8)}
RECIPES |= {f"{f}_{s}2_ffhq": _unconditional(f"{f}_{s}2") for f in FAMILIES for s in SIZES}


def recipe(name: str) -> Recipe:
    """A preset by name."""
    if name not in RECIPES:
        known = ", ".join(n for n in RECIPES if n[-1] not in "48" and not n.endswith("_ffhq"))
        raise HemstitchError(f"no preset is called {name!r}; there are {known} (and patch 4 and 8, and dit_b2_ffhq …)")
    return RECIPES[name]()
