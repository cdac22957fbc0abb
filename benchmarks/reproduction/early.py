"""G. Why the small member's early steps are not free: the fraction .4 of part B with one thing other than there.

The paper's small member does its share of the steps at no loss. What may be otherwise: how far the members' sizes are
apart, how long each was trained, and where in the noise the steps lie. Under the linear betas of DiT the first 40 % of
the steps are over before an image shows, at a log-SNR of -3.4; under the cosine schedule they reach -0.6. So one
attempt visits the noise levels of DiT's steps with part B's own networks. And by how much the members differ at which
noise is measured, without sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

import hemstitch as hs
from hemstitch import Plan, Process
from hemstitch.denoiser import Denoiser
from hemstitch.evaluate.score import NORMAL_95, Score
from hemstitch.grid import timesteps
from hemstitch.recipe import Recipe
from hemstitch.stitch.search.cost import Costs

from . import intervals, networks, switch, unets
from .fields import BATCH, Field, classes, distance_of, draws, fashion, sampled_rows, told
from .networks import at, begin_at, held, marked
from .stitching import AROUND, CLOSE, SEED, beside, fractions
from .work import Ledger, Result, Task

STEPS, GUIDANCE = 25, 1.5
PUBLISHED = Process("linear", "eps")  # of the papers
LEVELS = tuple(t / 10 for t in range(1, 10))  # shares of the timesteps at which members are asked about the same
IMAGES = 20 * BATCH
TUNING_SEED = 200
Answer = Callable[[Tensor, Tensor, Tensor], Tensor]  # noisy images, their times and labels, to images


@dataclass(frozen=True)
class Member:
    """Averaged weights of a run after so many steps; the task that makes them, and what they hang on. size: the member
    of part B that its steps cost as much as."""

    run: Path
    step: int
    task: str
    of: object
    size: str

    def load(self) -> Denoiser:
        return at(self.run, self.step)


@dataclass(frozen=True)
class Early:
    """differs: from part B in what. small, large: the members. published: whether the steps lie at the noise levels of
    the papers' process."""

    differs: str
    small: str = "small"
    large: str = "large"
    published: bool = False


EARLY: Mapping[str, Early] = {
    "middle": Early("the middle member first", small="middle"),
    "young": Early("the small member after as many iterations as the large one", small="young"),
    "cooled": Early("the large member after 1,000 more at a tenth of the rate", large="cooled"),
    "longer": Early("the large member after half as many iterations again", large="longer"),
    "levels": Early("at the noise levels of DiT's steps", published=True),
    "levels, middle": Early("at those levels, the middle member first", small="middle", published=True),
    "levels, longer": Early(
        "at those levels, the large member after half as many iterations again", large="longer", published=True
    ),
}


def members(field: Field, runs: Path) -> dict[str, Member]:
    """By name; the first three are those of part B."""
    recipes = intervals.recipes(field)
    found = {
        name: Member(runs / recipe.name, recipe.train.steps, intervals.MADE_BY[name], marked(recipe), name)
        for name, recipe in recipes.items()
    }
    small, steps = found["small"], recipes["large"].train.steps
    found["young"] = Member(small.run, steps, small.task, (small.of, steps), "small")
    for key, (recipe, _) in further(field).items():
        run = runs / f"early-{key}"
        found[key] = Member(
            run, recipe.train.steps, f"early/trained/{key}", (marked(recipe), found["large"].of), "large"
        )
    return found


