"""Tables of plans: what is sampled, what is kept, what is held against what. Untrained networks on digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import hemstitch as hs
from hemstitch import Plan
from hemstitch.denoiser import NetDenoiser
from hemstitch.evaluate.score import Score
from hemstitch.models import build
from hemstitch.stitch.search.cost import Cost, Costs
from reproduction import fields, networks, stitching

LOOK = stitching.Look(steps=4, guidance=2.0, num=16)


def members(field):
    """Two untrained networks that disagree: initialised as they are, they would both say nothing."""
    recipe, found = networks.transformer(field, "tiny", width=8, depth=1, heads=2), {}
    for number, name in enumerate(("small", "large")):
        net = build(recipe.net)
        random = torch.Generator().manual_seed(number)
        for weight in net.parameters():
            weight.data = 0.02 * torch.randn(weight.shape, generator=random)
        found[name] = NetDenoiser(net.eval(), recipe.process, field.data().spec(null_label=True))
    return found


def test_a_table_is_of_what_generate_samples_and_nothing_is_sampled_twice(field, tmp_path, monkeypatch):
    monkeypatch.setattr(stitching, "BATCH", 8)
    both = members(field)
    pair = stitching.Pair(field, tmp_path / "kept", lambda: both)
    plans = {"0": Plan.steps_each({"large": 4}), "0.5": Plan.steps_each({"small": 2, "large": 2})}
    told = pair.table("table", plans, LOOK)
    labels = torch.arange(16) % 10
    for key, plan in plans.items():
        seeds = [(stitching.SEED, i) for i in range(16)]
        x = hs.generate(hs.Stitched(both, plan), labels, seeds=seeds, guidance=2.0, steps=4)
        wanted = field.scores(field.rows(x), labels)
        assert told["plans"][key]["distance"]["value"] == pytest.approx(wanted["distance"].value, rel=1e-4)
        assert told["plans"][key]["accuracy"]["value"] == wanted["accuracy"].value
        assert Plan.from_data(told["plans"][key]["plan"]) == plan
        assert fields.distance_of(told["plans"][key]).error == pytest.approx(wanted["distance"].error, rel=1e-3)
    assert told["plans"]["0"]["to_largest"] == {"gap": 0, "half_width": 0, "said": "no difference"}
    assert told["look"] == vars(LOOK) | {"seed": stitching.SEED, "batch": 8}

    def refuse(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr("hemstitch.stitch.search.store.sampled", refuse)
    assert pair.table("table", plans, LOOK) == told


def test_one_fraction_may_be_looked_at_closer(field, tmp_path, monkeypatch):
    monkeypatch.setattr(stitching, "BATCH", 8)
    both = members(field)
    pair, plans = stitching.Pair(field, tmp_path / "kept", lambda: both), stitching.fractions((0.0, 0.4, 1.0), 4)
    told = pair.table("table", plans, replace(LOOK, num=8), closer=16)
    more = pair.table("table", plans, replace(LOOK, num=16))["plans"]
    assert told["plans"]["0"]["distance"]["samples"] == 8
    assert told["closer"]["whole"] == more["0"]["distance"]
    assert told["closer"]["mixed"] == more["0.4"]["distance"]
    assert {key: told["closer"][key] for key in ("gap", "half_width", "said")} == more["0.4"]["to_largest"]


def costs(small, large):
    entries = (Cost("small", True, small, 0, 0, 0), Cost("large", True, large, 0, 0, 0))
    return Costs("CPU", "float32", 1, 8, "ddim", entries, "")


@pytest.mark.parametrize(("sampler", "wanted"), [("ddim", 8), ("heun", 9)])
def test_fewer_steps_take_at_least_as_long_as_the_fraction(sampler, wanted):
    """DDIM: 5 * 8 + 5 * 4 = 60 is 7.5 steps of 8. Heun, whose last step takes one call: 9 * 8 + 10 * 4 = 112, and 8
    steps take 15 * 8 = 120, 7 only 104. With the small one at 5.9: 131, and 9 steps take 136."""
    small = 4.0 if sampler == "ddim" else 5.9
    look = stitching.Look(steps=10, sampler=sampler)
    found = stitching.shorter(costs(small, 8.0), (0.0, 0.5, 1.0), look)
    assert found == {f"{wanted} steps, as long as 0.5": Plan.steps_each({"large": wanted})}


def test_samples_may_begin_further_on(field, tmp_path, monkeypatch):
    monkeypatch.setattr(stitching, "BATCH", 8)
    both = members(field)
    pair, plan = stitching.Pair(field, tmp_path / "kept", lambda: both), Plan.steps_each({"small": 2, "large": 2})
    told = pair.table("table", {"a": plan}, replace(LOOK, first=8))["plans"]["a"]
    seeds, labels = [(stitching.SEED, i) for i in range(8, 24)], torch.arange(8, 24) % 10
    x = hs.generate(hs.Stitched(both, plan), labels, seeds=seeds, guidance=2.0, steps=4)
    wanted = field.scores(field.rows(x), labels)
    assert told["distance"]["value"] == pytest.approx(wanted["distance"].value, rel=1e-4)
    assert told["accuracy"]["value"] == wanted["accuracy"].value


def test_fractions_are_held_against_fewer_steps_of_the_same_time():
    def plan(distance, spread):
        draws = distance + spread * np.array([-1.0, 0.0, 1.0])
        score = Score(distance, draws, resampled=10)
        return {"distance": {"value": distance, "error": score.error, "samples": 10}, "draws": draws.tolist()}

    mixed = {"0": plan(5, 1), "0.5": plan(6, 1), "0.8": plan(9, 1)}
    fewer = {"14 steps, as long as 0.5": plan(6.5, 1.1), "8 steps, as long as 0.8": plan(9, 1.1)}
    found = stitching.at_equal_time(mixed, fewer)
    assert set(found) == {"0.5", "0.8"}
    assert found["0.5"]["gap"] == pytest.approx(-0.5)
    assert found["0.5"]["half_width"] == pytest.approx(1.96 * 0.1)  # of pairs, not of two sets of samples
    assert (found["0.5"]["said"], found["0.8"]["said"]) == ("lower", "no difference")
