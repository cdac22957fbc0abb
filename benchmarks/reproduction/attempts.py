"""F. What Switch-DiT's lead over DiT hangs on: part A with one thing other than there.

The implementation is held to the released one's outputs by the golden vectors, which the tests do; other data and sizes
are parts D and E; prior, experts and gates are part D. Left are how long training goes on, the rate that it ends with,
and the process, which is not that of the papers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hemstitch.models.config import Family
from hemstitch.recipe import Recipe

from . import networks, switch
from .families import FIGURES, PAIRS, SEEDS, SOONER, gap, interval
from .fields import BATCH, Field, fashion, judged, told
from .networks import at, begin_at, held, marked, transformer
from .work import Ledger, Result, Task

TWO: tuple[Family, ...] = ("dit", "switch_dit")
TUNING_SEED = 200  # of training that begins with part A's weights; of its first seed


@dataclass(frozen=True)
class Attempt(ABC):
    """differs: from part A in what, for a reader. marks: iterations after which samples are judged. num: how many."""

    differs: str
    families: tuple[Family, ...]
    marks: tuple[int, ...]
    num: int

    @abstractmethod
    def recipe(self, field: Field, name: str, family: Family, seed: int) -> Recipe:
        """What is trained."""

    @abstractmethod
    def train(self, recipe: Recipe, begun: Path, out: Path) -> Result:
        """begun: the run of part A of that family and seed."""


@dataclass(frozen=True)
class Anew(Attempt):
    """Trained from the start, with other settings."""

    changed: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, field: Field, name: str, family: Family, seed: int) -> Recipe:
        return transformer(
            field, name, family, seed=seed, steps=self.marks[-1], checkpoint_every=switch.EVERY, **self.changed
        )

    def train(self, recipe: Recipe, begun: Path, out: Path) -> Result:
        return networks.train(recipe, out)


@dataclass(frozen=True)
class GoneOn(Attempt):
    """Part A's run, trained on as it was."""

    def recipe(self, field: Field, name: str, family: Family, seed: int) -> Recipe:
        return switch.recipe(field, family, seed, self.marks[-1])

    def train(self, recipe: Recipe, begun: Path, out: Path) -> Result:
        begin_at(begun, switch.STEPS, out, "provenance.jsonl", "metrics.jsonl")
        return networks.train(recipe, out)


@dataclass(frozen=True)
class Tuned(Attempt):
    """Begun with part A's averaged weights at the end, at another rate, in another order of the data."""

    learning_rate: float = 0.0

    def recipe(self, field: Field, name: str, family: Family, seed: int) -> Recipe:
        mine = switch.recipe(field, family, seed, self.marks[-1])
        changes = {"learning_rate": self.learning_rate, "seed": TUNING_SEED + seed}
        return replace(mine, name=name, train=replace(mine.train, **changes))

    def train(self, recipe: Recipe, begun: Path, out: Path) -> Result:
        return networks.train(replace(recipe, train=replace(recipe.train, init=str(begun))), out)


ATTEMPTS: Mapping[str, Attempt] = MappingProxyType(
    {
        "cooled": Tuned("1,000 more at a tenth of the rate", TWO, (1000,), switch.FIRST, learning_rate=3e-4),
        "process": Anew(
            "linear betas, eps prediction",
            TWO,
            (2000,),
            switch.FIRST // 2,
            {"schedule": "linear", "prediction": "eps"},
        ),
        "longer": GoneOn("half as long again", TWO, (4200, 6000), switch.FIRST),
    }
)


def tasks(folder: Path) -> list[Task]:
    where, runs, found = fashion(folder), folder / "runs", []
    for key, attempt in ATTEMPTS.items():
        for seed in SEEDS:
            for family in attempt.families:
                base = switch.recipe(where, family, seed)
                run = runs / f"attempts-{key}-{family}-{seed}"
                mine = attempt.recipe(where, run.name, family, seed)
                name = f"{key}/{family}-{seed}"
                trained, begun = f"attempts/trained/{name}", f"switch/trained/{family}-{seed}"
                do = partial(attempt.train, mine, runs / base.name, run)
                found.append(Task(trained, do, (begun,), (marked(mine), marked(base)), held(run, mine.train.steps)))
                for mark in attempt.marks:
                    kept = folder / "features" / "attempts" / name / f"{mark}"
                    do = partial(judge, where, run, mark, attempt.num, kept, seed)
                    seeds = (switch.LOOK, attempt.num, switch.SAMPLING_SEED + seed)
                    of = (where.settings, marked(mine), marked(base), mark, *seeds)
                    found.append(Task(f"attempts/judged/{name}/{mark}", do, ("switch/field", trained), of))
    return found


def judge(field: Field, run: Path, mark: int, num: int, kept: Path, seed: int) -> Result:
    """As in part A."""
    scores = judged(field, at(run, mark), num, kept, switch.SAMPLING_SEED + seed, switch.LOOK)
    return {name: told(score) for name, score in scores.items()}


def summary(ledger: Ledger) -> dict[str, Any]:
    """Of each attempt and mark the families over seeds, and the gaps between them; where the marks are 70 % and the
    end, also the first family at 70 % less the other at the end."""
    results = ledger.all("attempts")
    found: dict[str, Any] = {
        "results": results,
        "sampling": {
            "look": switch.LOOK,
            "samples": {key: attempt.num for key, attempt in ATTEMPTS.items()},
            "seeds": [switch.SAMPLING_SEED + seed for seed in SEEDS],
            "batch": BATCH,
        },
        "attempts": {},
    }
    for key, attempt in ATTEMPTS.items():
        pairs = [pair for pair in PAIRS if {*pair} <= {*attempt.families}]
        values = {
            str(mark): {
                figure: {
                    family: [results[f"judged/{key}/{family}-{seed}/{mark}"][figure]["value"] for seed in SEEDS]
                    for family in attempt.families
                }
                for figure in FIGURES
            }
            for mark in attempt.marks
        }
        row: dict[str, Any] = {"differs": attempt.differs, "marks": {}}
        for mark, of in values.items():
            row["marks"][mark] = {
                **{figure: {name: interval(some) for name, some in by.items()} for figure, by in of.items()},
                "gaps": {f"{a} to {b}": gap(of["distance"][a], of["distance"][b]) for a, b in pairs},
            }
        first, last = attempt.marks[0], attempt.marks[-1]
        if first == round(SOONER * last):
            early, late = (values[str(mark)]["distance"] for mark in (first, last))
            row["sooner"] = {f"{a} to {b}": gap(early[a], late[b]) for a, b in pairs}
        found["attempts"][key] = row
    return found
