"""The commands that train: quickstart, train, encode."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HemstitchError
from .line import Line, clock, told

if TYPE_CHECKING:
    from ..data import Dataset
    from ..recipe import Recipe


def quickstart(known: argparse.Namespace, rest: list[str]) -> int:
    from ..quickstart import Talk, quickstart, quickstart_pretrained

    line = Line()
    talk = Talk(line.say, line.show)
    if known.pretrained is not None:
        archive = None if known.pretrained is True else Path(known.pretrained)
        quickstart_pretrained(known.out or Path("runs/pretrained"), known.full, known.reuse, talk, archive)
        return 0
    for name, progress in quickstart(known.out or Path("runs/quickstart"), known.full, known.reuse, talk):
        line.show(f"{name}: {told(progress)}", last=progress.left == 0)
        if progress.stopped:
            line.say("stopped; the same command goes on from here")
            return 130
    return 0


def train(known: argparse.Namespace, rest: list[str]) -> int:
    from .. import recipes
    from ..files import read_json_file
    from ..recipe import Recipe

    path = Path(known.recipe)
    if path.suffix == ".json":
        if not path.exists():
            raise HemstitchError(f"there is no recipe file {path}")
        recipe = Recipe.from_data(read_json_file(path))
    else:
        recipe = recipes.recipe(known.recipe)
    recipe = _intervals(known, recipe.overridden(_overrides(rest)))
    out = known.out or Path("runs") / recipe.name
    if known.dry_run:
        return _dry_run(recipe, known.device)
    from ..train.engine import keep_pages
    from ..train.fit import fit

    keep_pages()
    line = Line()
    if known.resume and not out.exists():
        line.say(f"there is nothing to resume in {out}: starting anew")
    line.say(f"{recipe.name} -> {out}\n{textwrap.fill(recipe.summary(), 110, break_on_hyphens=False)}")
    progress = None
    trackers = None if known.track is None else known.track.split(",")
    for progress in fit(recipe, out, resume=known.resume, device=known.device, trackers=trackers):
        line.show(f"{recipe.name}: {told(progress)}", last=progress.left == 0 or progress.stopped)
        if progress.stopped:
            line.say(f"stopped after step {progress.step}, saved in {progress.saved}; --resume goes on from there")
            return 130
    if progress is None:
        line.say(f"{out} is trained to step {recipe.train.steps} or beyond already: nothing to do")
    return 0


def _intervals(known: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe on the timesteps that a plan gives a member."""
    if (known.plan is None) != (known.member is None):
        raise HemstitchError("--plan and --member go together: the plan, and whose steps of it to train on")
    if known.plan is None:
        return recipe
    from dataclasses import replace

    from ..files import read_json_file
    from ..stitch.plan import Plan
    from ..train.times import plan_intervals

    if not known.plan.exists():
        raise HemstitchError(f"there is no plan file {known.plan}")
    intervals = plan_intervals(Plan.from_data(read_json_file(known.plan)), known.member, recipe.process)
    return replace(recipe, train=replace(recipe.train, intervals=intervals))


def _dry_run(recipe: Recipe, device: str | None) -> int:
    from ..data import open_dataset
    from ..description import describe
    from ..train.estimate import Noise, estimate

    if recipe.data.kind in ("folder", "latents") and not recipe.data.path:
        print("no --data.path: counted and timed on noise of the preset's shape", file=sys.stderr)
        data: Dataset = Noise(recipe.net)
    else:
        data = open_dataset(recipe.data.kind, recipe.data.path, recipe.data.size)
    fitted = recipe.fitted(data.channels, data.size, len(data.classes))
    print(fitted.to_json())
    print(f"{len(data)} images of {data.name}; {describe(fitted.net)}; recipe {fitted.hash}", flush=True)
    cost = estimate(fitted, data, device)
    print(f"{cost}, {clock(cost.step_seconds * fitted.train.steps)} for {fitted.train.steps} steps")
    return 0


def encode(known: argparse.Namespace, rest: list[str]) -> int:
    from ..data import open_dataset
    from ..encode import encode

    data = open_dataset(known.kind, known.data, known.size)
    line, progress = Line(), None
    for progress in encode(
        data,
        known.out,
        autoencoder=known.vae,
        batch=known.batch,
        per_shard=known.per_shard,
        dtype=known.dtype,
        normalise=known.normalise,
        device=known.device,
        seed=known.seed,
    ):
        waiting = f", waiting for {progress.waiting} shards of other processes" if progress.waiting else ""
        line.show(
            f"{progress.done}/{progress.total} images, {progress.rate:.0f}/s, {clock(progress.left)} left{waiting}",
            progress.done == progress.total and not progress.waiting,
        )
    line.say(f"{known.out}: train on it with --data.kind latents --data.path {known.out}")
    return 0


def _overrides(rest: list[str]) -> dict[str, str]:
    """--a.b value, --a.b=value, and --flag alone for true."""
    changes: dict[str, str] = {}
    i = 0
    while i < len(rest):
        name, equals, value = rest[i].partition("=")
        if not name.startswith("--"):
            raise HemstitchError(f"expected --field value, got {rest[i]!r}")
        i += 1
        if not equals:
            alone = i >= len(rest) or rest[i].startswith("--")
            value = "true" if alone else rest[i]
            i += not alone
        changes[name[2:]] = value
    return changes
