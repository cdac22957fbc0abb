"""C. Both papers together, and what neither has.

Switch-DiT as the large member, a searched plan, members of two noise processes, a seam for each sample, and the small
member as the guide of the large one.
"""

from __future__ import annotations

from collections.abc import Callable
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
from hemstitch.recipe import Recipe
from hemstitch.stitch.search.cost import Costs
from hemstitch.stitch.search.per_sample import compare
from hemstitch.stitch.search.probes import Priced, fewer_steps

from . import stitching, switch
from .fields import BATCH, Field, classes, fashion, sampled_rows, told
from .networks import at, train, transformer
from .stitching import FIFTHS, SEED, TENTHS, Look, Pair, fractions
from .work import Ledger, Result, Task

BUDGETS = (0.3, 0.5, 0.7, 0.9)
GUIDES = (1.25, 1.5, 2.0, 3.0)
SHORT = Look(steps=25)


def flow(field: Field) -> Recipe:
    """As large as part A's, trained by flow matching."""
    return transformer(
        field,
        "beyond-flow",
        schedule="flow",
        prediction="flow",
        times="lognormal",
        time_mean=0.0,
        time_std=1.0,
        steps=8000,
    )


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
    recipes = {
        "small": stitching.small(field),
        "large": switch.recipe(field, "dit", 0),
        "switch": switch.recipe(field, "switch_dit", 0),
        "flow": flow(field),
    }

    def load(large: str) -> Callable[[], dict[str, Denoiser]]:
        chosen = {"small": recipes["small"], "large": recipes[large]}
        return lambda: {name: at(runs / r.name, r.train.steps) for name, r in chosen.items()}

    needs = ("switch/field", "switch/trained/dit-0", "stitching/trained/small")
    plain = Pair(field, kept, load("large"))
    wide = Pair(field, folder / "samples" / "stitching", load("large"))
    table = fractions(FIFTHS, SHORT.steps)
    return [
        Task("beyond/trained/flow", partial(train, recipes["flow"], runs / recipes["flow"].name)),
        Task(
            "beyond/switch as large",
            lambda: Pair(field, kept, load("switch")).table("switch", table, SHORT),
            (*needs, "switch/trained/switch_dit-0"),
        ),
        Task(
            "beyond/two processes",
            lambda: Pair(field, kept, load("flow")).table("flow", table, SHORT),
            (*needs, "beyond/trained/flow"),
        ),
        Task("beyond/one process", lambda: plain.table("eps", table, SHORT), needs),
        Task("beyond/searched", lambda: searched(field, load("large"), folder / "search"), needs),
        Task(
            "beyond/found",
            lambda: found(wide, ledger),
            (*needs, "beyond/searched", "stitching/fractions", "stitching/costs"),
        ),
        Task("beyond/per sample", lambda: per_sample(plain, ledger), (*needs, "stitching/costs")),
        Task("beyond/guide", lambda: guided(field, load("large")(), folder / "features" / "beyond"), needs),
    ]


def searched(field: Field, load: Callable[[], dict[str, Denoiser]], out: Path) -> Result:
    """Plans for some budgets, found as a reader would: `hs.search` with its defaults but for the samples."""
    reference = moments_of(field.pictures, field.extractor)
    answer = hs.search(
        load(),
        BUDGETS,
        steps=stitching.STEPS,
        guidance=1.5,
        reference=reference,
        extractor=field.extractor,
        batch=BATCH,
        samples=1000,
        out=out,
    )
    return {
        "seconds": answer.seconds,
        "images_of_the_largest": answer.images,
        "results": [{"budget": r.budget, "plan": list(r.found.plan.assignment)} for r in answer.results],
    }


def priced(ledger: Ledger, steps: int, guidance: bool) -> Priced:
    costs = Costs.from_data(ledger["stitching/costs"]["costs"])
    return Priced(costs, ("small", "large"), steps, lambda count, last: (guidance,) * count, 1)


def found(pair: Pair, ledger: Ledger) -> Result:
    """The plans found, sampled afresh beside every tenth and the large member alone at fewer steps; of each budget the
    gap to the best of those that fit it."""
    cost = priced(ledger, stitching.STEPS, True)
    mine = {b: Plan.explicit(r["plan"]) for r in ledger["beyond/searched"]["results"] for b in [f"{r['budget']:g}"]}
    rivals = {f"fraction {key}": plan for key, plan in fractions(TENTHS, stitching.STEPS).items()}
    rivals |= {f"{p.steps} steps": p for b in BUDGETS if (p := fewer_steps(cost, b)) is not None}
    plans = {f"found {b}": plan for b, plan in mine.items()} | rivals
    result = pair.table("fractions", plans, Look(num=stitching.NUM))
    for key, plan in plans.items():
        result["plans"][key]["share"] = cost.share(cost.candidate(plan))
    scores = {k: s["distance"] for k, s in pair.scores("fractions", plans, Look(num=stitching.NUM)).items()}
    for b in mine:
        fit = [k for k in rivals if k.startswith("fraction") and result["plans"][k]["share"] <= float(b) + 1e-9]
        best = min(fit, key=lambda k: scores[k].value) if fit else None
        if best is not None:
            result["plans"][f"found {b}"] |= {
                "best_fraction": best,
                "to_best_fraction": stitching.beside(scores[f"found {b}"], scores[best]),
            }
    return result


def per_sample(pair: Pair, ledger: Ledger) -> Result:
    """A seam for each sample at about the mean seam of a fraction, calibrated on other samples than it is judged by."""
    cost = priced(ledger, SHORT.steps, True)
    told_ = {}
    for key, plan in fractions((0.4, 0.6, 0.8), SHORT.steps).items():
        look = Look(SHORT.steps, num=2 * SHORT.num)
        store = pair.store("per-sample", pair.load(), look)
        chunks = look.num // BATCH
        chosen_by, judged_by = range(chunks // 2), range(chunks // 2, chunks)
        for chunk in judged_by:
            store.sample([cost.candidate(plan)], chunk)
        told_[key] = compare(store, cost, cost.candidate(plan), chosen_by, judged_by).to_data()
    return {"samples": SHORT.num, "fractions": told_}


def guided(field: Field, members: dict[str, Denoiser], kept: Path) -> Result:
    """The large member alone, under classifier-free guidance, and guided by the small one."""
    large, labels = members["large"], classes(SHORT.num)
    models: dict[str, tuple[Denoiser, float]] = {"alone": (large, 1.0)}
    models |= {f"null label, {w:g}": (large, w) for w in GUIDES}
    models |= {f"small member, {w:g}": (Autoguided(large, members["small"], w), 1.0) for w in GUIDES}
    scores = {}
    for name, (model, scale) in models.items():
        look: dict[str, Any] = {"steps": SHORT.steps, "sampler": SHORT.sampler, "guidance": scale}
        rows = sampled_rows(field, model, SHORT.num, kept / name, SEED, **look)
        scores[name] = field.scores(rows, labels)
    return {
        "look": vars(SHORT) | {"guidance": "by row"},
        "models": {
            name: {figure: told(score) for figure, score in of.items()}
            | {"to_alone": stitching.beside(of["distance"], scores["alone"]["distance"])}
            for name, of in scores.items()
        },
    }


def summary(ledger: Ledger) -> dict[str, Any]:
    """All results, without the draws."""
    results = ledger.all("beyond")
    for result in results.values():
        for plan in result.get("plans", {}).values():
            plan.pop("draws")
    return results
