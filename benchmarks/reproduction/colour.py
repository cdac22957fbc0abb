"""E. RGB: part A at one size and part B's table once more, on small colour pictures (`emoji`).

The pictures are few: some 5,200 to learn, and 1,000 held out, 125 of each category, from characters that no drawing of
is learned. The reference are those 1,000 alone: neither the networks nor the classifier saw them, so that a network
which repeats what it learned gains nothing. All comparisons are to the same 1,000; how far the training pictures
themselves are from them is told beside (`prepare`), and whether samples are copies (`copies`). The categories are not
as plain as those of Fashion-MNIST, and many things could be food: a class accuracy of samples is to be read beside the
classifier's own on the 1,000.

Shape suffixes: N samples, M pictures, C channels, S size, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hemstitch as hs
from hemstitch import Plan
from hemstitch.data import Arrays, Dataset
from hemstitch.denoiser import Denoiser
from hemstitch.evaluate.score import Score, resampled_means
from hemstitch.models.config import Family
from hemstitch.recipe import Recipe
from hemstitch.samplers import SAMPLERS
from hemstitch.stitch.search.cost import Costs, measure_costs
from hemstitch.stitch.search.store import Store, key_of
from hemstitch.stitch.search.trunk import Candidate, Ground

from . import emoji, switch
from .fields import BATCH, Field, classes, judged, told
from .networks import at, train, transformer
from .stitching import TENTHS, beside, fractions, shorter
from .work import Ledger, Result, Task

STEPS = 2000
MARKS = (500, 1000, 2000)  # where along training samples are judged
SMALL_STEPS = 4000
CLASSIFIER_STEPS = 300
LOOK: dict[str, Any] = {"sampler": "ddim", "steps": 25}
NUM, COPIES, TABLE = 8 * BATCH, 4 * BATCH, 16 * BATCH  # samples: of a checkpoint, looked at for copies, of a plan
SEED, TABLE_SEED = 6000, 7000  # of samples


def pictures(folder: Path) -> Field:
    """Colour pictures of eight categories; they are there once `emoji.prepare` was called."""
    learned, held = emoji.paths(folder / "emoji")
    reference = partial(Arrays, held, emoji.SIZE)
    return Field(
        "emoji",
        folder,
        ("arrays", str(learned), emoji.SIZE),
        reference,
        reference,
        CLASSIFIER_STEPS,
        (3, emoji.SIZE, len(emoji.CATEGORIES)),
    )


def recipe(field: Field, family: Family, seed: int) -> Recipe:
    """As in part A, everything but the family and the seed is equal."""
    name = f"colour-{family}-{seed}"
    return transformer(field, name, family, width=96, seed=seed, steps=STEPS, checkpoint_every=MARKS[0])


def small(field: Field) -> Recipe:
    return transformer(field, "colour-small", width=48, depth=2, steps=SMALL_STEPS)


def tasks(folder: Path) -> list[Task]:
    """Recipes need the pictures, and so are made when their tasks are done."""
    field, runs, ledger = pictures(folder), folder / "runs", Ledger(folder / "results")
    found = [
        Task("colour/pictures", partial(emoji.prepare, folder / "emoji")),
        Task("colour/field", partial(prepare, field), ("colour/pictures",)),
    ]
    for seed in switch.SEEDS:
        for family in switch.FAMILIES:
            run, trained = runs / f"colour-{family}-{seed}", f"colour/trained/{family}-{seed}"
            found.append(Task(trained, partial(learn, field, family, seed, run), ("colour/pictures",)))
            for mark in reversed(MARKS):
                name = f"colour/judged/{family}-{seed}/{mark}"
                do = partial(judge, field, run, mark, folder / "features" / name)
                found.append(Task(name, do, ("colour/field", trained)))
            if seed == 0:
                found.append(Task(f"colour/copies/{family}", partial(copies, field, run), (trained,)))

    def members() -> dict[str, Denoiser]:
        return {"small": at(runs / "colour-small", SMALL_STEPS), "large": at(runs / "colour-dit-0", STEPS)}

    def tabled(plans: Mapping[str, Plan], costs: Costs) -> Result:
        return table(field, members(), plans, costs, folder / "samples" / "colour")

    known = lambda: Costs.from_data(ledger["colour/costs"]["costs"])  # noqa: E731
    learn_small = lambda: train(small(field), runs / "colour-small")  # noqa: E731
    found.append(Task("colour/trained/small", learn_small, ("colour/pictures",)))
    both = ("colour/trained/dit-0", "colour/trained/small")
    found.append(Task("colour/costs", lambda: measured(members()), both))
    needs = ("colour/field", "colour/costs", *both)
    found.append(Task("colour/table/fractions", lambda: tabled(by_fraction(), known()), needs))
    found.append(Task("colour/table/fewer steps", lambda: tabled(by_time(known()), known()), needs))
    return found


def even(labels_M: Tensor, count: int) -> Tensor:
    """Indices of `count` pictures of each class, at random and always the same."""
    random = torch.Generator().manual_seed(0)
    parts = []
    for label in labels_M.unique():
        mine = (labels_M == label).nonzero()[:, 0]
        parts.append(mine[torch.randperm(len(mine), generator=random)[:count]])
    return torch.cat(parts)


def prepare(field: Field) -> Result:
    """`Field.prepare`, but of the training pictures as many of each class as are held out, which there are unequal
    numbers of. Their accuracy is the classifier's on what it learned."""
    result, data = field.prepare(), field.data()
    index = even(data.labels, emoji.HELD)
    real = field.scores(field.rows(data.images(index)), data.labels[index])
    return result | {"training_images": {name: told(score) for name, score in real.items()}}


