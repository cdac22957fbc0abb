"""C. Both papers together, and what neither has.

Switch-DiT as the large member, a searched plan, members of two noise processes, a seam for each sample, and the small
member as the guide of the large one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import hemstitch as hs
from hemstitch import Plan
from hemstitch.denoiser import Denoiser, Prediction
from hemstitch.evaluate.features import moments_of
from hemstitch.identity import identity
from hemstitch.models.config import Family
from hemstitch.recipe import Recipe
from hemstitch.stitch.search.cost import Costs
from hemstitch.stitch.search.per_sample import compare
from hemstitch.stitch.search.probes import Priced, fewer_steps, smallest_fraction

from . import stitching, switch
from .families import SEEDS, gap, interval
from .fields import BATCH, Field, classes, distance_of, fashion, sampled_rows, told
from .networks import at, marked, training, transformer
from .stitching import CLOSE, FEW, FIFTHS, SEED, TENTHS, Look, Pair, fractions
from .work import Ledger, Result, Task

BUDGETS = (0.3, 0.5, 0.7, 0.9)
GUIDES = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
SEAMS = (0.4, 0.6, 0.8)  # fractions beside which each sample has a seam of its own
SHORT = Look(steps=25)
CHOSEN_BY, JUDGED = FEW, 2 * FEW  # samples by which thresholds and scales are chosen, and others that judge them
LARGE: tuple[Family, ...] = ("dit", "switch_dit")
FOUND = (BUDGETS, stitching.NUM)
SEARCHED = 1000  # samples of a search: half to choose by, half to be sure


def flow(field: Field) -> Recipe:
    """As large as part A's and trained for as long, by flow matching."""
    times = {"times": "lognormal", "time_mean": 0.0, "time_std": 1.0}
    return transformer(field, "beyond-flow", schedule="flow", prediction="flow", **times, steps=switch.STEPS)


def small_eps(field: Field) -> Recipe:
    """As small as part B's and trained for as long, but as DiT is: it predicts eps, and its betas are linear."""
    name, steps = "beyond-small-eps", stitching.small(field).train.steps
    return transformer(field, name, width=48, depth=2, schedule="linear", prediction="eps", steps=steps)


@final
class Autoguided(Denoiser):
    """A model guided by a worse one of the same data: guide + w (model - guide) (Karras et al. 2024, eq. 4).

    Both are asked with the labels. They share their process and spec.
    """

    def __init__(self, model: Denoiser, guide: Denoiser, scale: float) -> None:
        if model.process != guide.process or model.spec != guide.spec:
            raise hs.HemstitchError("a model and its guide denoise the same space under one process")
        self.model, self.guide, self.scale = model, guide, scale
        self.process, self.spec = model.process, model.spec

    @property
    def identity(self) -> str:
        return f"{identity(self.model)} guided by {identity(self.guide)}, {self.scale}"

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, member: Tensor | None = None) -> Prediction:
        good, bad = self.model(x, t, cond), self.guide(x, t, cond)
        return Prediction(torch.lerp(bad.x0, good.x0, self.scale), torch.lerp(bad.eps, good.eps, self.scale))


