"""The training step, as a generator: it steps and yields; `fit` wraps it with a run folder. Callers observe.

Every random choice of a step (which samples, their times, noise, dropped labels, flips) is a function of the seed, the
step and the row of the global batch. A resumed run therefore repeats nothing and skips nothing, and neither the number
of processes nor that of the parts of a batch changes what is trained on.

Shape suffixes: B rows of this process and part, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import seeds
from ..data import Dataset, batch_at
from ..data.ahead import ahead
from ..models import DiT, build
from ..recipe import Recipe
from ..weights import load
from ..weights.native import Samples
from .ema import STDS, Average, power_average
from .engine import Engine
from .finetune import begin_from
from .objective import Losses, Objective
from .sharding import whole
from .weighting import UNCERTAINTY_RATE, WEIGHTINGS, own_parameters


@dataclass
class Trainee:
    """What training changes: the network, its averages by name, the optimizer and the number of steps done.

    notes: what is to be said about where it began.
    """

    net: DiT
    objective: nn.Module
    averages: dict[str, Average]
    optimizer: torch.optim.Optimizer
    notes: tuple[str, ...] = ()
    step: int = 0


class Batch(NamedTuple):
    """x0, eps: (B, C, H, W); t_B: (B,) times; y_B: (B,) labels or None."""

    x0: Tensor
    t_B: Tensor
    eps: Tensor
    y_B: Tensor | None


class Rows(NamedTuple):
    """What the host makes of a batch: x0 (B, C, H, W), key_B2 (B, 2) of its random choices, y_B labels or None."""

    x0: Tensor
    key_B2: Tensor
    y_B: Tensor | None


class Stepped(NamedTuple):
    """One step.

    step: steps done. readings: (5,) on the device: loss, regression, bound, prior loss, gradient norm; means over this
    process's rows but for the norm. waited: seconds for data.
    """

    step: int
    readings: Tensor
    waited: float


def rows_of(recipe: Recipe, data: Dataset, step: int, rows: range) -> Rows:
    """Rows `rows` of a step's global batch, on the host."""
    train = recipe.train
    index_B = batch_at(len(data), train.batch, train.seed, step)[rows.start : rows.stop]
    key_B2 = seeds.keys([(train.seed, step * train.batch + row) for row in rows])
    if train.flip and data.flippable:
        x0 = data.mirrored(index_B, seeds.integers(key_B2, seeds.TRAIN_FLIP, 2).bool())
    else:
        x0 = data.images(index_B)
    y_B = None
    if data.classes:
        y_B = data.labels[index_B]
        if train.label_dropout:
            dropped_B = seeds.uniform(key_B2, seeds.TRAIN_DROP) < train.label_dropout
            y_B = torch.where(dropped_B, len(data.classes), y_B)
    return Rows(x0, key_B2, y_B)


def noised(recipe: Recipe, rows: Rows, device: torch.device) -> Batch:
    """The rows on the device, with their times and noise."""
    x0 = rows.x0.to(device, non_blocking=True)
    eps = seeds.normal(rows.key_B2, seeds.TRAIN_NOISE, x0.shape[1:], device)
    y_B = None if rows.y_B is None else rows.y_B.to(device, non_blocking=True)
    return Batch(x0, recipe.times.draw(rows.key_B2, device), eps, y_B)


