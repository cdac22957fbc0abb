"""Presets: a name is a function that returns a recipe.

`dit_s2` … `switch_dit_xl8` are the published sizes with the published settings (batch 256, 400K steps, AdamW 1e-4
constant, EMA 0.9999) on the data that the caller names; the published runs train on latents, these on pixels so far.
The digits presets train on the bundled 8x8 digits on a CPU.
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
    batch=128, learning_rate=3e-3, ema=0.995, clip=1.0, flip=False, checkpoint_every=500, log_every=25
)


def debug() -> Recipe:
    """A tiny Switch-DiT on digits: about a tenth of a second per step on a CPU, to try commands with."""
    net = replace(_DIGITS, family="switch_dit", width=64, depth=4, heads=4)
    train = replace(_DIGITS_TRAIN, steps=200, batch=128, checkpoint_every=50, log_every=10)
    return Recipe("debug", net, Process("linear"), DataRecipe("digits"), train)


def digits_small() -> Recipe:
    """The quickstart's small member: a DiT of width 32, two blocks."""
    net = replace(_DIGITS, width=32, depth=2, heads=2)
    return Recipe("digits_small", net, Process("linear"), DataRecipe("digits"), replace(_DIGITS_TRAIN, steps=2000))


def digits_large() -> Recipe:
    """The quickstart's large member: a Switch-DiT of width 96, three blocks."""
    net = replace(_DIGITS, family="switch_dit", width=96, depth=3, heads=4)
    return Recipe("digits_large", net, Process("linear"), DataRecipe("digits"), replace(_DIGITS_TRAIN, steps=1000))


def _published(name: str) -> Callable[[], Recipe]:
    def build() -> Recipe:
        return Recipe(name, preset(name), Process("linear", learned_variance=True), DataRecipe("folder"), TrainRecipe())

    build.__doc__ = f"{name}, with the published settings."
    return build


RECIPES: dict[str, Callable[[], Recipe]] = {
    "debug": debug,
    "digits_small": digits_small,
    "digits_large": digits_large,
} | {f"{f}_{s}{p}": _published(f"{f}_{s}{p}") for f in FAMILIES for s in SIZES for p in (2, 4, 8)}


def recipe(name: str) -> Recipe:
    """A preset by name."""
    if name not in RECIPES:
        known = ", ".join(n for n in RECIPES if n[-1] not in "48")
        raise HemstitchError(f"no preset is called {name!r}; there are {known} (and patch 4 and 8)")
    return RECIPES[name]()
