"""Training as a generator: `loop` steps and yields, `fit` wraps it with a run folder. Callers observe.

Every random choice of a step (which samples, their times, noise, dropped labels, flips) is a function of the seed, the
step and the row of the global batch. A resumed run therefore repeats nothing and skips nothing, and the number of
processes does not change what is trained on.

Shape suffixes: B rows of this process, C channels, H height, W width.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import seeds
from ..data import Dataset, batches, open_dataset
from ..errors import HemstitchError, MissingExtraError
from ..models import DiT, build
from ..recipe import Recipe
from ..run import Run
from . import checkpoint
from .ema import Ema
from .objective import Losses, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


class Progress(NamedTuple):
    """What training shows now and then. step: steps done. rate: images per second. left: seconds to the end.

    saved: the checkpoint just written, if one was. stopped: whether the run ends here because it was asked to.
    """

    step: int
    loss: float
    mse: float
    vb: float
    prior: float
    gradient_norm: float
    rate: float
    left: float
    saved: Path | None = None
    stopped: bool = False


@dataclass
class Trainee:
    """What training changes: the network, its average, the optimizer and the number of steps done."""

    net: DiT
    objective: torch.nn.Module
    ema: Ema[DiT]
    optimizer: torch.optim.Optimizer
    step: int = 0


class Batch(NamedTuple):
    """x0, eps: (B, C, H, W); t_B: (B,) times; y_B: (B,) labels or None."""

    x0: Tensor
    t_B: Tensor
    eps: Tensor
    y_B: Tensor | None


def draw(recipe: Recipe, data: Dataset, step: int, index_B: Tensor, rows: range, device: torch.device) -> Batch:
    """The batch of a step: rows `rows` of the global batch, whose samples are `index_B`."""
    train, process = recipe.train, recipe.process
    x0 = data.images(index_B)
    key_B2 = seeds.keys([(train.seed, step * train.batch + row) for row in rows])
    if train.flip and data.flippable:
        flip_B = seeds.integers(key_B2, seeds.TRAIN_FLIP, 2).bool()
        x0 = torch.where(flip_B.reshape(-1, 1, 1, 1), x0.flip(-1), x0)
    x0 = x0.to(device, non_blocking=True)
    eps = seeds.normal(key_B2, seeds.TRAIN_NOISE, x0.shape[1:], device)
    if process.is_flow:
        t_B = seeds.uniform(key_B2, seeds.TRAIN_TIME, device) * (1 - 2e-4) + 1e-4
    else:
        t_B = seeds.integers(key_B2, seeds.TRAIN_TIME, process.timesteps, device)
    y_B = None
    if data.classes:
        y_B = data.labels[index_B]
        if train.label_dropout:
            dropped_B = seeds.uniform(key_B2, seeds.TRAIN_DROP) < train.label_dropout
            y_B = torch.where(dropped_B, len(data.classes), y_B)
        y_B = y_B.to(device, non_blocking=True)
    return Batch(x0, t_B, eps, y_B)


def prepare(recipe: Recipe, accelerator: Accelerator) -> Trainee:
    """A freshly initialised trainee, by the recipe's seed."""
    train = recipe.train
    torch.manual_seed(train.seed)
    net = build(recipe.net)
    ema = Ema(net, train.ema)
    objective = Objective(net, recipe.process, train.weighting, train.prior_weight)
    trainable = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        fused=accelerator.device.type == "cuda",
    )
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    ema.net.to(accelerator.device)
    return Trainee(net, prepared, ema, getattr(optimizer, "optimizer", optimizer))


def loop(
    trainee: Trainee, recipe: Recipe, data: Dataset, accelerator: Accelerator
) -> Iterator[tuple[int, Losses, Tensor]]:
    """Step from where the trainee stands to the recipe's end, yielding (steps done, losses, gradient norm)."""
    train = recipe.train
    share, rank = train.batch // accelerator.num_processes, accelerator.process_index
    rows = range(rank * share, (rank + 1) * share)
    limit = train.clip or float("inf")
    for index in batches(len(data), train.batch, train.seed, start=trainee.step):
        if trainee.step >= train.steps:
            return
        batch = draw(recipe, data, trainee.step, index[rows.start : rows.stop], rows, accelerator.device)
        losses: Losses = trainee.objective(*batch)
        accelerator.backward(losses.loss)
        norm = torch.nn.utils.clip_grad_norm_(trainee.net.parameters(), limit)
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)
        trainee.ema.update(trainee.net)
        trainee.step += 1
        yield trainee.step, losses, norm


