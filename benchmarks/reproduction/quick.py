"""One seed of shortened parts A and B, held against the published intervals: minutes instead of days.

A: a DiT and a Switch-DiT of seed 0 up to the first judged checkpoint. A second run of a seed is not quite the same run:
sums are rounded otherwise on other processors; how far rounding moves a distance, training in float32 tells
(`switch.rounded`). A figure is held against the interval, 95 %, that other samples of the published run would have. B:
the fractions 0, .4 and .8 of the models that come with hemstitch, whose samples are the published ones but for
rounding, held against the intervals that were published for them. Distances are in the features of the classifier that
comes with the models.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import hemstitch as hs
from hemstitch.errors import HemstitchError
from hemstitch.evaluate.score import NORMAL_95
from hemstitch.pretrained import CLASSIFIER, unpack

from . import beyond, stitching, switch
from .fields import Field, distance_of, fashion
from .networks import marked, train
from .work import Ledger, Result, Task

FRACTIONS = (0.0, 0.4, 0.8)
SHORT = switch.MARKS[0]
FAMILIES = ("dit", "switch_dit")
TABLE = "beyond/large/switch_dit-0"  # of the models that come with hemstitch
RESULTS = Path("benchmarks/results/reproduction")


class Held(NamedTuple):
    """A figure made here, and the interval that it is held against."""

    what: str
    value: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        return self.low <= self.value <= self.high


def tasks(folder: Path) -> list[Task]:
    field = fashion(folder)
    found = [Task("quick/unpacked", partial(unpacked, field, folder / "pretrained"))]
    for family in FAMILIES:
        recipe, run = switch.recipe(field, family, 0, SHORT), folder / "runs" / f"quick-{family}"
        found.append(Task(f"quick/trained/{family}", partial(train, recipe, run), ("quick/unpacked",), marked(recipe)))
        judge = partial(switch.judge, field, run, SHORT, folder / "features" / "quick" / family, 0)
        needs = ("quick/unpacked", f"quick/trained/{family}")
        found.append(Task(f"quick/judged/{family}", judge, needs, recipe.hash))
    pair = stitching.Pair(field, folder / "samples" / "quick", lambda: members(folder / "pretrained"))
    plans = stitching.fractions(FRACTIONS, beyond.SHORT.steps)
    table = partial(pair.table, "fractions", plans, beyond.SHORT)
    return [*found, Task("quick/fractions", table, ("quick/unpacked",), (FRACTIONS, beyond.SHORT))]


def unpacked(field: Field, out: Path) -> Result:
    """The models and the classifier that come with hemstitch, in their places, if figures of them were published."""
    about, judged_by = unpack(out), published()["switch/field"]["classifier"]
    if about.extractor != judged_by:
        raise HemstitchError(
            f"the models come with the classifier {about.extractor}, and the published figures are of {judged_by}: "
            "make both again with --part write,release"
        )
    if field.classifier_path.exists() and field.classifier.hash != judged_by:
        raise HemstitchError(f"{field.folder} holds figures of another classifier: choose another --out")
    if not field.classifier_path.exists():
        shutil.copy(out / CLASSIFIER, field.classifier_path)
    return {"classifier": about.extractor}


def members(folder: Path) -> dict[str, Any]:
    return {name: hs.load(folder / f"{name}.safetensors").to(dtype=torch.bfloat16) for name in ("small", "large")}


def published(results: Path = RESULTS) -> Ledger:
    """The results that are held against. HemstitchError where there are none."""
    ledger = Ledger(results)
    for name in ("switch/field", TABLE, *(f"switch/judged/{family}-0/{SHORT}" for family in FAMILIES)):
        if not ledger.done(name):
            raise HemstitchError(
                f"there is no {ledger.path(name)} to hold figures against: run this in the repository's folder"
            )
    return ledger


def said(rows: list[Held]) -> str:
    """A line for each figure, and a word on all."""
    lines = [f"{'distance of':<44} {'here':>9}   published, 95 %"]
    for row in rows:
        where = "inside" if row.inside else "OUTSIDE"
        lines.append(f"{row.what:<44} {row.value:9.3f}   {row.low:9.3f} … {row.high:9.3f}   {where}")
    outside = sum(not row.inside for row in rows)
    return "\n".join([*lines, f"{outside} of {len(rows)} outside" if outside else f"all {len(rows)} inside"])


def compared(ledger: Ledger, published: Ledger) -> list[Held]:
    """Distances and gaps made here, beside what was published for them."""
    rows, mine, theirs = [], {}, {}
    for family in FAMILIES:
        theirs[family] = published[f"switch/judged/{family}-0/{SHORT}"]["distance"]
        mine[family] = ledger[f"quick/judged/{family}"]["distance"]["value"]
        rows.append(
            Held(
                f"{family} after {SHORT:,} iterations",
                mine[family],
                *other_samples(theirs[family]["value"], theirs[family]),
            )
        )
    gap = theirs["switch_dit"]["value"] - theirs["dit"]["value"]
    held = other_samples(gap, *theirs.values())
    rows.append(Held("switch_dit less dit", mine["switch_dit"] - mine["dit"], *held))
    plans, known = ledger["quick/fractions"]["plans"], published[TABLE]["plans"]
    for r, row in plans.items():
        value, half = known[r]["distance"]["value"], NORMAL_95 * known[r]["distance"]["error"]
        rows.append(Held(f"small on {r} of the steps", row["distance"]["value"], value - half, value + half))
        if r != "0":
            told = stitching.beside(distance_of(known[r]), distance_of(known["0"]))
            low, high = told["gap"] - told["half_width"], told["gap"] + told["half_width"]
            gap = row["distance"]["value"] - plans["0"]["distance"]["value"]
            rows.append(Held(f"small on {r} of the steps, less on none", gap, low, high))
    return rows


def other_samples(value: float, *scores: Mapping[str, Any]) -> tuple[float, float]:
    """The interval that a value made of scores falls into with 95 % when it is made of as many other samples: it and
    what it is held against are both uncertain."""
    half = NORMAL_95 * (2 * sum(score["error"] ** 2 for score in scores)) ** 0.5
    return value - half, value + half
