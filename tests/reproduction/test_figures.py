"""The arithmetic behind the document: curves, intervals, verdicts, and tables that land in their place."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from reproduction.write import filled

from reproduction import stitching, switch, tables


def curve(at_end, power=1.0):
    return {mark: at_end * (switch.STEPS / mark) ** power for mark in switch.MARKS}


def test_an_interval_over_three_seeds_is_student_s():
    told = switch.interval([1.0, 2.0, 3.0])
    assert told["mean"] == 2
    assert told["half_width"] == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert switch.interval([1.0])["half_width"] is None


def test_a_gap_is_of_pairs_of_seeds():
    mine = {seed: curve(10.0 + seed) for seed in switch.SEEDS}
    other = {seed: curve(12.0 + seed) for seed in switch.SEEDS}
    told = switch.against(mine, other, switch.STEPS, switch.STEPS)
    assert told["gap"]["mean"] == pytest.approx(-2)
    assert told["gap"]["half_width"] == pytest.approx(0, abs=1e-9)
    assert tables.verdict(told["gap"]) == "better"
    assert told["unpaired"]["said"] == "no difference"  # seeds spread by more than they differ


def test_between_judged_checkpoints_the_logarithm_is_linear():
    left, right = switch.MARKS[0], switch.MARKS[1]
    some = {left: 100.0, right: 25.0, **dict.fromkeys(switch.MARKS[2:], 20.0)}
    assert switch.value_at(some, (left + right) / 2) == pytest.approx(50)
    assert switch.reached(some, 50.0) == pytest.approx((left + right) / 2)
    assert switch.reached(some, 10.0) is None


def test_the_share_of_iterations_to_reach_another():
    slow = {seed: curve(10.0) for seed in switch.SEEDS}
    fast = {seed: curve(7.0) for seed in switch.SEEDS}
    assert switch.reaching(fast, slow)["mean"] == pytest.approx(0.7, abs=0.03)
    assert switch.reaching(slow, fast)["mean"] is None


def test_a_verdict_says_no_more_than_its_interval():
    assert tables.verdict({"mean": -1.0, "half_width": 0.9}) == "better"
    assert tables.verdict({"mean": -1.0, "half_width": 1.1}) == "undecided"
    assert tables.verdict({"mean": 1.0, "half_width": 0.9}) == "worse"
    assert tables.verdict({"mean": 1.0, "half_width": None}) == "one seed"


def test_figures_have_the_digits_that_their_interval_leaves():
    assert tables.pm(12.3456, 0.123) == "12.35 ± 0.12"
    assert tables.pm(123.456, 12.3) == "123 ± 12"
    assert tables.pm(0.81234, 0.004) == "0.812 ± 0.004"


def test_speed_is_a_median_of_ratios_within_a_round():
    times = {"0": [1.0, 2.0, 4.0], "0.5": [0.6, 1.2, 2.4], "1": [0.2, 0.4, 0.8]}
    told = stitching.speed(times)
    assert told["0"] == {"times": 1, "of_ideal": 1}
    assert told["0.5"]["times"] == pytest.approx(1 / 0.6)
    assert told["0.5"]["of_ideal"] == pytest.approx(1)
    assert told["1"]["times"] == pytest.approx(5)


def test_orders_and_mixes_have_the_steps_they_say():
    alone, *orders = stitching.orders(50).values()
    assert alone.counts == {"large": 50}
    for plan in orders:
        assert plan.counts == {"small": 25, "large": 25}
    mixes = stitching.mixes(50)
    assert mixes["20:40:40"].counts == {"small": 10, "middle": 20, "large": 20}
    assert all(plan.steps == 50 for plan in mixes.values())
    assert len({plan.assignment for plan in mixes.values()}) == len(mixes) == 9


def test_tables_land_in_their_place_and_nowhere_else():
    text = "before\n<!-- a -->\nold\n<!-- / -->\nbetween\n<!-- b -->\n<!-- / -->\nafter\n"
    once = filled(text, {"a": "| A |", "b": "| B \\1 |"})
    assert once == "before\n<!-- a -->\n| A |\n<!-- / -->\nbetween\n<!-- b -->\n| B \\1 |\n<!-- / -->\nafter\n"
    assert filled(once, {"a": "| A |", "b": "| B \\1 |"}) == once
    with pytest.raises(ValueError, match="0 places for c"):
        filled(text, {"c": ""})
