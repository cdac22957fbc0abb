"""DiT, DTR and Switch-DiT beside one another along training, seed by seed: what parts A and E have in common.

A seed means the same order of the data, the same times and noise in training, and the same samples' noise, whatever the
family: so differences are of pairs that share a seed. What they would be as of independent runs stands beside (Welch).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from hemstitch.evaluate.score import Score, compared, repeated
from hemstitch.models.config import Family
from hemstitch.recipe import Recipe
from hemstitch.train.fit import fit

from .work import Result, Stopped

FAMILIES: tuple[Family, ...] = get_args(Family)
PAIRS: tuple[tuple[Family, Family], ...] = (("switch_dit", "dit"), ("switch_dit", "dtr"), ("dtr", "dit"))
SEEDS = (0, 1, 2)
FIGURES = ("distance", "precision", "recall", "accuracy")
SOONER = 0.7  # of the iterations, in which Switch-DiT is to come to DiT's final distance
Curve = Mapping[int, float]  # distance by iterations


def pace(recipes: Mapping[Family, Recipe], folder: Path, rounds: int = 30, steps: int = 4) -> Result:
    """Seconds per training step by round, the families in turns, so that a slow spell of the machine falls on all.

    recipes: that log every step and have more steps than this takes.
    """
    loops = {
        family: fit(recipe, folder / f"{family}-{time.time_ns()}", device="cpu") for family, recipe in recipes.items()
    }
    taken: dict[str, list[float]] = {family: [] for family in loops}
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


# Over seeds


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over training seeds, with Student's 95 % interval (None of one seed), and every value."""
    score = repeated([Score(v, np.zeros(0)) for v in values])
    half = score.half_width if len(values) > 1 else None
    return {"mean": score.value, "half_width": half, "values": list(values)}


def gap(mine: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The mean of differences by seed, with Student's 95 % interval and what it says; the ratio likewise; and what may
    be said if the pairs were not pairs."""
    by_seed = [a - b for a, b in zip(mine, other, strict=True)]
    mean = repeated([Score(value, np.zeros(0)) for value in by_seed])
    paired = compared(mean, Score(0.0, np.zeros(2)))
    welch = compared(*(repeated([Score(value, np.zeros(0)) for value in side]) for side in (mine, other)))
    return {
        "gap": paired.gap,
        "half_width": paired.half_width,
        "said": paired.said,
        "by_seed": by_seed,
        "ratio": interval([a / b for a, b in zip(mine, other, strict=True)]),
        "welch": {"half_width": welch.half_width, "said": welch.said},
    }


# Along training


def along(
    judged: Mapping[str, Any], marks: Sequence[int], paces: Mapping[str, Sequence[float]], seeds: Sequence[int] = SEEDS
) -> dict[str, Any]:
    """All figures by mark; families beside one another at equal iterations and at equal time; and when one comes to the
    final distance of another.

    judged: results by "family-seed/mark". paces: of `pace`.
    """
    cost = {family: median(a / b for a, b in zip(paces[family], paces["dit"], strict=True)) for family in FAMILIES}
    curves = {
        family: [{mark: judged[f"{family}-{seed}/{mark}"]["distance"]["value"] for mark in marks} for seed in seeds]
        for family in FAMILIES
    }

    def beside(a: Family, b: Family, at_a: float, at_b: float) -> dict[str, Any]:
        return gap([value_at(curve, at_a) for curve in curves[a]], [value_at(curve, at_b) for curve in curves[b]])

    last = marks[-1]
    return {
        "seconds_a_step_to_dit": cost,
        "over_seeds": {
            figure: {
                family: {
                    mark: interval([judged[f"{family}-{seed}/{mark}"][figure]["value"] for seed in seeds])
                    for mark in marks
                }
                for family in FAMILIES
            }
            for figure in FIGURES
        },
        "at_equal_iterations": {f"{a} to {b}": {mark: beside(a, b, mark, mark) for mark in marks} for a, b in PAIRS},
        "at_equal_time": {
            f"{a} to {b}": beside(a, b, last * min(1, cost[b] / cost[a]), last * min(1, cost[a] / cost[b]))
            for a, b in PAIRS
        },
        "sooner": {f"{a} to {b}": beside(a, b, SOONER * last, last) for a, b in PAIRS},
        "share_to_reach": {
            f"{a} to {b}": over_reached([share_to_reach(x, y[last]) for x, y in zip(curves[a], curves[b], strict=True)])
            for a, b in PAIRS
        },
    }


def over_reached(shares: Sequence[float | None]) -> dict[str, Any]:
    """Shares of iterations by seed, with their interval if all of them got there."""
    there = [share for share in shares if share is not None]
    return interval(there) if len(there) == len(shares) else {"mean": None, "half_width": None, "values": list(shares)}


def value_at(curve: Curve, step: float) -> float:
    """The distance after so many iterations: a power of them between judged checkpoints."""
    steps = sorted(curve)
    return float(np.exp(np.interp(np.log(step), np.log(steps), np.log([curve[s] for s in steps]))))


def share_to_reach(curve: Curve, distance: float) -> float | None:
    """The share of all iterations after which a curve first comes down to a distance, as `value_at` has it between
    judged checkpoints; no earlier than the first of those. None where it never does."""
    steps = sorted(curve)
    if curve[steps[0]] <= distance:
        return steps[0] / steps[-1]
    for left, right in pairwise(steps):
        if curve[right] <= distance < curve[left]:
            part = np.log(curve[left] / distance) / np.log(curve[left] / curve[right])
            return left * (right / left) ** float(part) / steps[-1]
    return None


def recipes(make: Callable[[Family], Recipe]) -> dict[Family, Recipe]:
    return {family: make(family) for family in FAMILIES}
