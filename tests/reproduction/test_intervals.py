"""Table 6 and figure 2 of the reproduction: what is fine-tuned on what, and the arithmetic. On 8x8 digits."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

import hemstitch as hs
from hemstitch.run import Run
from reproduction import intervals, networks
from reproduction.intervals import PLANS

RATE = 0.03


@pytest.fixture(scope="module")
def runs(field, tmp_path_factory):
    """Three members after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    paths = {}
    for depth, name in enumerate(("small", "middle", "large"), 1):
        recipe = networks.transformer(
            field,
            name,
            width=16,
            depth=depth,
            heads=2,
            patch=2,
            batch=4,
            steps=4,
            log_every=1,
            learning_rate=RATE,
            ema=0.5,
        )
        networks.train(recipe, folder / name)
        paths[name] = folder / name
    return paths


def recipe_of(runs, member, plan, seed=0):
    return intervals.tuned(Run(runs[member]).recipe, runs[member], plan, member, seed)


@pytest.mark.parametrize("plan", PLANS.values(), ids=str)
def test_own_times_are_all_times_shared_out(runs, plan):
    held = Counter()
    for member in plan.counts:
        times = recipe_of(runs, member, plan).times
        keys = hs.seeds.keys([(0, i) for i in range(20_000)])
        mine = set(times.draw(keys, torch.device("cpu")).tolist())
        for low, high in times.intervals:
            held.update(range(int(low), int(high)))
            assert low <= min(mine)
            assert max(mine) < high
    assert held == Counter(range(1000))


def test_own_times_differ_from_all_times_in_nothing_else(runs):
    own, everything = (recipe_of(runs, "small", plan) for plan in (PLANS["two"], None))
    assert everything.train.intervals == ()
    assert own.difference(everything) == ["train.intervals"]
    trained = Run(runs["small"]).recipe
    assert set(trained.difference(everything)) == {"name", "train.init", "train.seed"}
    assert recipe_of(runs, "small", PLANS["three"]) == own


def test_fine_tuning_begins_from_the_averaged_weights(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "ITERATIONS", 1)
    result = intervals.tune(runs["small"], tmp_path / "own", PLANS["two"], "small", 0)
    assert result["intervals"][0][1] == 1000  # the noisiest
    assert result["steps"] == 1
    before, after = hs.load(runs["small"]).net.state_dict(), hs.load(tmp_path / "own").net.state_dict()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.5 * RATE * 1.01  # of a step that is RATE long the average takes half


def test_a_plan_is_sampled_with_the_members_it_is_given(field, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "NUM", 20)
    plan = hs.Plan.fractions({"small": 0.5, "large": 0.5}, 4)
    paths = {"small": runs["small"], "large": runs["large"]}
    first = intervals.judge(field, paths, plan, tmp_path / "a", 0)
    again = intervals.judge(field, paths, plan, tmp_path / "b", 0)
    assert first == again
    assert len(first["draws"]) > 1
    other = intervals.judge(field, paths | {"large": runs["middle"]}, plan, tmp_path / "c", 0)
    assert other["distance"] != first["distance"]
    assert intervals.judge(field, paths, plan, tmp_path / "d", 1)["distance"] != first["distance"]


def test_every_fine_tuning_is_done_once_and_all_needs_are_made(tmp_path):
    found = intervals.tasks(tmp_path)
    names = [task.name for task in found]
    assert len(set(names)) == len(names)
    pieces = {name.split("/")[2] for name in names if name.startswith("intervals/tuned/")}
    own = {"small-0-25", "middle-25-40", "large-40-50", "large-25-50"}
    assert pieces == own | {"small-all", "middle-all", "large-all"}
    given = {"switch/field", "switch/trained/dit-0", "stitching/trained/small", "stitching/trained/middle"}
    assert {need for task in found for need in task.needs} - set(names) == given
    needs = {task.name: set(task.needs) for task in found}
    assert needs["intervals/judged/two/own times/1"] == {
        "switch/field",
        "intervals/tuned/small-0-25/1",
        "intervals/tuned/large-25-50/1",
    }


def result(value, draws):
    figure = {"value": value, "error": 0.1, "samples": 100}
    return {"distance": figure, "recall": figure, "draws": draws, "took": {"seconds": 3.0}}


def test_gaps_are_of_pairs_and_their_interval_is_of_the_seeds():
    by_way = {
        "as trained": [result(v, [v - 1, v + 1]) for v in (10.0, 20.0, 30.0)],
        "own times": [result(v, [v - 1, v + 1]) for v in (9.0, 18.0, 27.0)],
        "all times": [result(v, [v - 1, v + 1]) for v in (9.9, 19.9, 29.9)],
    }
    told = intervals.row(by_way, PLANS["two"])
    gap = told["gaps"]["own times less as trained"]
    assert gap["gap"] == pytest.approx(-2)
    assert gap["half_width"] == pytest.approx(4.302653 / 3**0.5)  # Student's, of two degrees; the deviation is 1
    assert gap["said"] == "no difference"
    assert gap["by_seed"] == pytest.approx([-1, -2, -3])
    assert told["gaps"]["all times less as trained"]["said"] == "lower"
    assert told["own times"]["distance"]["mean"] == pytest.approx(18)
    assert told["own times"]["distance"]["half_width"] == pytest.approx(4.302653 * 9 / 3**0.5)
    assert set(told["own times"]) == {"distance", "recall"}


def test_curves_of_groups_have_a_mean_and_its_error():
    groups = [{"a": {"mean": [1.0, 0.0]}}, {"a": {"mean": [3.0, 0.0]}}]
    assert intervals.over(groups) == {"a": {"mean": {"value": [2.0, 0.0], "error": [1.0, 0.0]}}}


def test_curves_are_of_every_step_and_can_be_written(runs, monkeypatch):
    monkeypatch.setattr(intervals, "GROUP", 4)
    monkeypatch.setattr(intervals, "STEPS", 5)
    told = json.loads(json.dumps(intervals.curves(runs, 0), allow_nan=False))["curves"]
    assert {name: len(band["mean"]) for name, band in told["latents"].items()} == {"small": 6, "middle": 6}
    assert told["latents"]["small"]["mean"][0] == pytest.approx(1)  # the same noise
    assert len(told["eps"]["middle"]["distance"]["high"]) == 5
    assert set(told["unsettled"]) == {"small", "middle", "large"}
    assert len(told["power"]["large"]["low"]) == 5
    alike = intervals.curves({"twin": runs["large"], "large": runs["large"]}, 0)["curves"]
    assert np.allclose(alike["latents"]["twin"]["mean"], 1)
    assert np.allclose(alike["x0"]["twin"]["distance"]["mean"], 0)
    assert intervals.curves(runs, 1)["curves"]["latents"] != told["latents"]
