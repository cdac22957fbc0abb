"""Plans found by search against what anyone would try, on models trained here.

    python benchmarks/search.py digits --out build/search                # an hour of two CPU cores
    python benchmarks/search.py fashion --out build/search               # some three hours of them
    python benchmarks/search.py digits --out … --part members            # or find, measure, report: one part

Three members are trained on each data set (`members`); hemstitch searches among them for plans of every budget
(`find`); the plans found are then sampled afresh, 5,000 images for each of three seeds that no search used, beside
plain fractions, the largest member alone at fewer steps, the orders of T-Stitch's Table 7 and plans drawn at random
(`measure`; the last on 2,500 images only); `report` puts the figures together, as JSON and as a picture. Every
part goes on where it was stopped; --seeds 0 and --seeds 1,2 may run beside one another.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

import hemstitch as hs
from hemstitch import recipes
from hemstitch.bulk.settings import to_pixels
from hemstitch.data import Dataset, Digits, Idx
from hemstitch.denoiser import Denoiser
from hemstitch.evaluate.classifier import TrainedClassifier, train_classifier
from hemstitch.evaluate.extractors import SmallClassifier
from hemstitch.evaluate.features import moments_of
from hemstitch.evaluate.images import TensorImages
from hemstitch.evaluate.score import Score, compared
from hemstitch.files import read_json_file, save_tensors, write_atomic, write_bytes, write_text
from hemstitch.models.config import NetConfig
from hemstitch.process import Process
from hemstitch.provenance import provenance
from hemstitch.recipe import DataRecipe, Recipe, TrainRecipe
from hemstitch.run import Run
from hemstitch.samplers import SAMPLERS
from hemstitch.stitch.adaptive import AdaptivePlan
from hemstitch.stitch.orders import ORDERS, ordered
from hemstitch.stitch.search.cost import Costs, measure_costs
from hemstitch.stitch.search.judge import Frechet, Pixels
from hemstitch.stitch.search.per_sample import compare, rows_of
from hemstitch.stitch.search.picture import Dot, Kind, frontier_png
from hemstitch.stitch.search.probes import Priced, fewer_steps, is_plain, smallest_fraction
from hemstitch.stitch.search.report import html
from hemstitch.stitch.search.store import Store
from hemstitch.stitch.search.trunk import Candidate, Ground
from hemstitch.train.fit import fit

FASHION = Path("/usr/share/datasets/fashion-mnist")
BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM, SEEDS, BATCH = 5_000, (101, 102, 103), 125
CHUNKS = range(NUM // BATCH)
STRANGERS = range(20)  # chunks, of the first seed, that plans to predict are sampled on
RANDOM = 21  # pairs of plans that neither a reader nor a search would choose, for the rank correlation


def _fashion(name: str, width: int, depth: int, heads: int, steps: int, rate: float) -> Recipe:
    net = NetConfig("dit", 28, 1, 4, width, depth, heads, num_classes=10, learned_variance=False)
    train = TrainRecipe(
        steps=steps,
        batch=64,
        learning_rate=rate,
        ema=0.998,
        clip=1.0,
        flip=False,
        times="lognormal",
        time_mean=0.0,
        time_std=1.0,
        precision="fp32",
        checkpoint_every=500,
        log_every=50,
        sample_every=0,
    )
    return Recipe(f"fashion_{name}", net, Process("flow", "flow"), DataRecipe("fashion_mnist", size=28), train)


def _digits_large() -> Recipe:
    """The quickstart's, trained three times as long: at 1,000 steps the middle one does better."""
    large = recipes.digits_large()
    return replace(large, train=replace(large.train, steps=3000))


def _digits_middle() -> Recipe:
    small = recipes.digits_small()
    return replace(
        small, name="digits_middle", net=replace(small.net, width=64), train=replace(small.train, steps=1500)
    )


@dataclass(frozen=True)
class Trial:
    """A data set, its members by rising size, and the solver steps of a full trajectory.

    samples: of a search. per_sample: budgets at which a seam for each sample is tried. thorough: also every tenth
    fraction and three draws of the random order, whatever the budgets ask for.
    """

    members: dict[str, Callable[[], Recipe]]
    steps: int
    data: Callable[[str], Dataset]
    samples: int
    per_sample: tuple[float, ...]
    thorough: bool

    def reference(self) -> TensorImages:
        """What samples are held against: all digits, or the test images of Fashion-MNIST."""
        held = self.data("reference")
        images = to_pixels(held.images(torch.arange(len(held))), "floor")
        return TensorImages(images, name=f"{held.name}, {len(held)} images", grey=True)