def fit(
    recipe: Recipe, out: Path, *, resume: bool = False, data: Dataset | None = None, device: str | None = None
) -> Iterator[Progress]:
    """Train a recipe into a run folder, yielding progress at every `log_every` steps and at checkpoints.

    Ctrl-C (or SIGTERM) finishes the step, saves and ends; a second one ends at once. Arguments are checked when the
    first value is asked for; the folder is left alone if they are wrong.
    """
    data = data or open_dataset(recipe.data.kind, recipe.data.path, recipe.data.size)
    recipe = recipe.fitted(data.channels, data.size, len(data.classes))
    accelerator = _accelerator(recipe, out, device)
    if accelerator.num_processes > 1:
        raise HemstitchError("training runs in one process so far: start it without a launcher")
    trainee = prepare(recipe, accelerator)
    run = Run(out)
    run.begin(recipe, resume)
    newest = run.newest() if resume else None
    if newest is not None:
        trainee.step = checkpoint.restore(newest, trainee.net, trainee.ema.net, trainee.optimizer)
    if resume:
        run.rewind(trainee.step)
    accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": trainee.step + 1}})

    def save() -> Path:
        return checkpoint.save(
            run.checkpoints,
            trainee.step,
            trainee.net,
            trainee.ema.net,
            trainee.optimizer,
            recipe.process,
            data.name,
            recipe.train.keep,
        )

    meter = _Meter(recipe, trainee.step)
    train = recipe.train
    with _asked_to_stop() as stop:
        for step, losses, norm in loop(trainee, recipe, data, accelerator):
            meter.add(losses, norm)
            stopping = bool(stop)
            last = step == train.steps
            saved = save() if step % train.checkpoint_every == 0 or last or stopping else None
            if step % train.log_every == 0 or saved:
                progress = meter.read(step)._replace(saved=saved, stopped=stopping and not last)
                shown = {k: v for k, v in progress._asdict().items() if k not in ("saved", "stopped", "left")}
                run.log(shown)
                accelerator.log({k: v for k, v in shown.items() if k != "step"}, step=step)
                yield progress
            if stopping:
                break
    accelerator.end_training()


class _Meter:
    """Averages since the last reading. Losses stay on the device until they are read."""

    def __init__(self, recipe: Recipe, start: int) -> None:
        self.recipe = recipe
        self.began = self.since = time.perf_counter()
        self.start = self.last = start
        self.sums: list[Tensor] = []

    def add(self, losses: Losses, norm: Tensor) -> None:
        self.sums.append(torch.stack([losses.loss, losses.mse.mean(), losses.vb.mean(), losses.prior, norm]).detach())

    def read(self, step: int) -> Progress:
        loss, mse, vb, prior, norm = torch.stack(self.sums).mean(0).tolist()
        now = time.perf_counter()
        batch, steps = self.recipe.train.batch, self.recipe.train.steps
        rate = batch * (step - self.last) / (now - self.since)
        overall = (now - self.began) / (step - self.start)
        self.sums.clear()
        self.last, self.since = step, now
        return Progress(step, loss, mse, vb, prior, norm, rate, overall * (steps - step))


class _Stop:
    """True once a stop was asked for."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def _asked_to_stop() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a flag. Outside the main thread signals are left alone."""
    stop = _Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield stop
        return
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _accelerator(recipe: Recipe, out: Path, device: str | None) -> Accelerator:
    try:
        from accelerate import Accelerator
    except ImportError:
        raise MissingExtraError("accelerate", "train") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise HemstitchError("there is no GPU that torch can use here: leave out --device, or say cpu")
    cpu = device == "cpu" or not torch.cuda.is_available()
    precision = recipe.train.precision
    bf16 = precision == "bf16" or (precision == "auto" and not cpu)
    try:
        import tensorboard  # noqa: F401

        trackers = ["tensorboard"]
    except ImportError:
        trackers = []
    try:
        return Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=cpu, log_with=trackers, project_dir=str(out))
    except ValueError as error:  # accelerate holds one precision and device per process
        raise HemstitchError(f"this process has trained on another device or in another precision: {error}") from None
