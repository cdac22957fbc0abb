"""Runs of part A that are gone on with, and that are tuned. Tiny networks on digits."""

from dataclasses import replace

import pytest
import torch

import hemstitch as hs
from hemstitch.run import Run
from reproduction import attempts, fields, networks, switch


@pytest.fixture
def tiny(field, monkeypatch):
    """Part A in small: six steps, a checkpoint after every two."""

    def recipe(where, family, seed, steps=6):
        sizes = {"width": 8, "depth": 1, "heads": 2, "batch": 8, "checkpoint_every": 2, "log_every": 1}
        return networks.transformer(where, f"tiny-{family}-{seed}", family, seed=seed, steps=steps, **sizes)

    monkeypatch.setattr(switch, "recipe", recipe)
    monkeypatch.setattr(switch, "STEPS", 6)
    monkeypatch.setattr(switch, "EVERY", 2)
    return recipe


def weights(run):
    return hs.load(run).net.state_dict()


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_that_is_gone_on_with_is_one_run(tiny, field, tmp_path):
    networks.train(tiny(field, "dit", 0), tmp_path / "begun")
    longer = attempts.GoneOn("longer", ("dit",), (8, 12), 4)
    mine = longer.recipe(field, "longer", "dit", 0)
    told = longer.train(mine, tmp_path / "begun", tmp_path / "longer")
    networks.train(tiny(field, "dit", 0, 12), tmp_path / "whole")
    assert same(weights(tmp_path / "longer"), weights(tmp_path / "whole"))
    assert told["steps"] == 12
    assert set(told["sittings"]) == {"0", "6"}
    assert Run(tmp_path / "begun").newest().name == "step_00000006"  # and part A's is as it was
    assert same(
        networks.at(tmp_path / "longer", 8).net.state_dict(), networks.at(tmp_path / "whole", 8).net.state_dict()
    )


def test_a_run_that_is_tuned_begins_with_the_averaged_weights(tiny, field, tmp_path):
    networks.train(tiny(field, "dit", 0), tmp_path / "begun")
    tuned = attempts.Tuned("tuned", ("dit",), (2,), 4, learning_rate=1e-12)
    mine = tuned.recipe(field, "tuned", "dit", 0)
    tuned.train(mine, tmp_path / "begun", tmp_path / "tuned")
    first, last = weights(tmp_path / "begun"), weights(tmp_path / "tuned")
    for key in first:
        torch.testing.assert_close(last[key], first[key], atol=1e-8, rtol=0)
    assert mine.train.seed == attempts.TUNING_SEED
    fast = replace(tuned, learning_rate=1e-1)
    fast.train(fast.recipe(field, "fast", "dit", 0), tmp_path / "begun", tmp_path / "fast")
    assert not same(weights(tmp_path / "fast"), first)


def test_what_differs_from_part_a_is_what_is_said(tmp_path):
    where = fields.fashion(tmp_path)
    base = switch.recipe(where, "dit", 1)
    changed = {
        key: set(attempt.recipe(where, base.name, "dit", 1).difference(base))
        for key, attempt in attempts.ATTEMPTS.items()
    }
    assert changed == {
        "cooled": {"train.learning_rate", "train.seed"},
        "process": {"process.schedule", "process.prediction"},
        "longer": set(),
    }
    steps = {key: attempt.recipe(where, "x", "dit", 1).train.steps for key, attempt in attempts.ATTEMPTS.items()}
    assert steps == {"cooled": 1000, "process": 2000, "longer": 6000}
    for attempt in attempts.ATTEMPTS.values():
        every = attempt.recipe(where, "x", "dit", 1).train.checkpoint_every
        assert all(mark % every == 0 for mark in attempt.marks)
