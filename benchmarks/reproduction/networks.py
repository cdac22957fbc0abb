"""The networks that are trained here, as recipes, and the tasks that train them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

import hemstitch as hs
from hemstitch.denoiser import NetDenoiser
from hemstitch.identity import identity
from hemstitch.marked import name_of
from hemstitch.models.config import Family, NetConfig
from hemstitch.process import PredictionType, Process, Schedule
from hemstitch.recipe import DataRecipe, Recipe, TrainRecipe
from hemstitch.run import Run
from hemstitch.train.fit import fit

from .fields import Field
from .work import Result, Stopped, Task

CHECKPOINTS = 1000  # kept: all of them


def marked(recipe: Recipe) -> tuple[str, int]:
    """What a network hangs on, wherever its data lie: the recipe's hash, which says how but not how long, and the
    iterations."""
    data = replace(recipe.data, path=Path(recipe.data.path).name)
    return replace(recipe, data=data).hash, recipe.train.steps


def transformer(
    field: Field,
    name: str,
    family: Family = "dit",
    *,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    patch: int = 4,
    schedule: Schedule = "cosine",
    prediction: PredictionType = "v",
    **train: object,
) -> Recipe:
    """A small diffusion transformer, trained at uniform times with a constant rate."""
    kind, path, size = field.train
    channels, side, classes = field.shape
    net = NetConfig(family, side, channels, patch, width, depth, heads, classes, learned_variance=False)
    common = TrainRecipe(
        batch=64,
        learning_rate=3e-3,
        ema=0.998,
        clip=1.0,
        flip=False,
        precision="bf16",
        checkpoint_every=500,
        log_every=50,
        sample_every=0,
        keep=CHECKPOINTS,
    )
    return Recipe(name, net, Process(schedule, prediction), DataRecipe(kind, path, size), replace(common, **train))


def training(name: str, recipe: Recipe, runs: Path, *needs: str) -> Task:
    """The task that trains a recipe into a folder of its name."""
    run = runs / recipe.name
    return Task(name, partial(train, recipe, run), needs, marked(recipe), held(run, recipe.train.steps))


def held(run: Path, step: int) -> Path:
    """Where a run has its averaged weights after so many steps."""
    return Run(run).checkpoints / name_of(step) / "ema.safetensors"


def train(recipe: Recipe, folder: Path) -> Result:
    """Train, or go on, to the last step: a result of a task. Raises `Stopped` where it was asked to stop, and
    HemstitchError if the folder holds a run of another recipe.

    sittings: the commit from each step on; a run that is finished already has its commits from there alone.
    """
    for progress in fit(recipe, folder, resume=Run(folder).exists, device="cpu"):
        if progress.stopped:
            raise Stopped
    sittings = [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]
    rates = [json.loads(line)["rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "recipe": recipe.hash,
        "steps": recipe.train.steps,
        "milliseconds_a_step": 1000 * recipe.train.batch / median(rates),
        "parameters": hs.describe(hs.load(folder)).parameters,
        "averaged_weights": identity(at(folder, recipe.train.steps)),
        "sittings": {str(one["step"]): one["commit"] for one in sittings if one["step"] < recipe.train.steps},
    }


def begin_at(run: Path, step: int, out: Path, *records: str) -> None:
    """Make a run that goes on from a checkpoint of another, unless there is one. records: files of it to take along."""
    if not Run(out).exists:
        held, copy = (Run(one).checkpoints / name_of(step) for one in (run, out))
        shutil.copytree(held, copy, dirs_exist_ok=True)
        for name in (*records, "recipe.json"):  # the last of them makes the folder a run
            shutil.copy(run / name, out)


def at(folder: Path, step: int) -> NetDenoiser:
    """The averaged weights of a run as they were after so many steps, in bfloat16, by which all figures are."""
    return hs.load(held(folder, step)).to(dtype=torch.bfloat16)