# Part A


def learn(field: Field, family: Family, seed: int, run: Path) -> Result:
    return train(recipe(field, family, seed), run)


def judge(field: Field, run: Path, mark: int, kept: Path) -> Result:
    """Samples of a run's averaged weights after so many steps, without guidance."""
    scores = judged(field, at(run, mark), NUM, kept, SEED, LOOK)
    return {name: told(score) for name, score in scores.items()}


def copies(field: Field, run: Path) -> Result:
    """Whether the network made new pictures: `nearness` of samples of its last averaged weights."""
    model, data = at(run, STEPS), field.data()
    labels = classes(COPIES, model.spec.num_classes)
    parts = [
        hs.generate(model, labels[i : i + BATCH], seeds=[(SEED, k) for k in range(i, i + BATCH)], **LOOK)
        for i in range(0, COPIES, BATCH)
    ]
    return {name: told(score) for name, score in nearness(torch.cat(parts), data, field.reference()).items()}


def nearness(x_NCSS: Tensor, learned: Dataset, held: Dataset) -> dict[str, Score]:
    """Shares of samples, which are in -1..1.

    near_copies: that are nearly the same as a picture learned from, as `emoji.distinct` understands it. nearer_learned:
    whose nearest picture, of as many of each class learned from as held out, is one learned from; far above a half
    where pictures are remembered (samples that are like no picture are all nearest to a few, of which side it may be).
    """
    x, theirs = x_NCSS.clamp(-1, 1).flatten(1), held.images(torch.arange(len(held))).flatten(1)
    ours = learned.images(torch.arange(len(learned))).flatten(1)
    near = torch.cdist(x, ours)
    as_many = even(learned.labels, len(held) // len(held.classes))
    found = {
        "near_copies": near.amin(1) < 2 * emoji.NEAR * x.shape[1] ** 0.5,
        "nearer_learned": near[:, as_many].amin(1) < torch.cdist(x, theirs).amin(1),
    }
    return {
        name: Score(float(yes.double().mean()), resampled_means(yes.numpy(), 100), resampled=len(yes))
        for name, yes in found.items()
    }


# Part B's table


def by_fraction() -> dict[str, Plan]:
    return fractions(TENTHS, LOOK["steps"])


def by_time(costs: Costs) -> dict[str, Plan]:
    """The large member alone at as many steps as take the time of each fraction."""
    return shorter(costs, TENTHS, LOOK["steps"], guided=False)


def measured(members: dict[str, Denoiser]) -> Result:
    """What a solver step of each member takes, in turns."""
    return {"costs": measure_costs(members, batch=BATCH, guided=[False], seconds=30.0).to_data()}


def table(field: Field, members: dict[str, Denoiser], plans: Mapping[str, Plan], costs: Costs, kept: Path) -> Result:
    """Every plan judged on the same seeds and labels; beside it its time, as its steps were measured, and its distance
    less that of the large member at all steps."""
    labels = classes(TABLE, members["large"].spec.num_classes)
    whole = _candidate(Plan.steps_each({"large": LOOK["steps"]}))
    ground = Ground(members, labels, SAMPLERS[LOOK["sampler"]], seed=TABLE_SEED, batch=BATCH)
    store = Store(ground, field.judge, whole, kept)
    marks = {key: _candidate(plan) for key, plan in plans.items()}
    for chunk in range(TABLE // BATCH):
        store.sample([*dict.fromkeys([whole, *marks.values()])], chunk)

    def scores(mark: Candidate) -> dict[str, Score]:
        return field.scores(torch.cat([store.rows[key_of(mark), c] for c in range(TABLE // BATCH)]), labels)

    largest = scores(whole)["distance"]
    found = {}
    for key, mark in marks.items():
        figures = scores(mark)
        found[key] = {
            "plan": str(plans[key]),
            "milliseconds_an_image": costs.of(mark.plan, False, 1) / BATCH,
            **{name: told(score) for name, score in figures.items()},
            "to_largest": beside(figures["distance"], largest),
            "draws": figures["distance"].draws.tolist(),
        }
    return {"look": LOOK, "plans": found}


def _candidate(plan: Plan) -> Candidate:
    return Candidate(plan, (False,) * plan.steps)


# What came out


def summary(ledger: Ledger) -> dict[str, Any]:
    """Part A as in `switch`, over training seeds; the table, and each fraction beside the large member alone at fewer
    steps that take as long."""
    judged_, tables = ledger.all("colour/judged"), ledger.all("colour/table")
    values = {
        family: {
            seed: {mark: judged_[f"{family}-{seed}/{mark}"]["distance"]["value"] for mark in MARKS}
            for seed in switch.SEEDS
        }
        for family in switch.FAMILIES
    }
    fewer = at_equal_time(tables["fractions"]["plans"], tables["fewer steps"]["plans"])
    for result in tables.values():
        for plan in result["plans"].values():
            plan.pop("draws")
    return {
        "pictures": ledger["colour/pictures"],
        "field": ledger["colour/field"],
        "trained": ledger.all("colour/trained"),
        "judged": judged_,
        "over_seeds": {
            figure: {
                family: {mark: switch.over_seeds(judged_, family, mark, figure) for mark in MARKS}
                for family in switch.FAMILIES
            }
            for figure in ("distance", "precision", "recall", "accuracy")
        },
        "at_equal_iterations": {
            f"{a} against {b}": {mark: switch.against(values[a], values[b], mark, mark) for mark in MARKS}
            for a, b in switch.PAIRS
        },
        "copies": ledger.all("colour/copies"),
        "costs": ledger["colour/costs"],
        "table": tables,
        "fractions_to_fewer_steps": fewer,
    }


def at_equal_time(mixed: Mapping[str, Any], fewer: Mapping[str, Any]) -> dict[str, Any]:
    """By fraction: its distance less that of the large member at the steps that take as long, of the same samples."""
    found = {}
    for key, plan in fewer.items():
        fraction = key.rpartition(" ")[2]
        found[fraction] = {"fewer": key, **beside(_distance(mixed[fraction]), _distance(plan))}
    return found


def _distance(plan: Mapping[str, Any]) -> Score:
    told_: Mapping[str, Any] = plan["distance"]
    draws = np.array(plan["draws"])
    return Score(told_["value"], draws, resampled=told_["samples"], biased_by_size=True)