def tasks(folder: Path) -> list[Task]:
    field, runs, kept = fashion(folder), folder / "runs", folder / "samples" / "beyond"
    ledger = Ledger(folder / "results")
    recipes = {"small": stitching.small(field), "small eps": small_eps(field), "flow": flow(field)}
    made_by = {
        "small": "stitching/trained/small",
        "small eps": "beyond/trained/small eps",
        "flow": "beyond/trained/flow",
    }
    larges: list[tuple[Family, int]] = [(family, seed) for seed in SEEDS for family in LARGE]
    for family, seed in larges:
        recipes[f"{family}-{seed}"] = switch.recipe(field, family, seed)
        made_by[f"{family}-{seed}"] = f"switch/trained/{family}-{seed}"

    def load(small: str, large: str) -> Callable[[], dict[str, Denoiser]]:
        chosen = {"small": recipes[small], "large": recipes[large]}
        return lambda: {name: at(runs / r.name, r.train.steps) for name, r in chosen.items()}

    def pair(small: str, large: str) -> Pair:
        return Pair(field, kept, load(small, large))

    def task(name: str, do: Callable[[], Result], small: str, large: str, *also: str, of: object = None) -> Task:
        needs = ("switch/field", made_by[small], made_by[large], *also)
        common = (field.settings, marked(recipes[small]), marked(recipes[large]), SEED, BATCH)
        return Task(f"beyond/{name}", do, needs, (*common, of))

    def table(name: str, small: str, large: str, look: Look, closer: int = 0) -> Task:
        plans, kept_in = fractions(FIFTHS, look.steps), name.replace("/", "-")
        do = partial(pair(small, large).table, kept_in, plans, look, closer)
        return task(name, do, small, large, of=(FIFTHS, look, closer))

    one = ("small", "dit-0")
    plain = pair(*one)
    shared = Pair(field, folder / "samples" / "stitching", load(*one))
    guides = partial(guided, field, load(*one), folder / "features" / "guided")
    return [
        *(training(made_by[key], recipes[key], runs) for key in ("small eps", "flow")),
        *(
            table(f"large/{family}-{seed}", "small", f"{family}-{seed}", replace(SHORT, first=seed * FEW))
            for family, seed in larges  # other samples for every training seed
        ),
        table("two processes", "small eps", "flow", SHORT, CLOSE),
        task("searched", lambda: searched(field, load(*one), folder / "search"), *one, of=(BUDGETS, SEARCHED)),
        task("found", lambda: found(shared, ledger), *one, "beyond/searched", "stitching/fractions", of=FOUND),
        task(
            "per sample",
            lambda: per_sample(plain, ledger),
            *one,
            "stitching/costs",
            of=(SEAMS, SHORT, CHOSEN_BY, JUDGED),
        ),
        task("guided", guides, *one, of=(GUIDES, SHORT, CHOSEN_BY, JUDGED)),
    ]


def searched(field: Field, load: Callable[[], dict[str, Denoiser]], out: Path) -> Result:
    """Plans for some budgets, found as a reader would: `hs.search` with its defaults but for the samples."""
    answer = hs.search(
        load(),
        BUDGETS,
        steps=stitching.STEPS,
        guidance=1.5,
        reference=moments_of(field.pictures, field.extractor),
        extractor=field.extractor,
        batch=BATCH,
        samples=SEARCHED,
        out=out,
    )
    return {
        "seconds": answer.seconds,
        "images_of_the_largest": answer.images,
        "costs": answer.costs.to_data(),
        "notes": list(answer.notes),
        "results": [{"budget": r.budget, "plan": json.loads(r.found.plan.to_json())} for r in answer.results],
    }


def priced(costs: Mapping[str, Any], steps: int) -> Priced:
    return Priced(Costs.from_data(costs), ("small", "large"), steps, lambda count, last: (True,) * count, 1)


def found(pair: Pair, ledger: Ledger) -> Result:
    """The plans found, beside every tenth, the plain fraction that fills each budget, and the large member alone at as
    many steps. Of each budget the best fraction and the best number of steps that fit it are chosen by these samples,
    and the found plan is held against them on others, which chose nothing. Shares of the time are by the costs that the
    search went by."""
    result = ledger["beyond/searched"]
    cost, mine = priced(result["costs"], stitching.STEPS), {}
    for one in result["results"]:
        mine[f"{one['budget']:g}"] = Plan.from_data(one["plan"])
    rivals = {f"fraction {r}": plan for r, plan in fractions(TENTHS, stitching.STEPS).items()}
    for budget in BUDGETS:
        if (plan := smallest_fraction(cost, "small", budget)) is not None:
            rivals[f"fraction {plan.counts.get('small', 0) / plan.steps:g}"] = plan
        if (plan := fewer_steps(cost, budget)) is not None:
            rivals[f"{plan.steps} steps"] = plan
    plans = {f"found {budget}": plan for budget, plan in mine.items()} | rivals
    look = Look(num=stitching.NUM)
    told_ = pair.table("fractions", plans, look)
    for key, plan in plans.items():
        told_["plans"][key]["share"] = cost.share(cost.candidate(plan))
    chosen: dict[str, dict[str, str]] = {}
    for budget in mine:
        fit = [key for key in rivals if told_["plans"][key]["share"] <= float(budget) + 1e-9]
        kinds = {"fraction": [k for k in fit if k[0] == "f"], "steps": [k for k in fit if k[0] != "f"]}
        best = {kind: min(keys, key=lambda k: _value(told_["plans"][k])) for kind, keys in kinds.items() if keys}
        chosen[f"found {budget}"] = best
    held = {key: plans[key] for mark, best in chosen.items() for key in (mark, *best.values())}
    again = pair.table("fractions", held, replace(look, first=look.num))["plans"]
    for mark, best in chosen.items():
        told_["plans"][mark]["again"] = again[mark]
        for kind, key in best.items():
            against = stitching.beside(distance_of(again[mark]), distance_of(again[key]))
            told_["plans"][mark][f"to_best_{kind}"] = {"best": key, "distance": again[key]["distance"], **against}
    return told_


