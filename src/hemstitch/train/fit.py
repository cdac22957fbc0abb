"""Training into a run folder: checkpoints, metrics, pictures, resuming, stopping."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..data import Dataset, open_dataset
from ..errors import HemstitchError
from ..files import read_json_file, save_tensors, write_atomic
from ..marked import complete, name_of, sha256
from ..provenance import provenance
from ..recipe import Recipe
from ..run import Run
from ..weights.native import Samples, metadata
from . import checkpoint
from .checkpoint import Content, Writer
from .engine import Engine
from .looks import look
from .loop import Trainee, loop, noised, optimizer_like, optimizer_tensors, prepare, restore_optimizer, rows_of
from .meter import Meter, Progress
from .weighting import own_parameters


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    data: Dataset | None = None,
    device: str | None = None,
    trackers: Sequence[str] | None = None,
) -> Iterator[Progress]:
    """Train a recipe into a run folder, yielding progress at every `log_every` steps and at checkpoints.

    In every process of a launch; the main one alone writes. trackers: accelerate's, by name (tensorboard, wandb,
    mlflow, …); None is tensorboard if it is installed. Ctrl-C (or SIGTERM) finishes the step, saves and ends; a second
    one ends at once. Arguments are checked when the first value is asked for; the folder is left alone if they are
    wrong. Raises HemstitchError when the loss stops being a number: the last checkpoint stays, the batch is saved.
    """
    data = data or open_dataset(recipe.data.kind, recipe.data.path, recipe.data.size)
    recipe = recipe.fitted(data.channels, data.size, len(data.classes))
    engine = Engine(recipe.train, out, device, trackers)
    run = Run(out)
    going_on = bool(engine.numbers([resume and bool(complete(run.checkpoints))])[0])
    samples = Samples(data.name, data.mean, data.std)
    trainee = prepare(recipe, engine, None if going_on else samples)
    newest = engine.on_main(partial(_begin, run, recipe, resume, len(data)))
    if going_on and recipe.train.init and not engine.any(newest is not None):
        raise HemstitchError(f"every checkpoint in {run.checkpoints} is damaged: begin again in another --out")
    restore(trainee, newest, engine)
    if engine.main:
        run.rewind(trainee.step)
        _note_sitting(run, recipe, engine, trainee)
    options = {
        "tensorboard": {"purge_step": trainee.step + 1},
        "wandb": {"name": out.name, "id": run.key, "resume": "allow"},
    }
    engine.accelerator.init_trackers("hemstitch", config=recipe.dotted(), init_kwargs=options)
    train = recipe.train
    meter, writer = Meter(recipe, engine, trainee.step), Writer()
    if engine.main:
        writer.reserve(files_of(trainee) | {"optimizer": optimizer_like(trainee)})
    try:
        with _asked_to_stop() as stop:
            for stepped in loop(trainee, recipe, data, engine):
                step = stepped.step
                meter.add(stepped)
                stopping = engine.any(bool(stop))
                last = step == train.steps
                saving = step % train.checkpoint_every == 0 or last or stopping
                if not (saving or step % train.log_every == 0 or _due(step, train.snapshot_every)):
                    continue
                progress, bad = meter.read(step)
                if bad is not None:
                    engine.on_main(partial(_diverged, run, recipe, data, bad))
                if engine.main:  # before the checkpoint: a resumed run drops what was logged after its own
                    run.log(progress.metrics(), durable=saving)
                engine.accelerator.log({k: v for k, v in progress.metrics().items() if k != "step"}, step=step)
                engine.on_main(writer.check)
                saved = save(run, recipe, engine, trainee, samples, writer, len(data)) if saving else None
                if last or stopping:
                    engine.on_main(writer.finish)
                if _due(step, train.snapshot_every):
                    _snapshot(run, recipe, engine, trainee, samples)
                if _due(step, train.sample_every):
                    weights = engine.gather(trainee.averages["ema"].weights)
                    engine.on_main(partial(look, run, recipe, samples, step, weights, engine.device))
                yield progress._replace(saved=saved, stopped=stopping and not last)
                if stopping:
                    break
    except BaseException as error:
        for tracker in engine.accelerator.trackers:
            tracker.finish()
        if engine.lost(error):
            raise HemstitchError(
                f"another process of this run ended or cannot be reached ({str(error).splitlines()[0]}); its own "
                "message says why. --resume goes on from the last checkpoint, with as many processes or fewer"
            ) from error
        raise
    finally:
        writer.close()
    engine.accelerator.end_training()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _begin(run: Run, recipe: Recipe, resume: bool, images: int) -> Path | None:
    run.begin(recipe, resume)
    newest = run.newest() if resume else None
    held = read_json_file(newest / "state.json").get("images", images) if newest else images
    if held != images:
        raise HemstitchError(
            f"{run.path} was trained on {held} images and the data now hold {images}, so its order would be another: "
            "resume with the data it was begun with, or fine-tune with --init into another --out"
        )
    return newest


def _note_sitting(run: Run, recipe: Recipe, engine: Engine, trainee: Trainee) -> None:
    init = Path(recipe.train.init) if recipe.train.init else None
    facts = provenance(engine.device, engine.precision) | {
        "step": trainee.step,
        "recipe": recipe.hash,
        "processes": engine.world,
        "parallel": "fsdp" if engine.sharded else "ddp" if engine.world > 1 else "none",
        "init": f"{init} {sha256(init)[:12] if init.is_file() else ''}".strip() if init else "",
        "notes": list(trainee.notes),
    }
    before = run.sitting(facts)
    if before is not None and before.get("dtype") != engine.precision:
        warnings.warn(
            f"this run was trained in {before.get('dtype')} and goes on in {engine.precision}, for it is on another "
            "kind of device; its arithmetic changes here",
            stacklevel=3,
        )


def files_of(trainee: Trainee) -> dict[str, Mapping[str, Tensor]]:
    """The files of a checkpoint but for the optimizer's, sharded where weights are."""
    files: dict[str, Mapping[str, Tensor]] = {"model": dict(trainee.net.named_parameters())}
    files |= {name: average.weights for name, average in trainee.averages.items()}
    learned = own_parameters(trainee.objective)
    return files | ({"weighting": {str(i): p for i, p in enumerate(learned)}} if learned else {})


