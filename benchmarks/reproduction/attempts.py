"""F. What Switch-DiT's lead over DiT hangs on: part A with one thing other than there.

The implementation is held to the released one's outputs by the golden vectors, which the tests do; experts and gates
are part D, other data parts D and E. Left are the process, which is not that of the papers, and the size; and since
part D says that the prior loss costs quality on digits, part A without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hemstitch.models.config import Family
from hemstitch.recipe import Recipe

from . import switch
from .families import FAMILIES, FIGURES, PAIRS, SEEDS, gap, interval
from .fields import BATCH, Field, fashion, judged, told
from .networks import at, marked, training, transformer
from .work import Ledger, Result, Task


@dataclass(frozen=True)
class Attempt:
    """differs: from part A in what, for a reader. families: that are trained. marks: iterations after which samples are
    judged, 70 % of all and the end. num: how many. changed: settings that are other than in part A. beside: families
    that these settings say nothing of, which are part A's."""

    differs: str
    families: tuple[Family, ...]
    marks: tuple[int, int]
    num: int
    changed: Mapping[str, Any]
    beside: tuple[Family, ...] = ()

    @property
    def shown(self) -> tuple[Family, ...]:
        return tuple(family for family in FAMILIES if family in (*self.families, *self.beside))

    def recipe(self, field: Field, name: str, family: Family, seed: int) -> Recipe:
        """What is trained."""
        return transformer(
            field, name, family, seed=seed, steps=self.marks[-1], checkpoint_every=switch.EVERY, **self.changed
        )


ATTEMPTS: Mapping[str, Attempt] = MappingProxyType(
    {
        "no prior": Attempt(
            "no prior loss",
            ("switch_dit",),
            (2800, 4000),
            switch.FIRST,
            {"prior_weight": 0.0},
            beside=("dit", "dtr"),
        ),
        "process": Attempt(
            "linear betas, eps prediction, as published",
            FAMILIES,
            (1400, 2000),
            switch.FIRST // 2,
            {"schedule": "linear", "prediction": "eps"},
        ),
        "narrow": Attempt(
            "half as wide",
            ("dit", "switch_dit"),
            (1400, 2000),
            switch.FIRST // 2,
            {"width": 64, "heads": 2},
        ),
    }
)


def tasks(folder: Path) -> list[Task]:
    where, runs, found = fashion(folder), folder / "runs", []
    for key, attempt in ATTEMPTS.items():
        for seed in SEEDS:
            others = [f"switch/judged/{family}-{seed}" for family in attempt.beside]
            for family in attempt.families:
                run = runs / f"attempts-{key}-{family}-{seed}"
                mine = attempt.recipe(where, run.name, family, seed)
                name = f"{key}/{family}-{seed}"
                trained = f"attempts/trained/{name}"
                found.append(training(trained, mine, runs))
                for mark in reversed(attempt.marks):
                    kept = folder / "features" / "attempts" / name / f"{mark}"
                    do = partial(judge, where, run, mark, attempt.num, kept, seed)
                    of = (where.settings, marked(mine), mark, switch.LOOK, attempt.num, switch.SAMPLING_SEED + seed)
                    needs = ("switch/field", trained, *(f"{other}/{mark}" for other in others))
                    found.append(Task(f"attempts/judged/{name}/{mark}", do, needs, of))
    return found


def judge(field: Field, run: Path, mark: int, num: int, kept: Path, seed: int) -> Result:
    """As in part A."""
    scores = judged(field, at(run, mark), num, kept, switch.SAMPLING_SEED + seed, switch.LOOK)
    return {name: told(score) for name, score in scores.items()}


def summary(ledger: Ledger) -> dict[str, Any]:
    """Of each attempt and mark the families over seeds, and the gaps between them; the first family at 70 % of the
    iterations less the other at the end; and what is beside part A's, less part A's own."""
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
        pairs = [pair for pair in PAIRS if {*pair} <= {*attempt.shown}]
        judged_as = dict.fromkeys(attempt.families, f"attempts/judged/{key}")
        judged_as |= dict.fromkeys(attempt.beside, "switch/judged")
        values = {
            str(mark): {
                figure: {
                    family: [ledger[f"{judged_as[family]}/{family}-{seed}/{mark}"][figure]["value"] for seed in SEEDS]
                    for family in attempt.shown
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
            if attempt.beside:  # the same samples as part A's
                theirs = {
                    family: [ledger[f"switch/judged/{family}-{seed}/{mark}"]["distance"]["value"] for seed in SEEDS]
                    for family in attempt.families
                }
                row["marks"][mark]["to_part_a"] = {f: gap(of["distance"][f], theirs[f]) for f in attempt.families}
        early, late = (values[str(mark)]["distance"] for mark in attempt.marks)
        row["sooner"] = {f"{a} to {b}": gap(early[a], late[b]) for a, b in pairs}
        found["attempts"][key] = row
    return found
