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

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hemstitch as hs
from hemstitch import Plan
from hemstitch.data import Arrays, Dataset
from hemstitch.denoiser import Denoiser
from hemstitch.evaluate.score import Score, resampled_means
from hemstitch.models.config import Family
from hemstitch.recipe import Recipe
from hemstitch.stitch.search.cost import Costs, measure_costs

from . import emoji
from .families import FAMILIES, SEEDS, along, pace, recipes
from .fields import BATCH, Field, classes, judged, told
from .networks import at, marked, training, transformer
from .stitching import CLOSE, ROUNDS, TENTHS, Look, Pair, at_equal_time, fractions, seconds, shorter, speed
from .work import Ledger, Result, Task

STEPS = 2000
MARKS = (500, 1000, 1500, 2000)  # where along training samples are judged
SMALL_STEPS = 4000
CLASSIFIER_STEPS = 300
LOOK: dict[str, Any] = {"sampler": "ddim", "steps": 25}
NUM, COPIES = 8 * BATCH, 4 * BATCH  # samples: of a checkpoint, and looked at for copies
SEED = 6000  # of these samples, of the first training seed
TABLE = Look(steps=20, guidance=1.0, num=16 * BATCH)


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
    field, runs, ledger = pictures(folder), folder / "runs", Ledger(folder / "results")
    found = [
        Task("colour/pictures", partial(emoji.prepare, folder / "emoji"), keeps=emoji.paths(folder / "emoji")[-1]),
        Task(
            "colour/field",
            partial(prepare, field),
            ("colour/pictures",),
            field.settings,
            field.classifier_path,
            "float32",
        ),
    ]
    for seed in SEEDS:
        for family in FAMILIES:
            run, trained = runs / f"colour-{family}-{seed}", f"colour/trained/{family}-{seed}"
            mine = recipe(field, family, seed)
            found.append(training(trained, mine, runs, "colour/pictures"))
            for mark in reversed(MARKS):
                name = f"colour/judged/{family}-{seed}/{mark}"
                do = partial(judge, field, run, mark, folder / "features" / name, seed)
                of = (field.settings, marked(mine), mark, LOOK, NUM, SEED + seed)
                found.append(Task(name, do, ("colour/field", trained), of))
            if seed == 0:
                of = (marked(mine), LOOK, COPIES, SEED)
                found.append(Task(f"colour/copies/{family}", partial(copies, field, run), (trained,), of))

    paced = recipes(
        lambda family: transformer(field, f"colour-pace-{family}", family, width=96, steps=1000, log_every=1)
    )
    hashes = {family: marked(one) for family, one in paced.items()}
    found.append(Task("colour/pace", partial(pace, paced, folder / "pace"), ("colour/pictures",), hashes))

    def members() -> dict[str, Denoiser]:
        return {"small": at(runs / "colour-small", SMALL_STEPS), "large": at(runs / "colour-dit-0", STEPS)}

    pair, tenths = Pair(field, folder / "samples" / "colour", members), fractions(TENTHS, TABLE.steps)

    def fewer() -> dict[str, Plan]:
        return shorter(Costs.from_data(ledger["colour/costs"]["costs"]), TENTHS, TABLE)

    def shorter_table() -> Result:
        return pair.table("fractions", fewer(), TABLE)

    of = (field.settings, marked(small(field)), marked(recipe(field, "dit", 0)), TABLE)
    found.append(training("colour/trained/small", small(field), runs, "colour/pictures"))
    both = ("colour/trained/dit-0", "colour/trained/small")
    found.append(Task("colour/costs", lambda: measured(members()), both, of))
    needs = ("colour/field", "colour/costs", *both)
    found.append(
        Task("colour/table/fractions", lambda: pair.table("fractions", tenths, TABLE, CLOSE), needs, (of, CLOSE))
    )
    found.append(Task("colour/table/fewer steps", shorter_table, (*needs, "colour/table/fractions"), of))
    timed = lambda: seconds(members(), tenths | fewer(), TABLE)  # noqa: E731
    found.append(Task("colour/table/time", timed, ("colour/costs", *both), (of, ROUNDS)))
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


def judge(field: Field, run: Path, mark: int, kept: Path, seed: int) -> Result:
    """Samples of a run's averaged weights after so many steps, without guidance."""
    scores = judged(field, at(run, mark), NUM, kept, SEED + seed, LOOK)
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


def measured(members: dict[str, Denoiser]) -> Result:
    """What a solver step of each member takes, in turns."""
    return {"costs": measure_costs(members, batch=BATCH, guided=[False], seconds=30.0).to_data()}


# What came out


def summary(ledger: Ledger) -> dict[str, Any]:
    """Part A as in `families.along`; part B's table, each fraction beside the large member alone at fewer steps."""
    judged_, tables, paces = ledger.all("colour/judged"), ledger.all("colour/table"), ledger["colour/pace"]
    tables["time"]["speed"] = speed(tables["time"]["seconds_per_image"], TABLE.steps)
    along_ = along(judged_, MARKS, paces["seconds_a_step"])
    return {
        "sampling": {"look": LOOK, "samples": NUM, "seeds": [SEED + seed for seed in SEEDS], "batch": BATCH},
        "pictures": ledger["colour/pictures"],
        "field": ledger["colour/field"],
        "trained": ledger.all("colour/trained"),
        "judged": judged_,
        "pace": paces,
        **along_,
        "at_the_end": {pair: by_mark[MARKS[-1]] for pair, by_mark in along_["at_equal_iterations"].items()},
        "copies": ledger.all("colour/copies"),
        "costs": ledger["colour/costs"],
        **tables,
        "fractions to fewer steps": at_equal_time(tables["fractions"]["plans"], tables["fewer steps"]["plans"]),
    }
