"""What training shows: losses and speed since the last reading, and where they stopped being numbers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..description import describe
from ..recipe import Recipe
from .engine import DTYPES, Engine
from .loop import Stepped


class Progress(NamedTuple):
    """What training shows now and then.

    step: steps done. loss, mse, vb, prior, gradient_norm: means since the last reading, over all processes. rate:
    images per second of all. left: seconds to the end. waited: share of the time spent waiting for data. flops:
    floating-point operations per second and process that the network's multiply-adds account for, three forwards a
    step. share: of those that plain matrix products reached in the same precision when training began. memory: most
    bytes allocated on the GPU, 0 on a CPU.
    saved: the checkpoint of this step, if it has one; it is complete by the time the next is begun, and at the end.
    stopped: whether the run ends here because it was asked to.
    """

    step: int
    loss: float
    mse: float
    vb: float
    prior: float
    gradient_norm: float
    rate: float
    left: float
    waited: float
    flops: float
    share: float
    memory: int
    saved: Path | None = None
    stopped: bool = False

    def metrics(self) -> dict[str, float]:
        """What is logged of it."""
        return {k: v for k, v in self._asdict().items() if k not in ("saved", "stopped", "left")}


class Meter:
    """Averages since the last reading. Losses stay on the device until they are read."""

    def __init__(self, recipe: Recipe, engine: Engine, start: int) -> None:
        self.recipe = recipe
        self.engine = engine
        self.flops_per_image = 6 * describe(recipe.net).macs
        self.products = product_rate(engine.device, DTYPES[engine.precision])
        self.began = self.since = time.perf_counter()
        self.start = self.last = start
        self.readings: list[Tensor] = []
        self.waited = 0.0

    def add(self, stepped: Stepped) -> None:
        self.readings.append(stepped.readings)
        self.waited += stepped.waited

    def read(self, step: int) -> tuple[Progress, int | None]:
        """The progress, and the first step since the last reading whose loss or gradient was not a number."""
        readings = self.engine.mean(torch.stack(self.readings)).cpu()
        # under fp16 an infinite gradient only means that the scaler skips the step, unless it skips every one
        skipping = self.engine.precision == "fp16" and bool(readings[:, 4].isfinite().any())
        columns = readings[:, :1] if skipping else readings
        wrong = (~columns.isfinite()).any(1).nonzero()
        bad = self.last + 1 + int(wrong[0]) if len(wrong) else None
        loss, mse, vb, prior, norm = readings.mean(0).tolist()
        now = time.perf_counter()
        batch, steps = self.recipe.train.batch, self.recipe.train.steps
        spent = now - self.since
        rate = batch * (step - self.last) / spent
        flops = rate / self.engine.world * self.flops_per_image
        memory = torch.cuda.max_memory_allocated(self.engine.device) if self.engine.device.type == "cuda" else 0
        left = (now - self.began) / (step - self.start) * (steps - step)
        waited = self.waited / spent
        self.readings.clear()
        self.waited, self.last, self.since = 0.0, step, now
        share = flops / self.products
        return Progress(step, loss, mse, vb, prior, norm, rate, left, waited, flops, share, memory), bad


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square matrix product here: the best of a few, some 0.1 s in all."""
    side = 8192 if device.type == "cuda" else 768
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
