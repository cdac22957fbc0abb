"""The main job end to end on real digits: train a small and a large model, stitch them, measure, report.

Everything goes under one folder: the runs `small/` and `large/`, `classifier.safetensors`, `curve.json`, `curve.png`,
`samples/` and `report.html`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from . import recipes
from .data import Digits
from .denoiser import NetDenoiser
from .description import describe
from .errors import HemstitchError
from .evaluate import pictures, report
from .evaluate.classifier import TrainedClassifier, train_classifier
from .evaluate.curve import Point, Setting, candidates_of, measure
from .evaluate.extractors import Extractor, SmallClassifier
from .evaluate.features import moments_of
from .evaluate.frechet import Moments
from .evaluate.images import open_images
from .evaluate.plot import curve_png
from .files import read_json_file, save_tensors, write_atomic, write_bytes, write_text
from .provenance import provenance
from .recipe import Recipe
from .run import Run
from .stitch.latency import seconds_per_call
from .stitch.plan import Plan
from .train.fit import fit
from .train.meter import Progress
from .weights import load

STEPS, GUIDANCE, SAMPLER, BATCH = 50, 1.5, "ddim", 125
SHOWN_ROWS = 3  # samples of each class in the report


@dataclass(frozen=True)
class Talk:
    """Where the quickstart says things: lines that stay, and progress that may be overwritten or left out."""

    say: Callable[[str], None] = print
    progress: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Paths:
    out: Path

    @property
    def classifier(self) -> Path:
        return self.out / "classifier.safetensors"

    @property
    def curve(self) -> Path:
        return self.out / "curve.json"

    @property
    def samples(self) -> Path:
        return self.out / "samples"

    @property
    def shown(self) -> Path:
        return self.samples / "shown.safetensors"

    @property
    def report(self) -> Path:
        return self.out / "report.html"

    def made_here(self) -> list[Path]:
        names = (
            "small",
            "large",
            "samples",
            "classifier.safetensors",
            "curve.json",
            "curve.png",
            "report.html",
        )
        return [self.out / name for name in names]


def quickstart(
    out: Path, full: bool = False, reuse: bool = False, talk: Talk | None = None
) -> Iterator[tuple[str, Progress]]:
    """Run it all, yielding (member, training progress) while it trains and telling the rest through `talk`.

    An unfinished quickstart in `out` is resumed. reuse: keep finished models, and the measured curve where it has every
    point asked for; without it a finished quickstart is done again. full: 5,000 samples a point and every tenth.
    """
    talk = talk or Talk()
    began = time.perf_counter()
    paths = Paths(out)
    planned = {"small": recipes.digits_small(), "large": recipes.digits_large()}
    if not reuse and paths.report.exists():
        for path in paths.made_here():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_text(out / "README.txt", "Made by `hemstitch quickstart`; open report.html.\n")
    classifier = _classifier(paths, talk)
    extractor = SmallClassifier(classifier)
    for name, recipe in planned.items():
        for progress in _trained(out / name, recipe):
            yield name, progress
            if progress.stopped:
                return
    members = {name: load(out / name) for name in planned}
    digits = Digits("all")
    reference = moments_of(open_images("digits:all"), extractor)
    num = 5_000 if full else 1_000
    fractions = [i / 10 for i in range(11)] if full else [i / 5 for i in range(6)]
    source = provenance() | {
        "recipes": ", ".join(f"{name} {Run(out / name).recipe.hash}" for name in planned),
        "training": "seed 0, " + ", ".join(f"{name} {Run(out / name).recipe.train.steps} steps" for name in planned),
        "sampling": f"{num} samples a point, seeds (0, 0) to (0, {num - 1}), {SAMPLER}, guidance {GUIDANCE}",
        "classifier": f"{classifier.hash}, test accuracy {classifier.accuracy:.4f} on {len(Digits('test'))} images",
        "reference": f"all {len(digits)} digits",
    }
    points = _measured(paths, source, fractions) if reuse else None
    if points is None:
        points = _measure(paths, members, extractor, reference, num, fractions, source, talk)
    else:
        source = read_json_file(paths.curve)["provenance"]
        talk.say(f"measured before, {source['date']}:\n" + report.table(points))
    _write_report(paths, points, members, source)
    talk.say(f"\n{report.summary(points)}\n{paths.report} ({time.perf_counter() - began:.0f} s)")


def _classifier(paths: Paths, talk: Talk) -> TrainedClassifier:
    if paths.classifier.exists():
        return TrainedClassifier.load(paths.classifier)
    talk.say("training the classifier that measures distance (some ten seconds)")
    extractor = train_classifier(Digits("train"), Digits("test"))
    extractor.save(paths.classifier)
    talk.say(f"classifier for distances: {extractor.accuracy:.1%} of {len(Digits('test'))} held-out digits right")
    return extractor


def _trained(path: Path, recipe: Recipe) -> Iterator[Progress]:
    """Train, or go on training, unless the run is finished."""
    run = Run(path)
    newest = run.newest() if run.exists else None
    if newest is not None and newest.name.endswith(f"{recipe.train.steps:08d}"):
        return iter(())
    return fit(recipe, path, resume=run.exists, device="cpu")


def _measure(
    paths: Paths,
    members: dict[str, NetDenoiser],
    extractor: Extractor,
    reference: Moments,
    num: int,
    fractions: list[float],
    source: dict[str, str],
    talk: Talk,
) -> list[Point]:
    cost = seconds_per_call(members, BATCH, guided=True)
    plans = [(f, Plan.fractions({"small": f, "large": 1 - f}, STEPS)) for f in fractions]
    candidates = candidates_of(plans, "large", cost, [GUIDANCE])
    labels = torch.arange(num) % 10
    setting = Setting(members, "large", labels, num, BATCH, SAMPLER, extractor, reference, cost, shown=10 * SHOWN_ROWS)
    shown: dict[str, Tensor] = {}
    points: list[Point] = []
    for turn in measure(setting, candidates):
        talk.progress(
            f"{len(candidates)} plans in turns, {turn.done}/{turn.total} batches, {turn.left:.0f} s left; "
            f"{turn.candidate.name}: {1000 * turn.seconds:.2f} ms per image"
        )
        if turn.finished is None:
            continue
        if not points:
            talk.say(f"\n{report.TABLE_HEAD}")
        points.append(turn.finished.point)
        talk.say(report.table_row(points[-1]))
        shown[turn.candidate.name] = turn.finished.images.contiguous()
    write_atomic(paths.shown, lambda aside: save_tensors(aside, shown))
    data = {"points": [p.to_json() for p in points], "provenance": source}
    write_text(paths.curve, json.dumps(data, indent=1))
    return points


# What may differ between two measurements of the same thing.
_CIRCUMSTANCE = ("date", "commit", "hemstitch", "threads", "python", "torch", "device")


def _measured(paths: Paths, source: dict[str, str], fractions: list[float]) -> list[Point] | None:
    """The points of an earlier measurement of these very models and samples, if every fraction is among them."""
    if not (paths.curve.exists() and paths.shown.exists()):
        return None
    data: dict[str, Any] = read_json_file(paths.curve)
    if set(data) != {"points", "provenance"}:
        raise HemstitchError(f"{paths.curve} is not a curve of this library: remove it, or leave out --reuse")
    before = data["provenance"]
    if any(before.get(k) != v for k, v in source.items() if k not in _CIRCUMSTANCE):
        return None
    try:
        points = [Point(**p) for p in data["points"]]
    except TypeError:
        raise HemstitchError(f"{paths.curve} is not of this version: remove it, or leave out --reuse") from None
    return points if set(fractions) <= {p.fraction for p in points} else None


def _write_report(paths: Paths, points: list[Point], members: dict[str, NetDenoiser], source: dict[str, str]) -> None:
    picture = curve_png(
        points, f"Digits: a small DiT first, then a Switch-DiT; {STEPS} steps of {SAMPLER.upper()}, guidance {GUIDANCE}"
    )
    write_bytes(paths.out / "curve.png", picture)
    for old in paths.samples.glob("*.png"):
        old.unlink()
    grids = {}
    for plan, samples in load_file(paths.shown).items():
        grids[plan] = pictures.png(pictures.grid(samples, 10, gap=2, fill=0.0), scale=6)
        name = "".join(c if c.isalnum() else "_" for c in plan.replace("→", "to").replace("×", "")).strip("_")
        write_bytes(paths.samples / f"{name}.png", grids[plan])
    described = {name: str(describe(denoiser)) for name, denoiser in members.items()}
    write_text(paths.report, report.html(points, picture, grids, described, source))