def further(field: Field) -> dict[str, tuple[Recipe, Callable[[Recipe, Path, Path], Result]]]:
    """How the large member is trained on: what makes it a run of a recipe, from the run that it was."""
    base = switch.recipe(field, "dit", 0)
    # its name is of when it was part F's, and part of what its results are known by
    cooled = replace(base.train, steps=1000, learning_rate=3e-4, seed=TUNING_SEED)
    return {
        "cooled": (replace(base, name="attempts-cooled-dit-0", train=cooled), tuned),
        "longer": (switch.recipe(field, "dit", 0, base.train.steps * 3 // 2), gone_on),
    }


def tuned(recipe: Recipe, begun: Path, out: Path) -> Result:
    """Begun with a run's averaged weights at the end."""
    return networks.train(replace(recipe, train=replace(recipe.train, init=str(begun))), out)


def gone_on(recipe: Recipe, begun: Path, out: Path) -> Result:
    """A run of part A, trained on as it was."""
    begin_at(begun, switch.STEPS, out, "provenance.jsonl", "metrics.jsonl")
    return networks.train(recipe, out)


def tasks(folder: Path) -> list[Task]:
    where = fashion(folder)
    known, ledger = members(where, folder / "runs"), Ledger(folder / "results")
    found = []
    for key, (recipe, make) in further(where).items():
        one, begun = known[key], known["large"]
        do = partial(make, recipe, begun.run, one.run)
        found.append(Task(one.task, do, (begun.task,), one.of, held(one.run, one.step)))
    for key, early in EARLY.items():
        pair = {"small": known[early.small], "large": known[early.large]}
        do = partial(judge, where, pair, early.published, folder / "features" / "early", ledger)
        needs = ("switch/field", "stitching/costs", *(member.task for member in pair.values()))
        of = (where.settings, [member.of for member in pair.values()], early.published, STEPS, GUIDANCE, AROUND)
        found.append(Task(f"early/judged/{key}", do, needs, (*of, CLOSE, SEED, BATCH)))
    three = {name: known[name] for name in ("small", "middle", "large")}
    needs = tuple(member.task for member in three.values())
    of = ([member.of for member in three.values()], LEVELS, IMAGES, SEED)
    found.append(Task("early/errors/transformers", partial(transformers_errors, where, three), needs, of))
    do = partial(unets_errors, where, folder / "runs" / "unets")
    needs = tuple(f"unets/trained/{name}" for name in unets.MEMBERS)
    return [*found, Task("early/errors/unets", do, needs, (unets.MEMBERS, LEVELS, IMAGES, SEED), dtype="float32")]


def levels(process: Process, steps: int) -> list[float]:
    """The times of a process at which there is as much noise as at the papers' steps."""
    return process.time_of(PUBLISHED.log_snr(timesteps(PUBLISHED, steps))).tolist()


def judge(field: Field, pair: Mapping[str, Member], published: bool, kept: Path, ledger: Ledger) -> Result:
    """r = 0, r = .4, and the large member alone at the fewest steps that take as long as that, on the same samples;
    with the log-SNR down to which the small member goes."""
    loaded = {name: member.load() for name, member in pair.items()}
    process, mixed = loaded["large"].process, f"{AROUND:g}"
    costs = Costs.from_data(ledger["stitching/costs"]["costs"])
    plan = fractions((AROUND,), STEPS)[mixed]
    first = plan.counts["small"]
    priced = Plan.steps_each({pair[name].size: count for name, count in plan.counts.items()})
    guided = GUIDANCE != 1
    taken = costs.of(priced, guided, 1) / costs.ms(pair["large"].size, guided)  # steps of the large member

    def grid(steps: int) -> str | list[float]:
        return levels(process, steps) if published else "released"

    def scores(model: Denoiser, steps: int = STEPS) -> dict[str, Score]:
        look: dict[str, Any] = {"sampler": "ddim", "steps": steps, "guidance": GUIDANCE, "grid": grid(steps)}
        return field.scores(sampled_rows(field, model, CLOSE, kept, SEED, **look), classes(CLOSE))

    judged = {
        "0": scores(loaded["large"]),
        mixed: scores(hs.Stitched(loaded, plan)),
        "fewer": scores(loaded["large"], math.ceil(taken)),
    }
    return {
        "log_snr_at_seam": float(process.log_snr(timesteps(process, STEPS, grid(STEPS)))[first]),
        "times_as_fast": STEPS / taken,
        "fewer_steps": math.ceil(taken),
        "plans": {
            key: {name: told(score) for name, score in by_name.items()} | {"draws": draws(by_name["distance"])}
            for key, by_name in judged.items()
        },
        "to_largest": beside(judged[mixed]["distance"], judged["0"]["distance"]),
        "to_fewer": beside(judged[mixed]["distance"], judged["fewer"]["distance"]),
    }


def transformers_errors(field: Field, known: Mapping[str, Member]) -> Result:
    """Of part B's transformers, given the labels."""
    loaded = {name: member.load() for name, member in known.items()}
    answers = {name: lambda x, t, labels, of=of: of(x, t, labels).x0 for name, of in loaded.items()}
    return errors(field, loaded["large"].process, answers)


def unets_errors(field: Field, pair: Path) -> Result:
    """Of part B's U-Nets, which know no labels and predict eps under the papers' betas, their scheduler's default."""
    loaded = {name: UNet2DModel.from_pretrained(pair / name, subfolder="unet") for name in unets.MEMBERS}

    def answer(net: UNet2DModel, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return PUBLISHED.x0_eps(net(x, t.long()).sample, x, t)[0]

    return errors(field, PUBLISHED, {name: partial(answer, net) for name, net in loaded.items()})


@torch.no_grad()
def errors(field: Field, process: Process, answers: Mapping[str, Answer]) -> Result:
    """By noise level, squared errors of what members take images to be, of images held out that all of them get with
    the same noise."""
    data, rows = field.test(), torch.arange(IMAGES)
    x0, labels = data.images(rows), data.labels[rows]
    random = torch.Generator().manual_seed(SEED)
    found: dict[str, Any] = {}
    for share in sorted(LEVELS, reverse=True):
        t = torch.full((IMAGES,), share * process.timesteps, dtype=torch.float64)
        x = process.add_noise(x0, torch.randn(x0.shape, generator=random), t)
        each = {name: squared(answer, x, t, labels, x0) for name, answer in answers.items()}
        found[f"{share:g}"] = {
            "log_snr": float(process.log_snr(t[:1])),
            "error": {name: float(of.mean()) for name, of in each.items()},
            "to_large": {name: ratio(each[name], each["large"]) for name in each if name != "large"},
        }
    return {"images": IMAGES, "levels": found}


def squared(answer: Answer, x: Tensor, t: Tensor, labels: Tensor, x0: Tensor) -> Tensor:
    """(N,) mean squared errors."""
    each = [tensor.split(BATCH) for tensor in (x, t, labels, x0)]
    return torch.cat(
        [(answer(*three) - x0).square().mean((1, 2, 3)) for *three, x0 in zip(*each, strict=True)]
    ).double()


def ratio(a_N: Tensor, b_N: Tensor) -> dict[str, float]:
    """Of the means of pairs, with half of its 95 % interval (delta method)."""
    value = a_N.mean() / b_N.mean()
    error = (a_N - value * b_N).std() / len(a_N) ** 0.5 / b_N.mean()
    return {"value": float(value), "half_width": NORMAL_95 * float(error)}


def summary(ledger: Ledger) -> dict[str, Any]:
    """Results by attempt, in the order of `EARLY`. Those at other noise levels are also held against the large member
    in fewer steps at part B's levels, of the same samples, lest it be the levels that are worse for fewer steps."""
    results = ledger.all("early")
    judged: dict[str, Any] = {key: results[f"judged/{key}"] | vars(early) for key, early in EARLY.items()}
    for one in judged.values():
        for other in judged.values():
            alike = all(one[what] == other[what] for what in ("large", "fewer_steps"))
            if alike and one["published"] and not other["published"]:
                distances = (distance_of(one["plans"][f"{AROUND:g}"]), distance_of(other["plans"]["fewer"]))
                one["to_fewer_there"] = beside(*distances)
    return {
        "sampling": {"steps": STEPS, "guidance": GUIDANCE, "samples": CLOSE, "seed": SEED, "batch": BATCH},
        "judged": judged,
        "trained": {name: one for name, one in results.items() if name.startswith("trained/")},
        "errors": {kind: results[f"errors/{kind}"] for kind in ("transformers", "unets")},
    }
