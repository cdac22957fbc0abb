"""The command that evaluates."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HemstitchError
from .line import Line, clock

if TYPE_CHECKING:
    from ..evaluate.evaluation import Measuring, Report, Show
    from ..evaluate.extractors import Extractor
    from ..evaluate.reference import Source

DEFAULT = {"inception": "fid,sfid,is,prc", "classifier": "fid,sfid,is,prc,dc,kid"}


def evaluate(known: argparse.Namespace, rest: list[str]) -> int:
    ignored = _ignored(known)
    if ignored:
        with_curve = "belong to --curve" if not known.curve else "do not go with --curve"
        raise HemstitchError(f"{', '.join(ignored)} {with_curve}: leave them out")
    if known.out is not None and not known.curve and known.out.is_dir():
        raise HemstitchError(f"{known.out} is a folder: --out is the report, a .json")
    if known.curve:
        from .sweeping import sweep

        return sweep(known)
    from ..evaluate.evaluation import evaluate
    from ..evaluate.reference import open_reference, open_source

    sets: dict[str, Sequence[Source]] = {}
    for argument in known.sets:
        name, paths = _named(argument)
        if name in sets:
            raise HemstitchError(f"two sets are called {name!r}: name them, NAME={argument}")
        sets[name] = [open_source(path, size=known.size, grey=known.grey) for path in paths]
    reference = None
    if known.reference is not None:
        reference = open_reference(known.reference, size=known.reference_size, grey=known.grey)
    line = Line()
    measuring, metrics = measuring_of(known)
    report = evaluate(sets, reference, metrics, measuring, shown(line))
    told(report, known.out, line)
    return 0


def _named(argument: str) -> tuple[str, list[str]]:
    """A set's name and its paths, from PATH or NAME=PATH[,PATH...]. What is there as it stands is a path."""
    if Path(argument).exists():
        return Path(argument).resolve().name, [argument]
    name, equals, paths = argument.partition("=")
    if not equals:
        name, paths = Path(argument.rstrip("/")).name or argument, argument
    return name, paths.split(",") if not Path(paths).exists() else [paths]


# What is said for the other of the two that `hemstitch evaluate` does, with the default that says nothing.
_OF_SETS = {"metrics": None, "cache": None, "size": 0, "order": "shuffled", "resamples": 20}
_OF_CURVES = {
    "fractions": "0,0.2,0.4,0.6,0.8,1",
    "plans": None,
    "guidances": "1",
    "steps": None,
    "sampler": "ddim",
    "batch": 64,
    "vae": None,
    "weights": "ema",
    "ema": None,
}


def _ignored(known: argparse.Namespace) -> list[str]:
    """Options given that would do nothing."""
    others = _OF_SETS if known.curve else _OF_CURVES
    return [f"--{name}" for name, default in others.items() if getattr(known, name) != default]


def measuring_of(known: argparse.Namespace) -> tuple[Measuring, list[str]]:
    """How to measure and what, as the options say."""
    from ..evaluate.evaluation import Measuring
    from ..evaluate.metrics import chosen
    from ..share import device_of

    device = device_of(known.device)
    weights = weights_of(known.weights_of or [])
    general = (Path(known.extractor).suffix == ".safetensors" and "classifier") or known.extractor
    metrics = (known.metrics or DEFAULT.get(general, "fid,prc")).split(",")
    needed = {metric.extractor for metric in chosen(metrics).values()}
    if "classifier" in needed and general != "classifier":
        raise HemstitchError("accuracy is a classifier's: give one, --extractor classifier.safetensors")
    made = _made(known.extractor, weights, device) if needed & {None, general} else None
    needed -= {None, general}
    bound = {name: _made(name, weights, device) for name in sorted(n for n in needed if n)}
    return Measuring(
        made,
        bound,
        count=known.count,
        batch=known.extract_batch,
        cache=known.cache,
        resamples=known.resamples,
        order=known.order,
        device=device,
    ), metrics


def _made(name: str, weights: dict[str, str], device: object) -> Extractor:
    from ..evaluate.extractors import extractor

    return extractor(name, weights=weights.get(name), device=str(device))


def weights_of(arguments: list[str]) -> dict[str, str]:
    found = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or name not in ("inception", "dinov2", "clip", "classifier"):
            raise HemstitchError(
                f"--extractor-weights is inception=PATH, dinov2=FOLDER or clip=FOLDER, not {argument!r}"
            )
        found[name] = path
    return found


def shown(line: Line) -> Show:
    """Progress on one line."""

    def show(what: str, done: int, total: int, left: float) -> None:
        remaining = f", {clock(left)} left" if left else ""
        line.show(f"{what} {done}/{total}{remaining}", done == total)

    return show


def told(report: Report, out: Path | None, line: Line) -> None:
    """The table, and the report as a file."""
    from ..evaluate.table import table
    from ..files import write_text

    line.say(table(report))
    if out is not None:
        write_text(out, report.to_json())
        line.say(str(out))
