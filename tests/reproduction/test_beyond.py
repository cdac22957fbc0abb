"""What goes beyond the papers: guidance by a worse model, and what a found plan is held against. Nothing is trained."""

import json

import numpy as np
import pytest
import torch

import hemstitch as hs
from hemstitch import Plan
from hemstitch.denoiser import NetDenoiser
from hemstitch.models import build
from hemstitch.process import Process
from hemstitch.stitch.search.cost import Cost, Costs
from reproduction import beyond, networks, stitching
from reproduction.work import Ledger


def network(field, seed, schedule="cosine"):
    recipe = networks.transformer(field, "tiny", width=8, depth=1, heads=2)
    net, random = build(recipe.net), torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        weight.data = 0.05 * torch.randn(weight.shape, generator=random)
    return NetDenoiser(net.eval(), Process(schedule, "v"), field.data().spec(null_label=True))


@pytest.fixture
def pair(field):
    return network(field, 0), network(field, 1)


def answers(denoiser, x, t, y):
    with torch.no_grad():
        return denoiser(x, t, y).x0


def test_a_guide_pushes_away_from_itself(pair):
    model, guide = pair
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor([50.0, 300.0, 700.0, 950.0]), torch.tensor([0, 3, 5, 9])
    good, bad = answers(model, x, t, y), answers(guide, x, t, y)
    for scale, wanted in ((1.0, good), (0.0, bad), (2.0, 2 * good - bad)):
        torch.testing.assert_close(answers(beyond.Autoguided(model, guide, scale), x, t, y), wanted)
    assert (good - bad).abs().max() > 0.01


def test_a_guide_at_scale_one_samples_as_the_model_alone(pair):
    model, guide = pair
    look = {"steps": 4, "seeds": range(4), "guidance": 1.0}
    alone, guided = (hs.generate(one, [0, 1, 2, 3], **look) for one in (model, beyond.Autoguided(model, guide, 1.0)))
    torch.testing.assert_close(alone, guided)


def test_a_guide_is_of_the_same_process(pair, field):
    with pytest.raises(hs.HemstitchError, match="one process"):
        beyond.Autoguided(pair[0], network(field, 1, "linear"), 2.0)


def row(distance, spread=1.0):
    draws = distance + spread * np.array([-1.0, 0.0, 1.0])
    return {"distance": {"value": distance, "error": spread, "samples": 10}, "draws": draws.tolist()}


class MadeUp:
    """A pair whose plans have distances by rule: each step of the small member costs one, but late ones ten."""

    def table(self, name, plans, look):
        def distance(plan):
            late = [i for i, member in enumerate(plan.assignment) if member == "small" and i >= plan.steps // 2]
            return 50 - plan.steps + plan.counts.get("small", 0) + 9 * len(late) + 5.0

        self.looks = [*getattr(self, "looks", []), look]
        return {"plans": {key: row(distance(plan)) for key, plan in plans.items()}}


def test_a_found_plan_is_held_against_the_best_that_fits_its_budget(tmp_path):
    entries = (Cost("small", True, 1.0, 0, 0, 0), Cost("large", True, 10.0, 0, 0, 0))
    costs = Costs("CPU", "float32", 1, 8, "ddim", entries, "").to_data()
    plan = Plan.steps_each({"small": 20, "large": 15})
    results = [{"budget": budget, "plan": json.loads(plan.to_json())} for budget in beyond.BUDGETS]
    ledger = Ledger(tmp_path)
    ledger.path("beyond/searched").parent.mkdir(parents=True)
    ledger.path("beyond/searched").write_text(json.dumps({"costs": costs, "results": results}))
    pair = MadeUp()
    told = beyond.found(pair, ledger)["plans"]
    first, again = pair.looks
    assert again.chunks.start == first.chunks.stop  # rivals are held against on samples that did not choose them
    assert told["found 0.5"]["share"] == pytest.approx(0.34)
    half = told["found 0.5"]
    assert half["to_best_fraction"]["best"] == "fraction 0.56"  # the most of the large member that half the time allows
    assert told["fraction 0.56"]["share"] <= 0.5 < told["fraction 0.5"]["share"]
    gap = half["to_best_fraction"]["gap"]
    assert gap == pytest.approx(half["distance"]["value"] - told["fraction 0.56"]["distance"]["value"])
    assert half["to_best_steps"]["best"] == "25 steps"
    whole = told["found 0.9"]
    assert told[whole["to_best_fraction"]["best"]]["share"] <= 0.9
    assert whole["to_best_steps"]["best"] == "45 steps"


def test_a_task_of_every_part_has_settings_and_a_name_of_its_own(tmp_path):
    tasks = beyond.tasks(tmp_path)
    assert len({task.name for task in tasks}) == len(tasks) == 13
    assert len({task.mark for task in tasks}) == len(tasks)
    assert "stitching/fractions" in next(task for task in tasks if task.name == "beyond/found").needs


def test_seams_and_guides_are_judged_by_samples_that_chose_nothing(pair, field, tmp_path, monkeypatch):
    for module in (beyond, stitching):
        monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(beyond, "SHORT", stitching.Look(steps=6, num=16))
    monkeypatch.setattr(beyond, "CHOSEN_BY", 16)
    monkeypatch.setattr(beyond, "JUDGED", 32)
    monkeypatch.setattr(beyond, "GUIDES", (1.5, 3.0))
    both = dict(zip(("small", "large"), pair, strict=True))
    entries = [
        Cost(name, mode, cost, 0, 0, 0) for name, cost in (("small", 1.0), ("large", 5.0)) for mode in (False, True)
    ]
    costs = {"costs": Costs("CPU", "float32", 1, 8, "ddim", tuple(entries), "").to_data()}
    ledger = Ledger(tmp_path / "results")
    ledger.path("stitching/costs").parent.mkdir(parents=True)
    ledger.path("stitching/costs").write_text(json.dumps(costs))
    told = beyond.per_sample(stitching.Pair(field, tmp_path / "kept", lambda: both), ledger)
    assert set(told["fractions"]) == {"0.4", "0.6", "0.8"}
    assert told["samples"] == 32
    found = beyond.guided(field, lambda: both, tmp_path / "guided")
    assert len(found["models"]) == 5
    assert all(row["distance"]["samples"] == 32 for row in found["models"].values())
    for kind, best in found["best"].items():
        mine = {name: row["chosen_by"] for name, row in found["models"].items() if name.startswith(kind)}
        assert best == min(mine, key=mine.get)
