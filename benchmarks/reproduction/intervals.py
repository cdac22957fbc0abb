"""B. T-Stitch's Table 6 and figure 2, on the transformers of `stitching`.

Table 6: members trained a little longer, each on the times at which the plan asks it, held against what they were and
against as many iterations on all times. Published, of DiT-S, B and XL at 50:30:20: FID 16.49 as trained, 13.35 on own
intervals, 16.04 on all timesteps. Here without guidance, so that it is the networks alone that are judged. Figure 2:
how alike the members' trajectories and answers are, and which frequencies of the image are in place, by step.

Each seed has its own fine-tuning and its own samples, which the three ways share: gaps are of pairs, and their spread
over the seeds holds what chance does to both, though not to the members' first training, which is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hemstitch as hs
from hemstitch import Plan
from hemstitch.analyze.agreement import Band
from hemstitch.analyze.findings import settled_from
from hemstitch.analyze.study import Samples, Study, study
from hemstitch.denoiser import Denoiser
from hemstitch.recipe import Recipe
from hemstitch.run import Run
from hemstitch.train.times import plan_intervals

from . import networks, stitching, switch
from .families import gap, interval
from .fields import BATCH, Field, classes, draws, fashion, judged, told
from .work import Ledger, Result, Task

STEPS = 50
PLANS = {
    "three": Plan.fractions({"small": 0.5, "middle": 0.3, "large": 0.2}, STEPS),
    "two": Plan.fractions({"small": 0.5, "large": 0.5}, STEPS),
}
WAYS = ("as trained", "own times", "all times")
GAPS = (("own times", "as trained"), ("all times", "as trained"), ("own times", "all times"))
ITERATIONS = 1_000
SEEDS = (0, 1, 2)
MADE_BY = {"small": "stitching/trained/small", "middle": "stitching/trained/middle", "large": "switch/trained/dit-0"}
TRAINING_SEED, SAMPLING_SEED = 100, 3_000  # of the first; no other seed of training or sampling comes near
LOOK: dict[str, Any] = {"sampler": "ddim"}
NUM = 40 * BATCH
GROUPS, GROUP = 10, 100  # of samples, of which each curve is drawn; their spread is its error
CURVE_SEED = 4_000


@dataclass(frozen=True)
class Trained:
    """A run and the task that makes it."""

    run: Path
    task: str


def recipes(field: Field) -> dict[str, Recipe]:
    """Of the members, as they were trained first."""
    return {
        "small": stitching.small(field),
        "middle": stitching.middle(field),
        "large": switch.recipe(field, "dit", 0),
    }


def tasks(folder: Path) -> list[Task]:
    field, runs = fashion(folder), folder / "runs"
    members = {name: Trained(runs / recipe.name, MADE_BY[name]) for name, recipe in recipes(field).items()}
    found = [
        task
        for seed in SEEDS
        for key in PLANS
        for way in WAYS
        for task in trial(field, folder, members, key, way, seed)
    ]
    needs = tuple(member.task for member in members.values())
    paths = {name: member.run for name, member in members.items()}
    of = ([networks.marked(recipe) for recipe in recipes(field).values()], GROUP, CURVE_SEED)
    found += [
        Task(f"intervals/curves/{group}", partial(curves, paths, group), needs, of, dtype="float32")
        for group in range(GROUPS)
    ]
    return list({task.name: task for task in found}.values())


def trial(field: Field, folder: Path, members: Mapping[str, Trained], key: str, way: str, seed: int) -> list[Task]:
    """Fine-tune the members of a plan in one way, and judge the plan. What two plans share is one task."""
    plan, found = PLANS[key], []
    base = recipes(field)
    mine = {name: members[name] for name in plan.counts}
    if way != "as trained":
        for name, before in list(mine.items()):
            what = piece(plan, name, way)
            after = Trained(folder / "runs" / f"intervals-{what}-{seed}", f"intervals/tuned/{what}/{seed}")
            do = partial(tune, before.run, after.run, plan if way == "own times" else None, name, seed)
            settings = (
                networks.marked(base[name]),
                plan if way == "own times" else None,
                ITERATIONS,
                TRAINING_SEED + seed,
            )
            found.append(Task(after.task, do, (before.task,), settings, networks.held(after.run, ITERATIONS)))
            mine[name] = after
    judged_as = f"intervals/judged/{key}/{way}/{seed}"
    paths = {name: member.run for name, member in mine.items()}
    do = partial(judge, field, paths, plan, folder / "features" / judged_as, seed)
    bases = [networks.marked(base[name]) for name in mine]
    settings = (field.settings, bases, plan, way, ITERATIONS, NUM, SAMPLING_SEED + seed)
    needs = ("switch/field", *(member.task for member in mine.values()))
    return [*found, Task(judged_as, do, needs, settings, dtype="float32")]


# Table 6


def piece(plan: Plan, member: str, way: str) -> str:
    """What a member is fine-tuned on, as a name: "large-40-50" is the times of its plan's steps 40 to 49."""
    first = plan.assignment.index(member)
    return f"{member}-all" if way == "all times" else f"{member}-{first}-{first + plan.counts[member]}"


