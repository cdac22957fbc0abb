"""B. T-Stitch on diffusion transformers of Fashion-MNIST: small first, large after, and everything around it.

The large member is the DiT of part A, seed 0; the small and the middle one are narrower and shallower, in about the
proportions of DiT-S and DiT-B to DiT-XL. Every plan of a table has the same seeds and labels, so that plans compare as
pairs; what plans have in common at their start is sampled once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from .fields import BATCH, Field, classes, distance_of, draws, fashion, of, told
from .networks import at, marked, training, transformer
from .work import Ledger, Result, Task

STEPS = 50
TENTHS = tuple(i / 10 for i in range(11))
FIFTHS = tuple(i / 5 for i in range(6))
NUM, FEW = 16 * BATCH, 8 * BATCH  # samples of a plan: in the table, and in what surrounds it
SEED = 2000
AROUND = 0.4  # the fraction that the large member alone is held against wherever a setting is another
CLOSE, CLOSER = 20 * BATCH, 40 * BATCH  # samples by which it is held against: around the table, and in it


@dataclass(frozen=True)
class Look:
    """How the plans of one table are sampled. num, first: how many samples, and from which on; whole batches."""

    steps: int = STEPS
    sampler: str = "ddim"
    guidance: float = 1.5
    num: int = FEW
    first: int = 0

    @property
    def chunks(self) -> range:
        return range(self.first // BATCH, (self.first + self.num) // BATCH)


def small(field: Field) -> Recipe:
    return transformer(field, "stitching-small", width=48, depth=2, steps=12_000)


def middle(field: Field) -> Recipe:
    return transformer(field, "stitching-middle", width=96, depth=3, steps=6_000)


@dataclass(frozen=True)
class Pair:
    """Members by rising size, and where their samples are kept."""

    field: Field
    kept: Path
    load: Callable[[], dict[str, Denoiser]]

    def table(self, name: str, plans: Mapping[str, Plan], look: Look, closer: int = 0) -> Result:
        """Every plan judged; what a plan's distance is to that of the largest member alone, if that is among them.

        closer: samples by which the fraction `AROUND` is held against the largest member alone once more.
        """
        scores = self.scores(name, plans, look)
        largest = list(self.load())[-1]
        alone = next((s["distance"] for key, s in scores.items() if plans[key].counts == {largest: look.steps}), None)
        looked = {}
        if closer:
            two = {key: plans[key] for key in ("0", f"{AROUND:g}")}
            whole, mixed = (s["distance"] for s in self.scores(name, two, replace(look, num=closer)).values())
            looked = {"closer": {"samples": closer, "whole": told(whole), "mixed": told(mixed), **beside(mixed, whole)}}
        return looked | {
            "look": vars(look) | {"seed": SEED, "batch": BATCH},
            "plans": {
                key: {
                    "plan": json.loads(plans[key].to_json()),
                    **{figure: told(score) for figure, score in scores[key].items()},
                    **({} if alone is None else {"to_largest": beside(scores[key]["distance"], alone)}),
                    "draws": draws(scores[key]["distance"]),
                }
                for key in plans
            },
        }

    def scores(self, name: str, plans: Mapping[str, Plan], look: Look) -> dict[str, dict[str, Score]]:
        """Sampled where they were not yet, and judged."""
        store = self.store(name, self.load(), look)
        marks = {key: _candidate(plan, look) for key, plan in plans.items()}
        for chunk in look.chunks:
            store.sample([*dict.fromkeys(marks.values())], chunk)
        labels = self.labels(look)[look.first :]
        return {key: self.field.scores(_rows(store, mark, look), labels) for key, mark in marks.items()}

    def labels(self, look: Look) -> torch.Tensor:
        """(N,) the classes of the samples of a table, and of those before them."""
        return classes(look.first + look.num, self.field.shape[2])

    def store(self, name: str, members: dict[str, Denoiser], look: Look) -> Store:
        ground = Ground(members, self.labels(look), SAMPLERS[look.sampler], look.guidance, seed=SEED, batch=BATCH)
        baseline = _candidate(Plan.steps_each({list(members)[-1]: look.steps}), look)
        told = {key: identity(member) for key, member in members.items()}
        kept = of(self.kept / name, told, self.field.judge.hash, replace(look, num=0, first=0), SEED, BATCH)
        return Store(ground, self.field.judge, baseline, kept)


def _candidate(plan: Plan, look: Look) -> Candidate:
    return Candidate(plan, (look.guidance != 1,) * plan.steps)


def _rows(store: Store, mark: Candidate, look: Look) -> torch.Tensor:
    return torch.cat([store.rows[key_of(mark), chunk] for chunk in look.chunks])


def beside(a: Score, b: Score) -> dict[str, Any]:
    """a less b, with the half width of its 95 % interval."""
    gap = compared(a, b)
    return {"gap": gap.gap, "half_width": gap.half_width, "said": gap.said}


def fractions(values: Sequence[float], steps: int) -> dict[str, Plan]:
    return {f"{r:g}": Plan.fractions({"small": r, "large": 1 - r}, steps) for r in values}


def shorter(costs: Costs, values: Sequence[float], look: Look) -> dict[str, Plan]:
    """The large member alone at the fewest steps that take at least as long as each fraction, by what steps cost: in
    doubt, it has a little more time."""
    guided, evaluations = look.guidance != 1, SAMPLERS[look.sampler].evaluations
    alone = {n: Plan.steps_each({"large": n}) for n in range(2, look.steps)}
    cost = {n: costs.of(plan, guided, evaluations) for n, plan in alone.items()}
    told: dict[str, Plan] = {}
    for r, plan in fractions(values, look.steps).items():
        whole = costs.of(plan, guided, evaluations)
        if plan.counts.keys() == {"small", "large"}:
            count = next((n for n in alone if cost[n] >= whole * (1 - 1e-9)), None)
            if count is not None:  # none where all of the steps take less
                told[f"{count} steps, as long as {r}"] = alone[count]
    return told


def tasks(folder: Path) -> list[Task]:
    field, runs = fashion(folder), folder / "runs"
    recipes = {"small": small(field), "middle": middle(field), "large": switch.recipe(field, "dit", 0)}
    found = [training(f"stitching/trained/{name}", recipes[name], runs) for name in ("small", "middle")]

    def load(*names: str) -> Callable[[], dict[str, Denoiser]]:
        return lambda: {name: at(runs / recipes[name].name, recipes[name].train.steps) for name in names}

    pair = Pair(field, folder / "samples" / "stitching", load("small", "large"))
    three = Pair(field, folder / "samples" / "stitching", load("small", "middle", "large"))
    needs = ("switch/field", "switch/trained/dit-0", "stitching/trained/small")
    ledger, hashes = Ledger(folder / "results"), {name: marked(recipe) for name, recipe in recipes.items()}

    def add(name: str, do: Callable[[], Result], *also: str, of: object = None) -> None:
        found.append(Task(f"stitching/{name}", do, (*needs, *also), (field.settings, hashes, SEED, BATCH, of)))

    def as_long(values: Sequence[float], look: Look) -> dict[str, Plan]:
        return shorter(Costs.from_data(ledger["stitching/costs"]["costs"]), values, look)

    wide, tenths = Look(num=NUM), fractions(TENTHS, STEPS)
    add("costs", lambda: costs(three.load()), "stitching/trained/middle")
    add(
        "time",
        lambda: seconds(pair.load(), tenths | as_long(TENTHS, wide), wide),
        "stitching/costs",
        of=(tenths, ROUNDS),
    )
    add("fractions", lambda: pair.table("fractions", tenths, wide, CLOSER), of=(tenths, wide, CLOSER))
    # These share samples with the fractions, which are made once.
    fewer, shared = ("stitching/costs", "stitching/fractions"), "stitching/fractions"
    add("fewer steps", lambda: pair.table("fractions", as_long(TENTHS, wide), wide), *fewer, of=wide)
    add("orders", lambda: pair.table("fractions", orders(STEPS), wide), shared, of=(orders(STEPS), wide))
    add(
        "three members",
        lambda: three.table("three", mixes(STEPS), wide),
        "stitching/trained/middle",
        of=(mixes(STEPS), wide),
    )
    for name, look in settings():

        def table(name: str = name, look: Look = look) -> Result:
            plans = fractions(FIFTHS, look.steps) | as_long((AROUND,), look)
            return pair.table(name.replace("/", "-"), plans, look, CLOSE)

        add(name, table, "stitching/costs", of=(FIFTHS, AROUND, look, CLOSE))
    return found


def settings() -> list[tuple[str, Look]]:
    """What surrounds the table of fractions: other numbers of steps, samplers and guidance scales."""
    return [
        *((f"steps/{steps}", Look(steps)) for steps in (10, 25, 100, 250)),
        *(
            (f"samplers/{name} {steps}", Look(steps, name))
            for name, steps in (("ddpm", 50), ("dpmpp_2m", 20), ("ddim", 20), ("heun", 10))
        ),
        *((f"guidance/{scale:g}", Look(25, guidance=scale)) for scale in (1.0, 2.0, 3.0, 4.0)),
    ]


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


ROUNDS, TIMED = 5, BATCH  # of timing, and images at a time: as many as costs are of


def seconds(members: dict[str, Denoiser], plans: Mapping[str, Plan], look: Look) -> Result:
    """Seconds per image of whole runs by round, plans in turns: ratios within a round are of neighbours in time."""
    labels = classes(TIMED, next(iter(members.values())).spec.num_classes)
    told = {"sampler": look.sampler, "guidance": look.guidance}
    taken: dict[str, list[float]] = {key: [] for key in plans}
    for turn in range(ROUNDS + 1):
        for key, plan in plans.items():
            began = time.perf_counter()
            hs.generate(hs.Stitched(members, plan), labels, seeds=range(TIMED), **told)
            if turn:  # the first is warm-up
                taken[key].append((time.perf_counter() - began) / TIMED)
    return {"seconds_per_image": taken, "batch": TIMED}


def speed(times: Mapping[str, Sequence[float]], steps: int) -> dict[str, dict[str, float]]:
    """How many times as fast as the large member alone a plan is, with the least and the most of all rounds; and a
    fraction's share of what that would be if stitching cost nothing. Medians over rounds of ratios within a round."""
    told = {}
    for key, mine in times.items():
        ratios = [a / b for a, b in zip(times["0"], mine, strict=True)]
        told[key] = {"times": median(ratios), "least": min(ratios), "most": max(ratios)}
        if key in fractions(TENTHS, steps):
            r = fractions(TENTHS, steps)[key].counts.get("small", 0) / steps
            ideal = [(1 - r) * large + r * small for large, small in zip(times["0"], times["1"], strict=True)]
            told[key]["of_ideal"] = median(a / b for a, b in zip(ideal, mine, strict=True))
    return told


