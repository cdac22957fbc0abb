"""The arithmetic of the search's benchmark. Nothing is trained or timed."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import search as benchmark
from hemstitch import Plan
from hemstitch.evaluate.score import Score
from hemstitch.stitch.search.frontier import Option


def row(small, distance, share):
    plan = Plan.steps_each({"small": small, "large": 10 - small})
    return benchmark.Row(plan, "fraction", share, Score(distance, np.array([distance, distance + 0.1])), [distance])


def test_plans_to_predict_are_many_and_always_the_same():
    plans = benchmark.strangers(["small", "middle", "large"], 12)
    assert plans == benchmark.strangers(["small", "middle", "large"], 12)
    assert len({plan.assignment for plan in plans}) == len(plans) >= 30
    assert {Option("middle", False).member} <= {name for plan in plans for name in plan.assignment}


def test_time_saved_at_equal_distance_is_read_off_the_fractions():
    rows = {r.plan.assignment: r for r in (row(10, 9.0, 0.1), row(5, 5.0, 0.5), row(0, 3.0, 1.0))}
    told = benchmark.saved(row(2, 4.0, 0.3), rows, ["small", "large"], 10)
    assert told["fractions_need"] == pytest.approx(0.75)
    assert told["saved"] == pytest.approx(1 - 0.3 / 0.75)
    assert benchmark.saved(row(2, 2.0, 0.3), rows, ["small", "large"], 10) is None


def test_the_mean_over_seeds_pairs_its_draws():
    a = benchmark.pooled([Score(1.0, np.array([0.9, 1.1])), Score(3.0, np.array([2.9, 3.1]))])
    assert a.value == 2
    assert a.draws.tolist() == pytest.approx([1.9, 2.1])
