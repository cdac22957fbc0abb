"""B. T-Stitch on diffusion transformers of Fashion-MNIST: small first, large after, and everything around it.

The large member is the DiT of part A, seed 0; the small and the middle one are narrower and shallower, in about the
proportions of DiT-S and DiT-B to DiT-XL. Every plan of a table has the same seeds and labels, so that plans compare as
pairs; what plans have in common at their start is sampled once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import hemstitch as hs
from hemstitch import Plan
from hemstitch.denoiser import Denoiser
from hemstitch.evaluate.score import Score, compared
from hemstitch.identity import identity
from hemstitch.recipe import Recipe
from hemstitch.samplers import SAMPLERS
from hemstitch.stitch.orders import ORDERS, ordered
from hemstitch.stitch.search.cost import Costs, measure_costs
from hemstitch.stitch.search.store import Store, key_of
from hemstitch.stitch.search.trunk import Candidate, Ground

from . import switch
from .fields import BATCH, Field, classes, fashion, of, told
from .networks import at, train, transformer
from .work import Ledger, Result, Task

STEPS = 50
TENTHS = tuple(i / 10 for i in range(11))
FIFTHS = tuple(i / 5 for i in range(6))
NUM, FEW = 16 * BATCH, 8 * BATCH  # samples of a plan: in the table, and in what surrounds it
SEED = 2000


@dataclass(frozen=True)
class Look:
    """How the plans of one table are sampled. num: samples, whole batches."""

    steps: int = STEPS
    sampler: str = "ddim"
    guidance: float = 1.5
    num: int = FEW


def small(field: Field) -> Recipe:
    return transformer(field, "stitching-small", width=48, depth=2, steps=16_000)


def middle(field: Field) -> Recipe:
    return transformer(field, "stitching-middle", width=96, depth=3, steps=8_000)


@dataclass(frozen=True)
class Pair:
    """Members by rising size, and where their samples are kept."""

    field: Field
    kept: Path
    load: Callable[[], dict[str, Denoiser]]

    def table(self, name: str, plans: Mapping[str, Plan], look: Look) -> Result:
        """Every plan judged; what a plan's distance is to that of the largest member alone, if that is among them."""
        scores = self.scores(name, plans, look)
        largest = list(self.load())[-1]
        alone = next((s["distance"] for key, s in scores.items() if plans[key].counts == {largest: look.steps}), None)
        return {
            "look": vars(look),
            "plans": {
                key: {
                    "plan": str(plans[key]),
                    **{figure: told(score) for figure, score in scores[key].items()},
                    **({} if alone is None else {"to_largest": beside(scores[key]["distance"], alone)}),
                    "draws": scores[key]["distance"].draws.tolist(),
                }
                for key in plans
            },
        }

    def scores(self, name: str, plans: Mapping[str, Plan], look: Look) -> dict[str, dict[str, Score]]:
        """Sampled where they were not yet, and judged."""
        store = self.store(name, self.load(), look)
        marks = {key: _candidate(plan, look) for key, plan in plans.items()}
        for chunk in range(look.num // BATCH):
            store.sample([*dict.fromkeys(marks.values())], chunk)
        labels = self.labels(look)
        return {key: self.field.scores(_rows(store, mark, look), labels) for key, mark in marks.items()}

    def labels(self, look: Look) -> torch.Tensor:
        """(N,) the classes of the samples of a table."""
        return classes(look.num, self.field.shape[2])

    def store(self, name: str, members: dict[str, Denoiser], look: Look) -> Store:
        ground = Ground(members, self.labels(look), SAMPLERS[look.sampler], look.guidance, seed=SEED, batch=BATCH)
        baseline = _candidate(Plan.steps_each({list(members)[-1]: look.steps}), look)
        told = {key: identity(member) for key, member in members.items()}
        kept = of(self.kept / name, told, self.field.judge.hash, replace(look, num=0), SEED, BATCH)
        return Store(ground, self.field.judge, baseline, kept)


def _candidate(plan: Plan, look: Look) -> Candidate:
    return Candidate(plan, (look.guidance != 1,) * plan.steps)


def _rows(store: Store, mark: Candidate, look: Look) -> torch.Tensor:
    return torch.cat([store.rows[key_of(mark), chunk] for chunk in range(look.num // BATCH)])


def beside(a: Score, b: Score) -> dict[str, Any]:
    """a less b, with the half width of its 95 % interval."""
    gap = compared(a, b)
    return {"gap": gap.gap, "half_width": gap.half_width, "said": gap.said}


def fractions(values: Sequence[float], steps: int) -> dict[str, Plan]:
    return {f"{r:g}": Plan.fractions({"small": r, "large": 1 - r}, steps) for r in values}


def shorter(costs: Costs, values: Sequence[float], steps: int, guided: bool) -> dict[str, Plan]:
    """The large member alone at as many steps as take the time of each fraction."""
    cost = {name: costs.ms(name, guided) for name in ("small", "large")}
    told: dict[str, Plan] = {}
    for r, plan in fractions(values, steps).items():
        count = round(sum(cost[name] * n for name, n in plan.counts.items()) / cost["large"])
        if 2 <= count < steps:
            told[f"{count} steps, as long as {r}"] = Plan.steps_each({"large": count})
    return told


def tasks(folder: Path) -> list[Task]:
    field, runs = fashion(folder), folder / "runs"
    large = switch.recipe(field, "dit", 0)
    found = [
        Task(f"stitching/trained/{name}", partial(train, recipe(field), runs / recipe(field).name))
        for name, recipe in (("small", small), ("middle", middle))
    ]

    def load(*names: str) -> Callable[[], dict[str, Denoiser]]:
        whole = {"small": small(field), "middle": middle(field), "large": large}
        return lambda: {name: at(runs / whole[name].name, whole[name].train.steps) for name in names}

    pair = Pair(field, folder / "samples" / "stitching", load("small", "large"))
    three = Pair(field, folder / "samples" / "stitching", load("small", "middle", "large"))
    needs = ("switch/field", "switch/trained/dit-0", "stitching/trained/small")

    def add(name: str, do: Callable[[], Result], *also: str) -> None:
        found.append(Task(f"stitching/{name}", do, (*needs, *also)))

    wide = Look(num=NUM)
    add("costs", lambda: costs(three.load()), "stitching/trained/middle")
    add("time", lambda: seconds(pair.load(), fractions(TENTHS, STEPS)))
    add("fractions", lambda: pair.table("fractions", fractions(TENTHS, STEPS), wide))
    ledger = Ledger(folder / "results")
    at_equal_time = lambda: shorter(Costs.from_data(ledger["stitching/costs"]["costs"]), TENTHS, STEPS, True)  # noqa: E731
    add("fewer steps", lambda: pair.table("fractions", at_equal_time(), wide), "stitching/costs")
    add("orders", lambda: pair.table("fractions", orders(STEPS), wide))
    add("three members", lambda: three.table("three", mixes(STEPS), wide), "stitching/trained/middle")
    for steps, values in ((10, FIFTHS), (25, FIFTHS), (100, FIFTHS), (250, (0.0, 0.4))):
        plans, look = fractions(values, steps), Look(steps=steps)
        add(f"steps/{steps}", partial(pair.table, f"steps-{steps}", plans, look))
    for sampler, steps in (("ddpm", 50), ("dpmpp_2m", 20), ("ddim", 20), ("heun", 10)):
        plans, look = fractions(FIFTHS, steps), Look(steps, sampler)
        add(f"samplers/{sampler} {steps}", partial(pair.table, f"{sampler}-{steps}", plans, look))
    for scale in (1.0, 2.0, 4.0):
        plans, look = fractions(FIFTHS, 25), Look(25, guidance=scale)
        add(f"guidance/{scale:g}", partial(pair.table, f"guidance-{scale:g}", plans, look))
    return found


def orders(steps: int) -> dict[str, Plan]:
    """T-Stitch's Table 7: half of the steps each, in its four orders; the random one three times."""
    drawn = {
        f"{name}{f' {draw}' if name == 'decreasing' else ''}": ordered(name, "small", "large", steps, 0.5, draw)
        for name in ORDERS
        for draw in range(3 if name == "decreasing" else 1)
    }
    return {"large alone": Plan.steps_each({"large": steps})} | drawn


def mixes(steps: int) -> dict[str, Plan]:
    """Each member alone, and small, middle, large in shares of fifths, each of them somewhere."""
    names = ("small", "middle", "large")
    alone = {name: Plan.steps_each({name: steps}) for name in names}
    shares = [(i / 5, j / 5, (5 - i - j) / 5) for i in range(1, 4) for j in range(1, 5 - i)]
    three = {
        ":".join(f"{100 * s:.0f}" for s in share): Plan.fractions(dict(zip(names, share, strict=True)), steps)
        for share in shares
    }
    return alone | three


def costs(members: dict[str, Denoiser]) -> Result:
    """What a solver step of each member takes, measured in turns."""
    return {"costs": measure_costs(members, batch=BATCH, guided=[False, True], seconds=60.0).to_data()}


def seconds(members: dict[str, Denoiser], plans: Mapping[str, Plan], rounds: int = 5, batch: int = 32) -> Result:
    """Seconds per image of whole runs by round, plans in turns: ratios within a round are of neighbours in time."""
    labels = classes(batch).tolist()
    taken: dict[str, list[float]] = {key: [] for key in plans}
    for turn in range(rounds + 1):
        for key, plan in plans.items():
            began = time.perf_counter()
            hs.generate(hs.Stitched(members, plan), labels, guidance=1.5, seeds=range(batch))
            if turn:  # the first is warm-up
                taken[key].append((time.perf_counter() - began) / batch)
    return {"seconds_per_image": taken}


def speed(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """By fraction: how many times as fast as the large member alone, and the share of what it would be if stitching
    cost nothing; medians over rounds of ratios within a round."""
    told = {}
    for key, mine in times.items():
        ideal = [
            (1 - float(key)) * large + float(key) * small for large, small in zip(times["0"], times["1"], strict=True)
        ]
        told[key] = {
            "times": median(a / b for a, b in zip(times["0"], mine, strict=True)),
            "of_ideal": median(a / b for a, b in zip(ideal, mine, strict=True)),
        }
    return told


def summary(ledger: Ledger) -> dict[str, Any]:
    """All tables; without the draws, which serve comparisons."""
    found = ledger.all("stitching")
    for result in found.values():
        for plan in result.get("plans", {}).values():
            plan.pop("draws")
    if "time" in found:
        found["time"]["speed"] = speed(found["time"]["seconds_per_image"])
    return found