def save(
    run: Run, recipe: Recipe, engine: Engine, trainee: Trainee, samples: Samples, writer: Writer, images: int = 0
) -> Path:
    """Begin to write a checkpoint, whole, in the main process; every process takes part in gathering it."""
    engine.on_main(writer.finish)
    header = metadata(recipe.net, recipe.process, samples)
    tensors = files_of(trainee) | {"optimizer": optimizer_tensors(trainee)}
    headers = {file: {} if file in ("optimizer", "weighting") else header for file in tensors}
    contents = {
        file: Content(engine.gather(of_file, partial(writer.place, file)), headers[file])
        for file, of_file in tensors.items()
    }
    state: dict[str, Any] = {"step": trainee.step, "images": images}
    if engine.scaler.is_enabled():
        state["scaler"] = engine.scaler.state_dict()
    if engine.main:
        writer.begin(partial(checkpoint.save, run.checkpoints, trainee.step, contents, state, recipe.train.keep))
    return run.checkpoints / name_of(trainee.step)


@torch.no_grad()
def restore(trainee: Trainee, newest: Path | None, engine: Engine) -> None:
    """The main process's newest checkpoint, in every process; nothing if there is none."""
    state = read_json_file(newest / "state.json") if newest else {}
    trainee.step = int(engine.numbers([state.get("step", 0)])[0])
    if not engine.any(newest is not None):
        return

    def stored(name: str) -> dict[str, Tensor]:
        return load_file(newest / f"{name}.safetensors") if newest else {}

    source = stored("model")
    for name, p in trainee.net.named_parameters():
        p.copy_(engine.give(source, name, p))
    for which, average in trainee.averages.items():
        source = stored(which)
        for name, weight in average.weights.items():
            weight.copy_(engine.give(source, name, weight))
    restore_optimizer(trainee, stored("optimizer"), engine)
    learned = own_parameters(trainee.objective)
    source = stored("weighting") if learned else {}
    for i, p in enumerate(learned):
        p.copy_(engine.give(source, str(i), p))
    if engine.scaler.is_enabled():
        names = sorted(engine.scaler.state_dict())
        stored_scaler = state.get("scaler", engine.scaler.state_dict())
        values = engine.numbers([stored_scaler[name] for name in names])
        kinds = engine.scaler.state_dict()
        engine.scaler.load_state_dict({n: type(kinds[n])(v) for n, v in zip(names, values, strict=True)})


def _snapshot(run: Run, recipe: Recipe, engine: Engine, trainee: Trainee, samples: Samples) -> None:
    """The power-function averages as they are, for an average of any length to be made of later."""
    header = metadata(recipe.net, recipe.process, samples)
    for name, average in trainee.averages.items():
        if name.startswith("power_"):
            tensors = engine.gather(average.weights)
            path = run.snapshots / f"{name_of(trainee.step)}_{name}.safetensors"
            write = partial(save_tensors, tensors=tensors, metadata=header)
            engine.on_main(partial(write_atomic, path, write))


def _diverged(run: Run, recipe: Recipe, data: Dataset, step: int) -> None:
    """Save the batch that a step was taken on, made again, and raise."""
    rows = rows_of(recipe, data, step - 1, range(recipe.train.batch))
    batch = noised(recipe, rows, torch.device("cpu"))
    tensors = {k: v.contiguous() for k, v in batch._asdict().items() if v is not None}
    path = run.path / f"diverged_{name_of(step)}.safetensors"
    write_atomic(path, partial(save_tensors, tensors=tensors))
    newest = run.newest()
    whole = f"the last checkpoint, {newest.name}, is untouched" if newest else "no checkpoint was written yet"
    raise HemstitchError(
        f"the loss or its gradient is not a number at step {step}; {whole}, and the batch is saved in {path}. "
        "Go on from its averaged weights with a lower --learning-rate, --clip 1 or --precision fp32: "
        f"--init {run.path} and another --out"
    )


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
