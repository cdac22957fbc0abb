"""A. Switch-DiT against DTR against DiT: the same width, depth, batch, iterations and process, on Fashion-MNIST.

The process is the cosine schedule with v-prediction, though the papers predict eps: at this scale a DiT comes to half
the distance in the same time by it (`choose`). Gates and masks see the same timesteps either way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from hemstitch.evaluate.score import Score, compared, repeated
from hemstitch.models.config import Family
from hemstitch.recipe import Recipe
from hemstitch.train.fit import fit

from .fields import BATCH, Field, classes, fashion, sampled_rows, told
from .networks import at, train, transformer
from .work import Ledger, Result, Stopped, Task

FAMILIES: tuple[Family, ...] = get_args(Family)
SEEDS = (0, 1, 2)
STEPS = 6000
MARKS = (1500, 3000, 4200, 6000)  # where along training samples are judged; 4,200 is 70 % of all
FIGURES = ("distance", "precision", "recall", "accuracy")
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
                of = (mine.hash, mark, LOOK, NUM, FIRST, SAMPLING_SEED + seed)
                found.append(Task(name, do, ("switch/field", trained), of))
    found.append(Task("switch/pace", partial(pace, field, folder / "pace"), of=recipe(field, "dit", 0).hash))
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


def pace(field: Field, folder: Path, rounds: int = 30, steps: int = 4) -> Result:
    """Seconds per training step by round, the families in turns, so that a slow spell of the machine falls on all."""
    loops = {}
    for family in FAMILIES:
        mine = transformer(field, f"pace-{family}", family, steps=steps * (rounds + 2), log_every=1)
        loops[family] = fit(mine, folder / f"{family}-{time.time_ns()}", device="cpu")
    taken: dict[str, list[float]] = {family: [] for family in FAMILIES}
    try:
        for turn in range(rounds + 1):
            for family, loop in loops.items():
                began = time.perf_counter()
                for _ in range(steps):
                    if next(loop).stopped:
                        raise Stopped
                if turn:  # the first is warm-up
                    taken[family].append((time.perf_counter() - began) / steps)
    finally:
        for loop in reversed(loops.values()):  # each gives back the signal handlers that it found
            loop.close()
    return {"seconds_a_step": taken}


# What came out


def summary(ledger: Ledger) -> dict[str, Any]:
    """Every judged checkpoint; families beside one another at equal iterations and at equal time; and the iterations
    that one needs for the final distance of another."""
    judged_, trained = ledger.all("switch/judged"), ledger.all("switch/trained")
    curves = {
        family: {
            seed: {mark: judged_[f"{family}-{seed}/{mark}"]["distance"]["value"] for mark in MARKS} for seed in SEEDS
        }
        for family in FAMILIES
    }
    paces = ledger["switch/pace"]["seconds_a_step"]
    cost = {family: median(a / b for a, b in zip(paces[family], paces["dit"], strict=True)) for family in FAMILIES}
    return {
        "sampling": {
            "look": LOOK,
            "seeds": [SAMPLING_SEED + s for s in SEEDS],
            "samples": [FIRST, NUM],
            "batch": BATCH,
        },
        "field": ledger["switch/field"],
        "trained": trained,
        "judged": judged_,
        "pace": ledger["switch/pace"],
        "seconds_a_step_to_dit": cost,
        "over_seeds": {
            figure: {family: {mark: over_seeds(judged_, family, mark, figure) for mark in MARKS} for family in FAMILIES}
            for figure in FIGURES
        },
        "at_the_end": {
            figure: {
                family: interval([judged_[f"{family}-{s}/{STEPS}"]["all"][figure]["value"] for s in SEEDS])
                for family in FAMILIES
            }
            for figure in FIGURES
        },
        "at_equal_iterations": {
            f"{a} against {b}": {mark: against(curves[a], curves[b], mark, mark) for mark in MARKS} for a, b in PAIRS
        },
        "at_equal_time": {
            f"{a} against {b}": against(
                curves[a], curves[b], STEPS * min(1, cost[b] / cost[a]), STEPS * min(1, cost[a] / cost[b])
            )
            for a, b in PAIRS
        },
        "iterations_to_reach": {f"{a} to {b}": reaching(curves[a], curves[b]) for a, b in PAIRS},
    }


PAIRS: tuple[tuple[Family, Family], ...] = (("switch_dit", "dit"), ("switch_dit", "dtr"), ("dtr", "dit"))
Curve = dict[int, float]


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over training seeds, with Student's 95 % interval, and every value."""
    score = repeated([Score(v, np.zeros(0)) for v in values])
    half = score.half_width if len(values) > 1 else None
    return {"mean": score.value, "half_width": half, "values": list(values)}


def over_seeds(judged_: Mapping[str, Any], family: str, mark: int, figure: str) -> dict[str, Any]:
    return interval([judged_[f"{family}-{seed}/{mark}"][figure]["value"] for seed in SEEDS])


def against(mine: Mapping[int, Curve], other: Mapping[int, Curve], at_mine: float, at_other: float) -> dict[str, Any]:
    """Mean distance of one family after so many iterations less that of another, relative too: over seeds, in pairs,
    for the order of the data and the sampling noise of a seed are the same."""
    pairs = [(value_at(mine[seed], at_mine), value_at(other[seed], at_other)) for seed in SEEDS]
    gap, ratio = interval([a - b for a, b in pairs]), interval([a / b for a, b in pairs])
    unpaired = compared(*(repeated([Score(v, np.zeros(0)) for v in side]) for side in zip(*pairs, strict=True)))
    return {"gap": gap, "ratio": ratio, "unpaired": {"half_width": unpaired.half_width, "said": unpaired.said}}


def value_at(curve: Curve, step: float) -> float:
    """The distance after so many iterations: between judged checkpoints its logarithm is taken to be linear."""
    steps = sorted(curve)
    return float(np.exp(np.interp(step, steps, np.log([curve[s] for s in steps]))))


def reaching(mine: Mapping[int, Curve], other: Mapping[int, Curve]) -> dict[str, Any]:
    """The share of the other's iterations at which the distance is its final one, by seed; null where it never is."""
    shares = [reached(mine[seed], other[seed][STEPS]) for seed in SEEDS]
    whole = [s / MARKS[-1] for s in shares if s is not None]
    return interval(whole) if len(whole) == len(SEEDS) else {"mean": None, "values": shares}


def reached(curve: Curve, distance: float) -> float | None:
    """The first iteration at which a curve comes down to a distance, log-linear between judged checkpoints; no earlier
    one than the first of those."""
    steps = sorted(curve)
    if curve[steps[0]] <= distance:
        return float(steps[0])
    for left, right in pairwise(steps):
        if curve[right] <= distance < curve[left]:
            part = np.log(curve[left] / distance) / np.log(curve[left] / curve[right])
            return left + float(part) * (right - left)
    return None
