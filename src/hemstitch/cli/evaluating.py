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
    if known.curve:
        from .sweeping import sweep

        return sweep(known)
    from ..evaluate.evaluation import evaluate
    from ..evaluate.reference import open_reference, open_source

    sets: dict[str, Sequence[Source]] = {}
    for argument in known.sets:
        name, equals, paths = argument.partition("=")
        if not equals:
            name, paths = Path(argument.rstrip("/")).name or argument, argument
        if name in sets:
            raise HemstitchError(f"two sets are called {name!r}: name them, NAME={argument}")
        sets[name] = [open_source(path, grey=known.grey) for path in paths.split(",")]
    reference = None
    if known.reference is not None:
        reference = open_reference(known.reference, size=known.reference_size, grey=known.grey)
    line = Line()
    measuring, metrics = measuring_of(known)
    report = evaluate(sets, reference, metrics, measuring, shown(line))
    told(report, known.out, line)
    return 0


def measuring_of(known: argparse.Namespace) -> tuple[Measuring, list[str]]:
    """How to measure and what, as the options say."""
    from ..evaluate.evaluation import Measuring
    from ..evaluate.metrics import chosen
    from ..share import device_of

    device = device_of(known.device)
    weights = _weights(known.weights_of or [])
    general = (Path(known.extractor).suffix == ".safetensors" and "classifier") or known.extractor
    metrics = (known.metrics or DEFAULT.get(general, "fid,prc")).split(",")
    needed = {metric.extractor for metric in chosen(metrics).values()} - {None, general}
    if "classifier" in needed:
        raise HemstitchError("accuracy is a classifier's: give one, --extractor classifier.safetensors")
    made = _made(known.extractor, weights, device)
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


def _weights(arguments: list[str]) -> dict[str, str]:
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
