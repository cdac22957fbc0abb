"""A. Switch-DiT against DTR against DiT: the same width, depth, batch, iterations and process, on Fashion-MNIST.

The process is the cosine schedule with v-prediction, though the papers predict eps: at this scale a DiT comes closer in
the same time by it (`choose`). Gates and masks see the same timesteps either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hemstitch.models.config import Family
from hemstitch.recipe import Recipe

from .families import FAMILIES, FIGURES, PAIRS, SEEDS, along, gap, interval, pace, recipes
from .fields import BATCH, Field, classes, fashion, judged, sampled_rows, told
from .networks import at, marked, train, training, transformer
from .work import Ledger, Result, Task

STEPS = 4000
MARKS = (1000, 2000, 2800, 4000)  # where along training samples are judged; 2,800 is 70 % of all
EVERY = 200  # iterations between checkpoints
LOOK: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 15}
NUM, FIRST, SAMPLING_SEED = 10_000, 5_000, 1000  # samples at the end; along training, and at the end beside them
ROUNDED: tuple[Family, ...] = ("dit", "switch_dit")  # which are trained once more, in float32
GUIDANCE, GUIDED = 1.5, 2_500  # as the papers evaluate, at the end; samples


def recipe(field: Field, family: Family, seed: int, steps: int = STEPS) -> Recipe:
    """Everything but the family and the seed is equal, and was chosen for the DiT (`choose`)."""
    return transformer(field, f"switch-{family}-{seed}", family, seed=seed, steps=steps, checkpoint_every=EVERY)


def tasks(folder: Path) -> list[Task]:
    field, runs = fashion(folder), folder / "runs"
    found = [field.task("switch/field")]
    for seed in SEEDS:
        for family in FAMILIES:
            mine = recipe(field, family, seed)
            trained = f"switch/trained/{family}-{seed}"
            found.append(training(trained, mine, runs))
            for mark in reversed(MARKS):
                name = f"switch/judged/{family}-{seed}/{mark}"
                do = partial(judge, field, runs / mine.name, mark, folder / "features" / name, seed)
                of = (field.settings, mine.hash, mark, LOOK, NUM, FIRST, SAMPLING_SEED + seed)
                found.append(Task(name, do, ("switch/field", trained), of))
            name = f"switch/guided/{family}-{seed}"
            do = partial(guided, field, runs / mine.name, folder / "features" / name, seed)
            of = (field.settings, marked(mine), LOOK, GUIDANCE, GUIDED, SAMPLING_SEED + seed)
            found.append(Task(name, do, ("switch/field", trained), of))
    for family in ROUNDED:
        mine, run = in_float32(recipe(field, family, 0, MARKS[0])), runs / f"switch-{family}-0-float32"
        do = partial(rounded, field, mine, run, folder / "features" / "switch" / "rounded" / family)
        of = (field.settings, marked(mine), LOOK, FIRST, SAMPLING_SEED)
        found.append(Task(f"switch/rounded/{family}", do, ("switch/field",), of))
    paced = recipes(lambda family: transformer(field, f"pace-{family}", family, steps=1000, log_every=1))
    hashes = {family: one.hash for family, one in paced.items()}
    found.append(Task("switch/pace", partial(pace, paced, folder / "pace"), of=hashes))
    return found


def in_float32(mine: Recipe) -> Recipe:
    return replace(mine, train=replace(mine.train, precision="fp32"))


def rounded(field: Field, mine: Recipe, run: Path, kept: Path) -> Result:
    """Train seed 0 to the first mark once more in float32: how far a figure goes by rounding alone."""
    return train(mine, run) | judge(field, run, MARKS[0], kept, 0)


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


def guided(field: Field, run: Path, kept: Path, seed: int) -> Result:
    """Samples of a run's last averaged weights under guidance."""
    scores = judged(field, at(run, STEPS), GUIDED, kept, SAMPLING_SEED + seed, LOOK | {"guidance": GUIDANCE})
    return {name: told(score) for name, score in scores.items()}


def summary(ledger: Ledger) -> dict[str, Any]:
    """Every judged checkpoint, and families beside one another (`families.along`); at the end of all samples."""
    results, paces = ledger.all("switch/judged"), ledger["switch/pace"]
    with_guidance = ledger.all("switch/guided")
    ends = by_family({run: results[f"{run}/{STEPS}"]["all"] for run in with_guidance})
    guided_ends = by_family(with_guidance)
    return {
        "sampling": {
            "look": LOOK,
            "seeds": [SAMPLING_SEED + seed for seed in SEEDS],
            "samples": [FIRST, NUM],
            "batch": BATCH,
        },
        "field": ledger["switch/field"],
        "trained": ledger.all("switch/trained"),
        "judged": results,
        "guided": with_guidance,
        "pace": paces,
        "rounded": ledger.all("switch/rounded"),
        **along(results, MARKS, paces["seconds_a_step"]),
        "end": over_seeds(ends),
        "at_the_end": gaps(ends),
        "guided_end": over_seeds(guided_ends),
        "under_guidance": gaps(guided_ends),
    }


By = dict[str, dict[str, list[float]]]  # figure, family: values by seed


def by_family(results: Mapping[str, Any]) -> By:
    """results: by "family-seed"."""
    return {
        figure: {family: [results[f"{family}-{seed}"][figure]["value"] for seed in SEEDS] for family in FAMILIES}
        for figure in FIGURES
    }


def over_seeds(ends: By) -> dict[str, Any]:
    return {figure: {family: interval(values) for family, values in by.items()} for figure, by in ends.items()}


def gaps(ends: By) -> dict[str, Any]:
    return {f"{a} to {b}": gap(ends["distance"][a], ends["distance"][b]) for a, b in PAIRS}
