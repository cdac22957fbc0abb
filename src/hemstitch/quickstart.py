"""The main job end to end: a small and a large model, stitched, measured, reported.

On real digits the models are trained first; `pretrained` takes those that come with hemstitch instead. Everything goes
under one folder: the runs `small/` and `large/` (or their weights), `classifier.safetensors`, `curve.json`,
`curve.png`, `samples/` and `report.html`.
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
from .evaluate.reference import open_reference
from .files import read_json_file, save_tensors, write_atomic, write_bytes, write_text
from .pretrained import CLASSIFIER, REFERENCE, fingerprint, unpack
from .provenance import provenance
from .run import Run
from .stitch.latency import seconds_per_call
from .stitch.plan import Plan
from .train.fit import fit
from .train.meter import Progress
from .weights import load

STEPS, GUIDANCE, SAMPLER, BATCH = 50, 1.5, "ddim", 125
BRIEF = 25  # steps of the pretrained models, which are larger
SHOWN_ROWS = 3  # samples of each class in the report


@dataclass(frozen=True)
class Subject:
    """What is stitched and measured.

    title: of the picture. made: what the page says of the models. columns: of its samples, the classes. members: small
    and large. num: samples of a plan. source: where it all came from.
    """

    title: str
    made: str
    columns: str
    members: dict[str, NetDenoiser]
    extractor: Extractor
    reference: Moments
    classes: int
    steps: int
    num: int
    fractions: tuple[float, ...]
    source: dict[str, str]


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
    paths = _begun(out, reuse)
    planned = {"small": recipes.digits_small(), "large": recipes.digits_large()}
    classifier = _classifier(paths, talk)
    extractor = SmallClassifier(classifier)
    for name, recipe in planned.items():
        for progress in fit(recipe, out / name, resume=Run(out / name).exists, device="cpu"):
            yield name, progress
            if progress.stopped:
                return
    digits, num = Digits("all"), 5_000 if full else 1_000
    subject = Subject(
        title="Digits: a small DiT first, then a Switch-DiT",
        made="Both were trained on scikit-learn's handwritten digits just before this page was made.",
        columns="the classes 0 to 9",
        members={name: load(out / name) for name in planned},
        extractor=extractor,
        reference=moments_of(open_images("digits:all"), extractor),
        classes=10,
        steps=STEPS,
        num=num,
        fractions=_fractions(full),
        source={
            "recipes": ", ".join(f"{name} {Run(out / name).recipe.hash}" for name in planned),
            "training": "seed 0, "
            + ", ".join(f"{name} {Run(out / name).recipe.train.steps} steps" for name in planned),
            "sampling": _sampling(num),
            "classifier": f"{classifier.hash}, test accuracy {classifier.accuracy:.4f} on {len(Digits('test'))} images",
            "reference": f"all {len(digits)} digits",
        },
    )
    _shown(paths, subject, reuse, talk, began)


def quickstart_pretrained(
    out: Path, full: bool = False, reuse: bool = False, talk: Talk | None = None, archive: Path | None = None
) -> None:
    """The same with models that are trained already: those that come with hemstitch, or of another `archive`.

    Their weights are put into `out`/models, as small.safetensors and large.safetensors. Needs no data: the reference's
    moments are in the archive.
    """
    talk = talk or Talk()
    began = time.perf_counter()
    if out.exists() and not out.is_dir():
        raise HemstitchError(f"{out} is a file; --out is a folder")
    if (out / "small").is_dir():
        raise HemstitchError(f"{out} holds models that were trained there: choose another --out for pretrained ones")
    models = out / "models"
    about = unpack(models, archive)
    paths = _begun(out, reuse)
    talk.say(f"pretrained on {about.data}: small is {about.small}, large is {about.large}")
    extractor = SmallClassifier(models / CLASSIFIER)
    moments = open_reference(str(models / REFERENCE)).statistics
    assert moments is not None  # `unpack` saw them
    num = 2_000 if full else 500
    subject = Subject(
        title=f"{about.data}: small first, then large",
        made=f"{'They come with hemstitch' if archive is None else f'They are of {archive.name}'}, trained on "
        f"{about.data}: the small one is {about.small}, the large one {about.large}.",
        columns=", ".join(about.classes),
        members={name: load(models / f"{name}.safetensors") for name in ("small", "large")},
        extractor=extractor,
        reference=moments["pool"],
        classes=len(about.classes),
        steps=BRIEF,
        num=num,
        fractions=_fractions(full),
        source={
            "weights": fingerprint(models),
            "training": about.made,
            "sampling": _sampling(num),
            "classifier": f"{extractor.hash}, test accuracy {extractor.accuracy:.4f}",
            "reference": about.reference,
        },
    )
    _shown(paths, subject, reuse, talk, began)


def _begun(out: Path, reuse: bool) -> Paths:
    """The folder, without what a finished quickstart left there, unless that is to be kept."""
    paths = Paths(out)
    if not reuse and paths.report.exists():
        for path in paths.made_here():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_text(out / "README.txt", "Made by `hemstitch quickstart`; open report.html.\n")
    return paths


def _fractions(full: bool) -> tuple[float, ...]:
    return tuple(i / 10 for i in range(11)) if full else tuple(i / 5 for i in range(6))


def _sampling(num: int) -> str:
    return f"{num} samples a point, seeds (0, 0) to (0, {num - 1}), {SAMPLER}, guidance {GUIDANCE}"


def _shown(paths: Paths, subject: Subject, reuse: bool, talk: Talk, began: float) -> None:
    """Measure, unless that was done before and is to be kept, and write the report."""
    source = provenance() | subject.source
    points = _measured(paths, source, subject.fractions) if reuse else None
    if points is None:
        points = _measure(paths, subject, source, talk)
    else:
        source = read_json_file(paths.curve)["provenance"]
        talk.say(f"measured before, {source['date']}:\n" + report.table(points))
    _write_report(paths, subject, points, source)
    talk.say(f"\n{report.summary(points)}\n{paths.report} ({time.perf_counter() - began:.0f} s)")


def _classifier(paths: Paths, talk: Talk) -> TrainedClassifier:
    if paths.classifier.exists():
        return TrainedClassifier.load(paths.classifier)
    talk.say("training the classifier that measures distance (some ten seconds)")
    extractor = train_classifier(Digits("train"), Digits("test"))
    extractor.save(paths.classifier)
    talk.say(f"classifier for distances: {extractor.accuracy:.1%} of {len(Digits('test'))} held-out digits right")
    return extractor


def _measure(paths: Paths, subject: Subject, source: dict[str, str], talk: Talk) -> list[Point]:
    members, num = subject.members, subject.num
    cost = seconds_per_call(members, BATCH, guided=True)
    plans = [(f, Plan.fractions({"small": f, "large": 1 - f}, subject.steps)) for f in subject.fractions]
    candidates = candidates_of(plans, "large", cost, [GUIDANCE])
    setting = Setting(
        members,
        "large",
        torch.arange(num) % subject.classes,
        num,
        BATCH,
        SAMPLER,
        subject.extractor,
        subject.reference,
        cost,
        shown=subject.classes * SHOWN_ROWS,
    )
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


def _measured(paths: Paths, source: dict[str, str], fractions: tuple[float, ...]) -> list[Point] | None:
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


def _write_report(paths: Paths, subject: Subject, points: list[Point], source: dict[str, str]) -> None:
    picture = curve_png(points, f"{subject.title}; {subject.steps} steps of {SAMPLER.upper()}, guidance {GUIDANCE}")
    write_bytes(paths.out / "curve.png", picture)
    for old in paths.samples.glob("*.png"):
        old.unlink()
    grids = {}
    for plan, samples in load_file(paths.shown).items():
        grids[plan] = pictures.png(pictures.grid(samples, subject.classes, gap=2, fill=0.0), scale=_scale(samples))
        name = "".join(c if c.isalnum() else "_" for c in plan.replace("→", "to").replace("×", "")).strip("_")
        write_bytes(paths.samples / f"{name}.png", grids[plan])
    described = {name: str(describe(denoiser)) for name, denoiser in subject.members.items()}
    write_text(paths.report, report.html(points, picture, grids, described, source, subject.made, subject.columns))


def _scale(samples: Tensor) -> int:
    """Pixels of the page for one of a sample, so that samples are some 50 wide."""
    return max(1, round(50 / samples.shape[-1]))