def per_sample(pair: Pair, ledger: Ledger) -> Result:
    """A seam for each sample at about the mean seam of a fraction, calibrated on other samples than it is judged by."""
    cost = priced(ledger["stitching/costs"]["costs"], SHORT.steps)
    chosen_by, judged_by = (replace(SHORT, num=n, first=k).chunks for n, k in ((CHOSEN_BY, 0), (JUDGED, CHOSEN_BY)))
    store = pair.store("per-sample", pair.load(), replace(SHORT, num=CHOSEN_BY + JUDGED))
    told_ = {}
    for key, plan in fractions(SEAMS, SHORT.steps).items():
        for chunk in judged_by:
            store.sample([cost.candidate(plan)], chunk)
        told_[key] = compare(store, cost, cost.candidate(plan), chosen_by, judged_by).to_data()
    return {"chosen_by": CHOSEN_BY, "samples": JUDGED, "fractions": told_}


def guided(field: Field, load: Callable[[], dict[str, Denoiser]], kept: Path) -> Result:
    """The large member alone, under classifier-free guidance, and guided by the small one; of both guides the scale
    that was best on other samples."""
    members, num = load(), CHOSEN_BY + JUDGED
    large, labels = members["large"], classes(num, field.shape[2])
    models: dict[str, tuple[Denoiser, float]] = {"alone": (large, 1.0)}
    models |= {f"null label, {w:g}": (large, w) for w in GUIDES}
    models |= {f"small member, {w:g}": (Autoguided(large, members["small"], w), 1.0) for w in GUIDES}
    chosen_by, scores = {}, {}
    for name, (model, scale) in models.items():
        look: dict[str, Any] = {"steps": SHORT.steps, "sampler": SHORT.sampler, "guidance": scale}
        rows = sampled_rows(field, model, num, kept / name, SEED, **look)
        chosen_by[name] = field.scores(rows[:CHOSEN_BY], labels[:CHOSEN_BY])["distance"].value
        scores[name] = field.scores(rows[CHOSEN_BY:], labels[CHOSEN_BY:])
    best = {
        kind: min((name for name in models if name.startswith(kind)), key=lambda name: chosen_by[name])
        for kind in ("null label", "small member")
    }
    return {
        "look": vars(SHORT) | {"guidance": "by row", "num": JUDGED, "first": CHOSEN_BY, "seed": SEED, "batch": BATCH},
        "models": {
            name: {figure: told(score) for figure, score in of.items()} | {"chosen_by": chosen_by[name]}
            for name, of in scores.items()
        },
        "best": best,
        "small_to_null": stitching.beside(*(scores[best[kind]]["distance"] for kind in ("small member", "null label"))),
    }


def summary(ledger: Ledger) -> dict[str, Any]:
    """All results; Switch-DiT as the large member beside DiT, over training seeds; and what a step takes under each
    kind of guidance, of one without."""
    results = ledger.all("beyond")
    by_family = {
        family: {
            f"{r:g}": [_value(results[f"large/{family}-{seed}"]["plans"][f"{r:g}"]) for seed in SEEDS] for r in FIFTHS
        }
        for family in LARGE
    }
    results["large members"] = {
        family: {r: interval(values) for r, values in by.items()} for family, by in by_family.items()
    }
    # The small member alone is in both the same.
    results["switch to dit"] = {
        r: gap(values, by_family["dit"][r]) for r, values in by_family["switch_dit"].items() if r != "1"
    }
    costs = Costs.from_data(ledger["stitching/costs"]["costs"])
    alone = costs.ms("large")
    results["guided"]["time"] = {
        "null label": costs.ms("large", True) / alone,
        "small member": 1 + costs.ms("small") / alone,
    }
    return results


def _value(row: Mapping[str, Any]) -> float:
    value: float = row["distance"]["value"]
    return value
