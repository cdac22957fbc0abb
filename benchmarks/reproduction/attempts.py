"""F. What Switch-DiT's lead over DiT hangs on: part A again, shorter, with one thing other than there.

The implementation is held to the released one's outputs by the golden vectors; other data and sizes are parts D and E;
prior, experts and gates are part D. Left are the rate, which was chosen for the DiT, and the process, which is not that
of the papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hemstitch.models.config import Family
from hemstitch.recipe import Recipe

from . import switch
from .families import FIGURES, SEEDS, gap, interval
from .fields import Field, fashion, judged, told
from .networks import at, train, transformer
from .work import Ledger, Result, Task

PAIR: tuple[Family, Family] = ("switch_dit", "dit")
MARKS = (1500, 3000)
NUM = 2_500
ATTEMPTS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "rate": ("a third of the rate, 1e-3", {"learning_rate": 1e-3}),
        "process": ("linear betas, eps prediction", {"schedule": "linear", "prediction": "eps"}),
    }
)


def recipe(field: Field, attempt: str, family: Family, seed: int) -> Recipe:
    name, (_, changed) = f"attempts-{attempt}-{family}-{seed}", ATTEMPTS[attempt]
    return transformer(field, name, family, seed=seed, steps=MARKS[-1], checkpoint_every=MARKS[0], **changed)


def tasks(folder: Path) -> list[Task]:
    field, runs, found = fashion(folder), folder / "runs", []
    for attempt in ATTEMPTS:
        for seed in SEEDS:
            for family in PAIR:
                mine = recipe(field, attempt, family, seed)
                run = f"{attempt}/{family}-{seed}"
                found.append(Task(f"attempts/trained/{run}", partial(train, mine, runs / mine.name), of=mine.hash))
                for mark in MARKS:
                    name = f"attempts/judged/{run}/{mark}"
                    do = partial(judge, field, runs / mine.name, mark, folder / "features" / name, seed)
                    of = (field.settings, mine.hash, mark, switch.LOOK, NUM, switch.SAMPLING_SEED + seed)
                    found.append(Task(name, do, ("switch/field", f"attempts/trained/{run}"), of))
    return found


def judge(field: Field, run: Path, mark: int, kept: Path, seed: int) -> Result:
    """As in part A, on fewer samples."""
    scores = judged(field, at(run, mark), NUM, kept, switch.SAMPLING_SEED + seed, switch.LOOK)
    return {name: told(score) for name, score in scores.items()}


def summary(ledger: Ledger) -> dict[str, Any]:
    """Of each attempt and mark the two families over seeds, and the gap between them."""
    results = ledger.all("attempts")
    found: dict[str, Any] = {"results": results, "seeds": list(SEEDS), "samples": NUM, "attempts": {}}
    for attempt, (differs, _) in ATTEMPTS.items():
        by_mark = {}
        for mark in MARKS:
            values = {
                figure: {
                    family: [results[f"judged/{attempt}/{family}-{seed}/{mark}"][figure]["value"] for seed in SEEDS]
                    for family in PAIR
                }
                for figure in FIGURES
            }
            distances = values["distance"]
            by_mark[str(mark)] = {
                **{figure: {family: interval(of) for family, of in by.items()} for figure, by in values.items()},
                "gap": gap(distances["switch_dit"], distances["dit"]),
            }
        found["attempts"][attempt] = {"differs": differs, "marks": by_mark}
    return found