def tuned(before: Recipe, init: Path, plan: Plan | None, member: str, seed: int) -> Recipe:
    """More iterations of the same training, from the averaged weights, on the times at which a plan asks the member.

    plan: None is all times.
    """
    own = plan_intervals(plan, member, before.process) if plan else ()
    changes = {"init": str(init), "intervals": own, "steps": ITERATIONS, "seed": TRAINING_SEED + seed, "keep": 1}
    return replace(before, name=f"intervals-{member}", train=replace(before.train, **changes))


def tune(run: Path, out: Path, plan: Plan | None, member: str, seed: int) -> Result:
    recipe = tuned(Run(run).recipe, run, plan, member, seed)
    return networks.train(recipe, out) | {"intervals": recipe.train.intervals}


def judge(field: Field, paths: Mapping[str, Path], plan: Plan, kept: Path, seed: int) -> Result:
    """Samples of the members under the plan, without guidance."""
    model = hs.Stitched(loaded(paths), plan)
    scores = judged(field, model, NUM, kept, SAMPLING_SEED + seed, LOOK)
    return {name: told(score) for name, score in scores.items()} | {"draws": draws(scores["distance"])}


def loaded(paths: Mapping[str, Path]) -> dict[str, Denoiser]:
    """In float32, as they were saved."""
    return {name: hs.load(path) for name, path in paths.items()}


# Figure 2


def curves(paths: Mapping[str, Path], group: int) -> Result:
    """The curves of one group of samples, by step; the last member is what the others are held against."""
    samples = Samples(GROUP, classes(GROUP), CURVE_SEED + group, batch=GROUP)
    for turn in study(loaded(paths), samples, steps=STEPS):
        found = turn.study
    assert found is not None  # the last turn has it
    return {"curves": numbers(found)}


def numbers(found: Study) -> dict[str, Any]:
    """What is drawn. latents have a value more than there are steps, of the finished images."""

    def band(of: Band) -> dict[str, list[float]]:
        return {"mean": rounded(of.mean), "low": rounded(of.low), "high": rounded(of.high)}

    def shares(which: str) -> dict[str, dict[str, list[float]]]:
        return {
            name: {part: rounded(share) for part, share in getattr(spectra, which).items()}
            for name, spectra in found.spectra.items()
        }

    return {
        "t": rounded(found.t),
        "latents": {name: band(of) for name, of in found.latents.items()},
        "eps": {name: {"cosine": band(of.cosine), "distance": band(of.distance)} for name, of in found.eps.items()},
        "x0": {name: {"cosine": band(of.cosine), "distance": band(of.distance)} for name, of in found.x0.items()},
        "power": shares("power"),
        "unsettled": shares("unsettled"),
    }


def rounded(values: torch.Tensor) -> list[float]:
    """Five digits each."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def over(groups: Sequence[Any]) -> Any:
    """Curves of groups of samples, nested alike, as one: the mean by step, and its standard error."""
    if isinstance(groups[0], Mapping):
        return {key: over([one[key] for one in groups]) for key in groups[0]}
    rows = np.array(groups)
    error = rows.std(0, ddof=1) / len(rows) ** 0.5
    return {"value": rows.mean(0).round(6).tolist(), "error": error.round(6).tolist()}


# What came out


def summary(ledger: Ledger) -> dict[str, Any]:
    """Table 6, and the curves."""
    judged_, groups = "intervals/judged", [ledger[f"intervals/curves/{group}"]["curves"] for group in range(GROUPS)]
    together = over(groups)
    settled = {
        name: {part: [settled_from(torch.tensor(one["unsettled"][name][part])) for one in groups] for part in parts}
        for name, parts in together["unsettled"].items()
    }
    return {
        "sampling": {
            "look": LOOK,
            "samples": NUM,
            "seeds": [SAMPLING_SEED + seed for seed in SEEDS],
            "training_seeds": [TRAINING_SEED + seed for seed in SEEDS],
            "curve_seeds": [CURVE_SEED + group for group in range(GROUPS)],
            "batch": BATCH,
        },
        "table": {
            key: row({w: [ledger[f"{judged_}/{key}/{w}/{seed}"] for seed in SEEDS] for w in WAYS}, plan)
            for key, plan in PLANS.items()
        },
        "curves": together | {"settled_by_group": settled, "groups": len(groups), "samples": GROUP * len(groups)},
        "results": ledger.all("intervals"),
    }


def row(by_way: Mapping[str, Sequence[Result]], plan: Plan) -> dict[str, Any]:
    """A plan's results by way of training and seed: means over the seeds, and the gaps between ways."""
    distances = {way: [result["distance"]["value"] for result in results] for way, results in by_way.items()}
    said: dict[str, Any] = {"plan": str(plan)}
    for way, results in by_way.items():
        figures = [figure for figure, of in results[0].items() if isinstance(of, dict) and "value" in of]
        said[way] = {figure: interval([result[figure]["value"] for result in results]) for figure in figures}
    said["gaps"] = {f"{a} less {b}": gap(distances[a], distances[b]) for a, b in GAPS}
    return said
