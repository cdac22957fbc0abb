"""One seed of shortened parts A and B, held against the published intervals: minutes instead of days.

A: a DiT and a Switch-DiT of seed 0 up to the first judged checkpoint. B: the fractions 0, .4 and .8 of the models that
come with hemstitch. Distances are in the features of the classifier that comes with them, which is that of the figures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hemstitch as hs
from hemstitch.pretrained import CLASSIFIER, unpack

from . import beyond, stitching, switch
from .fields import Field, fashion
from .networks import train
from .work import Ledger, Result, Task

FRACTIONS = (0.0, 0.4, 0.8)
SHORT = switch.MARKS[0]
FAMILIES = ("dit", "switch_dit")


def tasks(folder: Path) -> list[Task]:
    field = fashion(folder)
    found = [Task("quick/unpacked", partial(unpacked, field, folder / "pretrained"))]
    for family in FAMILIES:
        run = folder / "runs" / f"quick-{family}"
        found.append(Task(f"quick/trained/{family}", partial(train, switch.recipe(field, family, 0, SHORT), run)))
        judge = partial(switch.judge, field, run, SHORT, folder / "features" / "quick" / family, 0)
        found.append(Task(f"quick/judged/{family}", judge, ("quick/unpacked", f"quick/trained/{family}")))
    pair = stitching.Pair(field, folder / "samples" / "quick", lambda: members(folder / "pretrained"))
    plans = stitching.fractions(FRACTIONS, beyond.SHORT.steps)
    table = partial(pair.table, "fractions", plans, beyond.SHORT)
    return [*found, Task("quick/fractions", table, ("quick/unpacked",))]


def unpacked(field: Field, out: Path) -> Result:
    """The models and the classifier that come with hemstitch, in their places."""
    about = unpack(out)
    if not field.classifier_path.exists():
        shutil.copy(out / CLASSIFIER, field.classifier_path)
    return {"classifier": about.extractor}


def members(folder: Path) -> dict[str, Any]:
    return {name: hs.load(folder / f"{name}.safetensors") for name in ("small", "large")}


def held_against(ledger: Ledger, results: Path) -> tuple[str, bool]:
    """Every figure beside its published interval, and whether all lie inside."""
    published = {part: json.loads((results / f"reproduction-{part}.json").read_text()) for part in ("switch", "beyond")}
    lines, inside = [], True
    for what, value, low, high in compared(ledger, published):
        fits = low <= value <= high
        inside &= fits
        lines.append(f"{what:<40} {value:9.3f}   {low:9.3f} … {high:9.3f}   {'inside' if fits else 'OUTSIDE'}")
    return "\n".join([f"{'distance of':<40} {'here':>9}   published (95 %)", *lines]), inside


def compared(ledger: Ledger, published: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """(what, value here, published lowest, highest)."""
    rows = []
    for family in FAMILIES:
        over = published["switch"]["over_seeds"]["distance"][family][str(SHORT)]
        value = ledger[f"quick/judged/{family}"]["distance"]["value"]
        rows.append((f"{family} after {SHORT} iterations", value, *_around(over["mean"], over["half_width"])))
    for r, row in ledger["quick/fractions"]["plans"].items():
        told = published["beyond"]["switch as large"]["plans"][r]["distance"]
        rows.append(
            (f"small on {r} of the steps", row["distance"]["value"], *_around(told["value"], 1.96 * told["error"]))
        )
    return rows


def _around(value: float, half: float) -> tuple[float, float]:
    return value - half, value + half
