"""A. Switch-DiT against DTR against DiT: the same width, depth, batch, iterations and process, on Fashion-MNIST.

The process is the cosine schedule with v-prediction, though the papers predict eps: at this scale a DiT comes closer in
the same time by it (`choose`). Gates and masks see the same timesteps either way.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hemstitch.models.config import Family
from hemstitch.recipe import Recipe

from .families import FAMILIES, FIGURES, PAIRS, SEEDS, along, gap, interval, pace, recipes
from .fields import BATCH, Field, classes, fashion, sampled_rows, told
from .networks import at, train, transformer
from .work import Ledger, Result, Task

STEPS = 6000
MARKS = (1500, 3000, 4200, 6000)  # where along training samples are judged; 4,200 is 70 % of all
LOOK: dict[str, Any] = {"sampler": "ddim", "steps": 25}
NUM, FIRST, SAMPLING_SEED = 10_000, 5_000, 1000  # samples at the end; along training, and at the end beside them


def recipe(field: Field, family: Family, seed: int, steps: int = STEPS) -> Recipe:
    """Everything but the family and the seed is equal, and was chosen for the DiT (`choose`)."""
    return transformer(field, f"switch-{family}-{seed}", family, seed=seed, steps=steps, checkpoint_every=300)


def tasks(folder: Path) -> list[Task]:
    field, runs = fashion(folder), folder / "runs"
    found = [Task("switch/field", field.prepare, of=field.settings)]
    for seed in SEEDS:
        for family in FAMILIES:
            mine = recipe(field, family, seed)
            trained = f"switch/trained/{family}-{seed}"
            found.append(Task(trained, partial(train, mine, runs / mine.name), of=mine.hash))
            for mark in reversed(MARKS):
                name = f"switch/judged/{family}-{seed}/{mark}"
                do = partial(judge, field, runs / mine.name, mark, folder / "features" / name, seed)
                of = (field.settings, mine.hash, mark, LOOK, NUM, FIRST, SAMPLING_SEED + seed)
                found.append(Task(name, do, ("switch/field", trained), of))
    paced = recipes(lambda family: transformer(field, f"pace-{family}", family, steps=1000, log_every=1))
    hashes = {family: one.hash for family, one in paced.items()}
    found.append(Task("switch/pace", partial(pace, paced, folder / "pace"), of=hashes))
    return found


def judge(field: Field, run: Path, mark: int, kept: Path, seed: int) -> Result:
    """Samples of a run's averaged weights after so many steps, without guidance: the first ones, and all at the end.

    Those of a training seed have a seed of their own, the same for all families.
    """
    model, num = at(run, mark), NUM if mark == STEPS else FIRST
    rows = sampled_rows(field, model, num, kept, SAMPLING_SEED + seed, **LOOK)
    result = {name: told(score) for name, score in field.scores(rows[:FIRST], classes(FIRST)).items()}
    if num > FIRST:
        result["all"] = {name: told(score) for name, score in field.scores(rows, classes(num)).items()}
    return result


def summary(ledger: Ledger) -> dict[str, Any]:
    """Every judged checkpoint, and families beside one another (`families.along`); at the end of all samples."""
    judged, paces = ledger.all("switch/judged"), ledger["switch/pace"]
    ends = {
        figure: {
            family: [judged[f"{family}-{seed}/{STEPS}"]["all"][figure]["value"] for seed in SEEDS]
            for family in FAMILIES
        }
        for figure in FIGURES
    }
    return {
        "sampling": {
            "look": LOOK,
            "seeds": [SAMPLING_SEED + seed for seed in SEEDS],
            "samples": [FIRST, NUM],
            "batch": BATCH,
        },
        "field": ledger["switch/field"],
        "trained": ledger.all("switch/trained"),
        "judged": judged,
        "pace": paces,
        **along(judged, MARKS, paces["seconds_a_step"]),
        "end": {figure: {family: interval(of) for family, of in by.items()} for figure, by in ends.items()},
        "at_the_end": {f"{a} to {b}": gap(ends["distance"][a], ends["distance"][b]) for a, b in PAIRS},
    }
