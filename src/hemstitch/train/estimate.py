"""What a recipe costs before it is run: memory counted from the tensors, time from one step of a few rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import seeds
from ..data import Dataset
from ..description import parameters_of
from ..models import NetConfig
from ..recipe import Recipe
from ..weights.native import Samples
from .engine import Engine
from .loop import Trainee, accumulated, prepare, rows_of, update


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds of one process.

    weights, gradients, optimizer, averages: bytes. activations: bytes kept for backward by the rows that a process
    computes at a time (`rows`), from what one row keeps. timed_rows, seconds: of the step that was timed. step_seconds:
    of a whole step, in proportion to its rows.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    rows: int
    timed_rows: int
    seconds: float
    step_seconds: float

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {getattr(self, name) / 2**30:.2f}"
            for name in ("weights", "gradients", "optimizer", "averages", "activations")
        )
        return (
            f"memory about {self.memory / 2**30:.2f} GiB ({parts}; {self.rows} rows at a time)\n"
            f"one step of {self.timed_rows} rows took {self.seconds:.2f} s: about {self.step_seconds:.2f} s a step"
        )


def estimate(
    recipe: Recipe, data: Dataset, device: str | None = None, few: int = 4, affordable: float = 10.0
) -> Estimate:
    """Build the recipe's network here and time a step: of a `few` rows, or of all where that takes so many seconds."""
    engine = Engine(recipe.train, Path("."), device, trackers=[])
    trainee = prepare(recipe, engine, Samples(data.name, data.mean, data.std))
    rows = len(engine.rows(recipe.train, 0))
    kept = _kept_by_one_row(trainee, recipe, data, engine)
    timed = min(rows, few)
    seconds = _timed(trainee, recipe, data, engine, timed)
    if seconds * rows / timed < affordable:
        timed, seconds = rows, _timed(trainee, recipe, data, engine, rows)
    size = parameters_of(trainee.net) * 4
    return Estimate(
        weights=size,
        gradients=size,
        optimizer=2 * size,
        averages=len(trainee.averages) * size,
        activations=kept * rows,
        rows=rows,
        timed_rows=timed,
        seconds=seconds,
        step_seconds=seconds * rows * recipe.train.accumulate / timed,
    )


class Noise(Dataset):
    """A network's shape without data: what a dry run uses where none is named."""

    name = "noise"

    def __init__(self, net: NetConfig) -> None:
        self.channels, self.size = net.channels, net.input_size
        self.classes = tuple(str(i) for i in range(net.num_classes))
        self.labels = torch.arange(4096) % max(1, net.num_classes)

    def images(self, index_B: Tensor) -> Tensor:
        return seeds.normal(seeds.keys([(0, i) for i in index_B.tolist()]), 0, (self.channels, self.size, self.size))


def _kept_by_one_row(trainee: Trainee, recipe: Recipe, data: Dataset, engine: Engine) -> int:
    """Bytes that autograd keeps for each further row: the difference of three rows and two, so weights drop out."""

    def kept(rows: int) -> int:
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            accumulated(trainee, recipe, [rows_of(recipe, data, 0, range(rows))], engine)
        trainee.optimizer.zero_grad(set_to_none=True)
        return sum(held.values())

    return max(0, kept(3) - kept(2)) if recipe.train.batch > 2 else kept(1)


def _timed(trainee: Trainee, recipe: Recipe, data: Dataset, engine: Engine, rows: int) -> float:
    """Seconds of a step of so many rows, after one to warm up."""
    made = rows_of(recipe, data, 0, range(rows))
    seconds = 0.0
    for _ in range(2):
        engine.settle()
        began = time.perf_counter()
        accumulated(trainee, recipe, [made], engine)
        update(trainee, recipe, engine)
        engine.settle()
        seconds = time.perf_counter() - began
    return seconds