def at_equal_time(mixed: Mapping[str, Any], fewer: Mapping[str, Any]) -> dict[str, Any]:
    """By fraction: its distance less that of the large member at the steps that take as long, of the same samples."""
    found = {}
    for key, plan in fewer.items():
        fraction = key.rpartition(" ")[2]
        found[fraction] = {"fewer": key, **beside(distance_of(mixed[fraction]), distance_of(plan))}
    return found


def summary(ledger: Ledger) -> dict[str, Any]:
    """All tables; guidance 1.5 at 25 steps is among the numbers of steps too."""
    found = ledger.all("stitching")
    found["guidance/1.5"] = found["steps/25"]
    found["fractions to fewer steps"] = at_equal_time(found["fractions"]["plans"], found["fewer steps"]["plans"])
    for name, _ in settings():
        plans = found[name]["plans"]
        found[name]["to_fewer_steps"] = at_equal_time(plans, {k: p for k, p in plans.items() if "as long as" in k})
    found["time"]["speed"] = speed(found["time"]["seconds_per_image"], STEPS)
    costs = Costs.from_data(found["costs"]["costs"])
    plans = found["three members"]["plans"]
    shorter_ = {int(key.partition(" ")[0]): plan for key, plan in found["fewer steps"]["plans"].items()}
    for row in plans.values():
        row["times"] = STEPS * costs.ms("large", True) / costs.of(Plan.from_data(row["plan"]), True, 1)
        row["to_middle"] = beside(distance_of(row), distance_of(plans["middle"]))
        steps = max((n for n in shorter_ if STEPS / n >= row["times"]), default=None)
        if steps is not None and Plan.from_data(row["plan"]).counts != {"large": STEPS}:
            row["fewer"] = f"{steps} steps"
            row["to_fewer_steps"] = beside(distance_of(row), distance_of(shorter_[steps]))
    return found