def prepare(recipe: Recipe, engine: Engine, samples: Samples | None = None) -> Trainee:
    """A trainee at step 0: freshly drawn by the recipe's seed, or from the weights that it names.

    samples: of the data, which those weights have to fit; None leaves the recipe's `init` out, for a checkpoint that is
    about to be restored.
    """
    train = recipe.train
    torch.manual_seed(train.seed)
    net = build(recipe.net)
    begun = train.init and samples is not None
    notes = begin_from(net, load(train.init), recipe.process, samples) if begun else []
    objective = Objective(net, recipe.process, WEIGHTINGS[train.weighting](train), train.prior_weight)
    wrapped = engine.wrap(objective, train)
    averages = {"ema": Average(net, lambda step: train.ema)}
    if train.snapshot_every:
        averages |= {f"power_{std:.3f}": power_average(net, std) for std in STDS}
    groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if p.requires_grad]}]
    if own_parameters(objective):
        groups.append({"params": own_parameters(objective), "lr": UNCERTAINTY_RATE, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
    return Trainee(net, wrapped, averages, optimizer, tuple(notes))


def loop(trainee: Trainee, recipe: Recipe, data: Dataset, engine: Engine) -> Iterator[Stepped]:
    """Step from where the trainee stands to the recipe's end."""
    train = recipe.train
    parts = [engine.rows(train, part) for part in range(train.accumulate)]
    pinned = engine.device.type == "cuda"

    def make(step: int) -> list[Rows]:
        made = [rows_of(recipe, data, step, rows) for rows in parts]
        return [Rows(r.x0.pin_memory(), *r[1:]) for r in made] if pinned else made

    if trainee.step >= train.steps:
        return
    for made, waited in ahead(make, trainee.step, train.workers):
        readings = accumulated(trainee, recipe, made, engine)
        readings[4] = update(trainee, recipe, engine)
        yield Stepped(trainee.step, readings, waited)
        if trainee.step >= train.steps:
            return


def accumulated(trainee: Trainee, recipe: Recipe, made: list[Rows], engine: Engine) -> Tensor:
    """Gradients of a whole batch, part by part. Returns the (5,) readings, the norm's place empty."""
    readings = torch.zeros(5, device=engine.device)
    for i, rows in enumerate(made):
        last = i == len(made) - 1
        with nullcontext() if last else engine.unsynced(trainee.objective):
            with engine.autocast():
                losses: Losses = trainee.objective(*noised(recipe, rows, engine.device))
            torch.autograd.backward(engine.scaler.scale(losses.loss / len(made)))
        told = (losses.loss, losses.mse.mean(), losses.vb.mean(), losses.prior)
        readings[:4] += torch.stack([v.detach() for v in told]) / len(made)
    return readings


def update(trainee: Trainee, recipe: Recipe, engine: Engine) -> Tensor:
    """One step of the optimizer and of the averages. Returns the gradient norm."""
    train, optimizer = recipe.train, trainee.optimizer
    engine.scaler.unscale_(optimizer)
    if train.clip:
        norm = whole(torch.nn.utils.clip_grad_norm_(trainee.net.parameters(), train.clip))
    else:
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in trainee.net.parameters() if p.grad is not None]))
    engine.scaler.step(optimizer)
    engine.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    trainee.step += 1
    for average in trainee.averages.values():
        average.update(trainee.net, trainee.step)
    return norm


def optimizer_tensors(trainee: Trainee) -> dict[str, Tensor]:
    """The optimizer's state as NAME/KEY, sharded where parameters are."""
    state: Mapping[Any, Mapping[str, Tensor]] = trainee.optimizer.state
    return {f"{name}/{key}": value for name, p in _learned(trainee).items() for key, value in state.get(p, {}).items()}


def restore_optimizer(trainee: Trainee, tensors: Mapping[str, Tensor], engine: Engine) -> None:
    """Through the optimizer's own loading, which puts each tensor where this device's step wants it."""
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, p) in enumerate(_learned(trainee).items()):
        state[i] = {key: engine.give(tensors, f"{name}/{key}", like) for key, like in _adamw_state(p).items()}
    trainee.optimizer.load_state_dict({"state": state, "param_groups": trainee.optimizer.state_dict()["param_groups"]})


def optimizer_like(trainee: Trainee) -> dict[str, Tensor]:
    """Tensors of the shapes that `optimizer_tensors` has after a step."""
    return {f"{name}/{k}": like for name, p in _learned(trainee).items() for k, like in _adamw_state(p).items()}


def _adamw_state(p: nn.Parameter) -> dict[str, Tensor]:
    return {"step": torch.zeros(()), "exp_avg": p.detach(), "exp_avg_sq": p.detach()}


def _learned(trainee: Trainee) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by name, in its order: the network's, then a weighting's own."""
    named = {n: p for n, p in trainee.net.named_parameters() if p.requires_grad}
    return named | {f"weighting.{i}": p for i, p in enumerate(own_parameters(trainee.objective))}