def _fashion_images(split: str) -> Dataset:
    return Idx(FASHION, 28, "train" if split == "train" else "test", fashion=True)


TRIALS = {
    "digits": Trial(
        {"small": recipes.digits_small, "middle": _digits_middle, "large": _digits_large},
        25,
        lambda split: Digits({"train": "train", "test": "test"}.get(split, "all")),
        samples=1500,
        per_sample=(0.4, 0.6, 0.8),
        thorough=True,
    ),
    "fashion": Trial(
        {
            "small": lambda: _fashion("small", 32, 2, 2, 8000, 2e-3),
            "middle": lambda: _fashion("middle", 64, 3, 4, 8000, 2e-3),
            "large": lambda: _fashion("large", 128, 4, 4, 9000, 1e-3),
        },
        12,
        _fashion_images,
        samples=1000,
        per_sample=(0.6,),
        thorough=False,
    ),
}


# Members


def train(trial: Trial, folder: Path) -> None:
    """The classifier whose features distances are of, and the members."""
    path = folder / "classifier.safetensors"
    if not path.exists():
        classifier = train_classifier(
            trial.data("train"), trial.data("test"), steps=600 if len(trial.data("train")) < 10_000 else 1500
        )
        classifier.save(path)
        print(f"classifier: {classifier.accuracy:.4f} of the test images right", flush=True)
    for name, recipe in trial.members.items():
        run = Run(folder / name)
        newest = run.newest() if run.exists else None
        if newest is not None and newest.name.endswith(f"{recipe().train.steps:08d}"):
            continue
        began = time.perf_counter()
        for progress in fit(recipe(), folder / name, resume=run.exists, device="cpu"):
            if progress.step % 500 == 0:
                print(f"{name}: step {progress.step}, loss {progress.loss:.4f}", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


def loaded(trial: Trial, folder: Path) -> dict[str, Denoiser]:
    return {name: hs.load(folder / name) for name in trial.members}


# Searches


def searches(names: Sequence[str], steps: int) -> dict[str, tuple[list[str], tuple[float, ...], Any]]:
    """Members, budgets and steps of each search, by name: a reader's two members, at one number of steps and at any;
    all members; and one budget alone, for what a search costs."""
    pair = [names[0], names[-1]]
    return {
        "order": (pair, BUDGETS, [steps]),
        "pair": (pair, BUDGETS, steps),
        "all": (list(names), BUDGETS, steps),
        "one-budget": (pair, (0.5,), steps),
    }


def find(trial: Trial, folder: Path, only: Sequence[str]) -> None:
    members = loaded(trial, folder)
    extractor = SmallClassifier(folder / "classifier.safetensors")
    reference = moments_of(trial.reference(), extractor)
    for name, (chosen, budgets, steps) in searches(list(members), trial.steps).items():
        out = folder / "searches" / name
        if name not in only or (out / "predictions.json").exists():
            continue
        began = time.process_time()
        found = hs.search(
            {m: members[m] for m in chosen},
            budgets,
            steps=steps,
            reference=reference,
            extractor=extractor,
            batch=BATCH if len(budgets) > 1 else 64,
            samples=trial.samples if len(budgets) > 1 else 512,
            out=out,
        )
        seconds = time.process_time() - began
        write_text(out / "report.html", html(found))
        if len(budgets) == 1:  # what it takes beside 2,000 images, in processor time, which neighbours disturb least
            began = time.process_time()
            for i in range(0, 512, 64):
                hs.generate(members[chosen[-1]], [k % 10 for k in range(64)], steps=trial.steps, seeds=range(i, i + 64))
            images = (time.process_time() - began) * 2000 / 512
            write_text(out / "cost.json", json.dumps({"search_cpu_s": seconds, "2000_images_cpu_s": images}))
        print(
            f"{name}: {len(found.points)} plans, {found.seconds:.0f} s, {found.images:.0f} images of the largest",
            flush=True,
        )
        predictions(found, trial, members, out)


def predictions(found: hs.Found, trial: Trial, members: dict[str, Denoiser], out: Path) -> None:
    """What the search expects of plans that it did not sample, said before they are."""
    names = [n for n in members if any(n == entry.member for entry in found.costs.entries)]
    plans = strangers(names, trial.steps)
    tried = {point.plan.assignment for point in found.points}
    said = [
        {"plan": json.loads(plan.to_json()), "expected": found.expected_gap(plan)}
        for plan in plans
        if plan.assignment not in tried
    ]
    write_text(out / "predictions.json", json.dumps({"predictions": said}, indent=1))


def strangers(names: Sequence[str], steps: int) -> list[hs.Plan]:
    """Plans to predict, the same ones every time: fractions of odd counts, small last, a block of small at any place,
    and independent draws."""
    draw = np.random.default_rng(len(names))
    plans = [hs.Plan.steps_each({names[0]: k, names[-1]: steps - k}) for k in range(1, steps, 2)] + [
        hs.Plan.steps_each({names[-1]: steps - k, names[0]: k}) for k in (1, 3, 5)
    ]
    for _ in range(RANDOM):
        low, high = sorted(draw.choice(steps + 1, 2, replace=False).tolist())
        where = [names[0] if low <= i < high else names[-1] for i in range(steps)]
        share = draw.uniform()
        other = [str(draw.choice(names[:-1])) if draw.uniform() < share else names[-1] for _ in range(steps)]
        plans += [hs.Plan.explicit(where), hs.Plan.explicit(other)]
    return list({plan.assignment: plan for plan in plans}.values())


# Measuring


def plans(trial: Trial, folder: Path, priced: Priced) -> dict[str, list[hs.Plan]]:
    """What is measured, by why."""
    K, names = trial.steps, priced.names
    small, large = names[0], names[-1]
    tenths = [round(K * i / 10) for i in range(11)] if trial.thorough else []
    fractions = [hs.Plan.steps_each({small: k, large: K - k}) for k in dict.fromkeys(tenths)]
    for name in names[:-1]:
        asked = BUDGETS if trial.thorough or name == small else ()
        fractions += [p for b in asked if (p := smallest_fraction(priced, name, b)) is not None]
    found, strange = [], []
    for path in sorted((folder / "searches").glob("*/search.json")):
        data = read_json_file(path)
        found += [hs.Plan.from_data(result["found"]["plan"]) for result in data["results"]]
        found += [hs.Plan.from_data(r["fraction"]["plan"]) for r in data["results"] if r["fraction"] is not None]
    for path in sorted((folder / "searches").glob("pair/predictions.json")):
        strange += [hs.Plan.from_data(said["plan"]) for said in read_json_file(path)["predictions"]]
    return {
        "alone": [hs.Plan.steps_each({name: K}) for name in reversed(names)],
        "fraction": fractions,
        "fewer steps": [p for b in BUDGETS if (p := fewer_steps(priced, b)) is not None],
        "found": found,
        "order": [
            ordered(name, small, large, K, 0.5, seed)
            for name in ORDERS
            for seed in range(3 if trial.thorough and name == "decreasing" else 1)
        ],
        "stranger": strange,
    }


def stage(
    trial: Trial, folder: Path, seed: int, priced: Priced, members: dict[str, Denoiser], name: str = "measured"
) -> Store:
    """Where the samples of one seed are kept."""
    extractor = SmallClassifier(folder / "classifier.safetensors")
    ground = Ground(members, torch.arange(NUM) % 10, SAMPLERS["ddim"], seed=seed, batch=BATCH)
    judge = Frechet(Pixels(members["large"].spec), extractor, moments_of(trial.reference(), extractor), "reference")
    return Store(ground, judge, priced.full, folder / name / str(seed))


def prices(trial: Trial, folder: Path) -> Priced:
    """Costs of all members, measured once, at the batch that was sampled with."""
    path = folder / "costs.json"
    if not path.exists():
        measured = measure_costs(loaded(trial, folder), batch=BATCH, guided=[False], seconds=20.0)
        write_text(path, json.dumps(measured.to_data(), indent=1))
    costs = Costs.from_data(read_json_file(path))
    names = sorted(trial.members, key=costs.ms)
    return Priced(costs, tuple(names), trial.steps, lambda steps, last: (False,) * steps, 1)


def measure(trial: Trial, folder: Path, seeds: Sequence[int]) -> None:
    """Sample what is not there yet. Strangers are sampled on part of the first seed's."""
    members, priced = loaded(trial, folder), prices(trial, folder)
    groups = plans(trial, folder, priced)
    wanted = [priced.candidate(p) for why, group in groups.items() if why != "stranger" for p in group]
    strange = [priced.candidate(p) for p in groups["stranger"]]
    for seed in seeds:
        store = stage(trial, folder, SEEDS[seed], priced, members)
        began = time.perf_counter()
        for chunk in CHUNKS:
            store.sample([*dict.fromkeys([*wanted, *(strange if seed == 0 and chunk in STRANGERS else [])])], chunk)
            if chunk % 8 == 7:
                taken = time.perf_counter() - began
                print(f"seed {seed}: {len(set(wanted))} plans, {(chunk + 1) * BATCH} images, {taken:.0f} s", flush=True)


def per_sample(trial: Trial, folder: Path, seeds: Sequence[int]) -> None:
    """A seam for each sample beside plain fractions of equal mean cost: calibrated on seed 7, then sampled afresh."""
    members, priced = loaded(trial, folder), prices(trial, folder)
    for budget in trial.per_sample:
        plan = smallest_fraction(priced, priced.names[0], budget)
        assert plan is not None  # of these budgets there is one
        path = folder / "per-sample" / f"{budget}.json"
        if not path.exists():
            store = stage(trial, folder, 7, priced, members, "calibration")
            for chunk in range(8):
                store.sample([priced.candidate(plan)], chunk)
            chosen = compare(store, priced, priced.candidate(plan), range(8), range(8))
            write_text(path, json.dumps({"plan": json.loads(chosen.plan.to_json()), "tried": chosen.tried}))
        adaptive = AdaptivePlan.from_data(read_json_file(path)["plan"])
        for seed in seeds:
            rows_path = folder / "per-sample" / f"{budget}-{SEEDS[seed]}.safetensors"
            if not rows_path.exists():
                features, seams = rows_of(stage(trial, folder, SEEDS[seed], priced, members), adaptive, CHUNKS)
                tensors = {"rows": features, "seams": seams}
                write_atomic(rows_path, lambda aside, tensors=tensors: save_tensors(aside, tensors))
                print(f"a seam for each sample, budget {budget}, seed {seed}", flush=True)


# What came out


@dataclass(frozen=True)
class Row:
    """A measured plan: its share of the large member's time, and its distance over all seeds."""

    plan: hs.Plan
    why: str
    share: float
    score: Score
    by_seed: list[float]

    def to_data(self) -> dict[str, Any]:
        return {
            "plan": json.loads(self.plan.to_json()),
            "why": self.why,
            "share": self.share,
            "distance": self.score.value,
            "half_width": self.score.half_width,
            "by_seed": self.by_seed,
        }


def pooled(scores: Sequence[Score]) -> Score:
    """The mean over seeds; its draws are means of theirs, so that two plans of the same seeds compare as pairs."""
    draws = np.mean([score.draws for score in scores], axis=0)
    return Score(float(np.mean([s.value for s in scores])), draws, resampled=scores[0].resampled, biased_by_size=True)


def rows(trial: Trial, folder: Path, priced: Priced) -> dict[tuple[str, ...], Row]:
    """Everything measured under all seeds, by the plan's assignment; why is the first reason."""
    members = loaded(trial, folder)
    stores = [stage(trial, folder, seed, priced, members) for seed in SEEDS]
    found: dict[tuple[str, ...], Row] = {}
    for why, group in plans(trial, folder, priced).items():
        for plan in group if why != "stranger" else ():
            if plan.assignment not in found:
                candidate = priced.candidate(plan)
                scores = [store.score(candidate, CHUNKS) for store in stores]
                values = [score.value for score in scores]
                found[plan.assignment] = Row(plan, why, priced.share(candidate), pooled(scores), values)
    return found


def predicted(trial: Trial, folder: Path, priced: Priced) -> dict[str, Any]:
    """How well the search foretold plans that it had not sampled: rank correlation with what they came to."""
    store = stage(trial, folder, SEEDS[0], priced, loaded(trial, folder))
    said = read_json_file(folder / "searches" / "pair" / "predictions.json")["predictions"]
    pairs = []
    for one in {json.dumps(one["plan"]["assignment"]): one for one in said}.values():
        plan = hs.Plan.from_data(one["plan"])
        distance = store.score(priced.candidate(plan), STRANGERS).value
        pairs.append({"plan": one["plan"], "expected_gap": one["expected"], "distance": distance})
    ranks = spearmanr([p["expected_gap"] for p in pairs], [p["distance"] for p in pairs])
    images = f"{len(STRANGERS) * BATCH} of seed {SEEDS[0]}"
    return {"plans": len(pairs), "images": images, "spearman": float(ranks.statistic), "pairs": pairs}


def gap(a: Row, b: Row) -> dict[str, Any]:
    """a less b: bootstrap over the samples, and the difference for each seed."""
    told = compared(a.score, b.score)
    return {
        "gap": told.gap,
        "half_width": told.half_width,
        "said": told.said,
        "by_seed": [x - y for x, y in zip(a.by_seed, b.by_seed, strict=True)],
    }


def by_budget(
    name: str, folder: Path, measured: dict[tuple[str, ...], Row], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Of one search: its plan beside the plain fraction that was best of all measured ones, and beside fewer steps.

    Shares of the time are by the costs that the search went by.
    """
    data = read_json_file(folder / "searches" / name / "search.json")
    steps = max(data["settings"]["steps"])
    mine = [n for n in names if n in data["settings"]["members"]]
    priced = Priced(Costs.from_data(data["costs"]), tuple(mine), steps, lambda count, last: (False,) * count, 1)
    measured = {
        assignment: replace(row, share=priced.share(_of(row)))
        for assignment, row in measured.items()
        if set(assignment) <= set(mine)
    }
    told = []
    for result in data["results"]:
        found, budget = measured[hs.Plan.from_data(result["found"]["plan"]).assignment], result["budget"]
        within = [row for row in measured.values() if row.share <= budget + 1e-9]
        fractions = [row for row in within if row.plan.steps == steps and is_plain(_of(row), names)]
        fewer = [row for row in within if set(row.plan.assignment) == {names[-1]}]
        rivals = {"best_fraction": fractions, "best_fewer_steps": fewer}
        one: dict[str, Any] = {"budget": budget, "found": found.to_data()}
        for kind, group in rivals.items():
            if group:
                rival = min(group, key=lambda row: row.score.value)
                one[kind] = rival.to_data()
                one[f"against_{kind}"] = gap(found, rival)
        one["against_largest"] = gap(found, measured[(names[-1],) * steps])
        told.append(one | {"saved": saved(found, measured, mine, steps)})
    return told


def _of(row: Row) -> Candidate:
    return Candidate(row.plan, (False,) * row.plan.steps)


def saved(
    found: Row, measured: dict[tuple[str, ...], Row], names: Sequence[str], steps: int
) -> dict[str, float] | None:
    """The time that a found plan saves at equal distance: how much of the time the plain fractions of small and large
    need for its distance, linear between measured ones. None where no fraction comes to it."""
    curve = [
        row
        for row in measured.values()
        if row.plan.steps == steps and is_plain(_of(row), names) and set(row.plan.assignment) <= {names[0], names[-1]}
    ]
    curve.sort(key=lambda row: row.share)
    for left, right in pairwise(curve):
        if right.score.value <= found.score.value < left.score.value:
            part = (left.score.value - found.score.value) / (left.score.value - right.score.value)
            needed = left.share + part * (right.share - left.share)
            return {"share": found.share, "fractions_need": needed, "saved": 1 - found.share / needed}
    return None


def adaptives(
    budget: float, trial: Trial, folder: Path, priced: Priced, measured: dict[tuple[str, ...], Row]
) -> dict[str, Any]:
    """A seam for each sample against the plain fraction of this budget, at equal mean cost."""
    store = stage(trial, folder, SEEDS[0], priced, loaded(trial, folder))
    fixed = smallest_fraction(priced, priced.names[0], budget)
    assert fixed is not None  # it was sampled
    kept = [load_file(folder / "per-sample" / f"{budget}-{seed}.safetensors") for seed in SEEDS]
    scores = [store.judge.score(tensors["rows"]) for tensors in kept]
    other = measured[fixed.assignment]
    told = compared(pooled(scores), other.score)
    return read_json_file(folder / "per-sample" / f"{budget}.json") | {
        "budget": budget,
        "distance": pooled(scores).value,
        "mean_seam": float(torch.cat([t["seams"] for t in kept]).double().mean()),
        "fixed": other.to_data(),
        "gap": told.gap,
        "half_width": told.half_width,
        "said": told.said,
    }


def report(name: str, trial: Trial, folder: Path, results: Path) -> None:
    priced = prices(trial, folder)
    names = list(priced.names)
    measured = rows(trial, folder, priced)
    told: dict[str, Any] = {"budgets": {}, "searches": {}}
    for path in sorted((folder / "searches").glob("*/search.json")):
        search, data = path.parent.name, read_json_file(path)
        told["searches"][search] = {
            key: data[key] for key in ("seconds", "images_of_the_largest", "settings", "provenance")
        } | {"plans": len(data["points"])}
        if path.with_name("cost.json").exists():
            told["searches"][search] |= read_json_file(path.with_name("cost.json"))
        told["budgets"][search] = by_budget(search, folder, measured, names)
    told["predicted"] = predicted(trial, folder, priced)
    told["per_sample"] = [adaptives(budget, trial, folder, priced, measured) for budget in trial.per_sample]
    orders: dict[str, list[Row]] = {}
    for plan in plans(trial, folder, priced)["order"]:
        orders.setdefault(plan.rule.removeprefix("order:"), []).append(measured[plan.assignment])
    classifier = TrainedClassifier.load(folder / "classifier.safetensors")
    told |= {
        "trial": name,
        "rows": [row.to_data() for row in sorted(measured.values(), key=lambda row: row.share)],
        "table_7": {order: [row.to_data() for row in group] for order, group in orders.items()},
        "costs": priced.costs.to_data(),
        "classifier_accuracy": classifier.accuracy,
        "training": {n: Run(folder / n).recipe.hash for n in trial.members},
        "samples": f"{NUM} for each of the seeds {', '.join(map(str, SEEDS))}",
        "provenance": provenance(),
    }
    write_text(results / f"search-{name}.json", json.dumps(told, indent=1, allow_nan=False))
    write_bytes(folder / "frontier.png", picture(name, measured, told, names, trial.steps))
    for search, budgets in told["budgets"].items():
        for one in budgets:
            against = one.get("against_best_fraction")
            print(
                search,
                one["budget"],
                f"{one['found']['distance']:.3f}",
                against and f"{against['gap']:+.3f} ± {against['half_width']:.3f} {against['said']}",
            )
    print(json.dumps({k: told[k] for k in ("per_sample",)}, indent=1))


def picture(
    name: str, measured: dict[tuple[str, ...], Row], told: dict[str, Any], names: Sequence[str], steps: int
) -> bytes:
    dots = []
    chosen = {hs.Plan.from_data(one["found"]["plan"]).assignment for one in told["budgets"].get("pair", [])}
    for assignment, row in measured.items():
        counts = row.plan.counts
        kind: Kind = "other"
        label = ""
        largest_alone = len(counts) == 1 and row.plan.assignment[0] == names[-1]
        if assignment in chosen:
            kind, label = "found", str(row.plan)
            if largest_alone and row.plan.steps < steps:  # a point of that line, too
                dots.append(Dot("fewer steps", "", row.share, row.score.value, row.score.half_width))
        elif largest_alone:
            kind, label = ("largest", "") if row.plan.steps == steps else ("fewer steps", f"{row.plan.steps} steps")
        elif len(counts) == 1 and row.plan.assignment[0] == names[0]:
            kind = "cheapest"
        elif row.plan.steps == steps and is_plain(_of(row), names) and set(counts) == {names[0], names[-1]}:
            kind, label = "fraction", f"{counts[names[0]] / row.plan.steps:.2g}"
        dots.append(Dot(kind, label, row.share, row.score.value, row.score.half_width))
    return frontier_png(
        dots, [], BUDGETS, f"{name}: {NUM:,} images for each of {len(SEEDS)} seeds a plan", "Fréchet distance"
    )


PARTS = ("members", "find", "measure", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=list(TRIALS))
    parser.add_argument("--out", type=Path, required=True, help="folder for everything but the results")
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    parser.add_argument("--seeds", default="0,1,2", help="of measure: which of the three")
    parser.add_argument("--searches", default="order,pair,all,one-budget", help="which of them to find plans by")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    known = parser.parse_args()
    trial, folder = TRIALS[known.trial], known.out / known.trial
    for part in [known.part] if known.part else PARTS:
        if part == "members":
            train(trial, folder)
        elif part == "find":
            find(trial, folder, known.searches.split(","))
        elif part == "measure":
            seeds = [int(seed) for seed in known.seeds.split(",")]
            measure(trial, folder, seeds)
            per_sample(trial, folder, seeds)
        else:
            report(known.trial, trial, folder, known.results)


if __name__ == "__main__":
    main()
