"""Round trip and rules of plans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemstitch import HemstitchError, Plan, StitchError

names = st.sampled_from(["small", "middle", "large"])


@given(st.lists(names, min_size=1, max_size=60))
def test_json_round_trip(assignment):
    plan = Plan.explicit(assignment)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("steps", [10, 50, 100, 250, 1000])
def test_a_decimal_fraction_counts_steps_exactly(steps):
    for hundredths in range(101):
        plan = Plan.fractions({"small": hundredths / 100, "large": 1 - hundredths / 100}, steps)
        assert plan.counts.get("small", 0) == hundredths * steps // 100
        assert plan.steps == steps


def test_29_hundredths_of_100_is_29():
    assert Plan.fractions({"small": 0.29, "large": 0.71}, 100).counts == {"small": 29, "large": 71}


def test_the_remainder_goes_to_the_last():
    plan = Plan.fractions({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 10)
    assert plan.counts == {"a": 3, "b": 3, "c": 4}
    assert str(plan) == "a ×3 → b ×3 → c ×4"


@pytest.mark.parametrize(("r", "small"), [(0, 1), (0.25, 2), (0.5, 3), (0.75, 4)])
def test_the_released_lcm_rule(r, small):
    """PAPERS 2.1: at 4 steps, r = .25, .5, .75 gives 2, 3, 4 small steps."""
    plan = Plan.released("started", {"small": r, "large": 1 - r}, [999, 749, 499, 249])
    assert plan.counts["small"] == small


def test_the_released_stable_diffusion_rule():
    for i in range(11):
        plan = Plan.released("completed", {"small": i / 10, "large": 1 - i / 10}, range(50, 0, -1))
        assert plan.counts.get("small", 0) == 5 * i


def test_fraction_is_told_for_plain_plans_only():
    assert Plan.fractions({"s": 0.4, "l": 0.6}, 10).fraction == 0.4
    assert Plan.explicit(["s", "l", "s"]).fraction is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Plan.fractions({"a": 0.4, "b": 0.4}, 10), "sum to 1"),
        (lambda: Plan.fractions({"a": 1.4, "b": -0.4}, 10), "lies in 0"),
        (lambda: Plan.fractions({}, 10), "at least one member"),
        (lambda: Plan.steps_each({"a": -1, "b": 2}), "whole number"),
        (lambda: Plan.steps_each({"a": 0}), "at least one step"),
        (lambda: Plan.explicit("small"), "list of names"),
        (lambda: Plan.explicit(["a", 3]), "names a member"),
        (lambda: Plan.released("guess", {"a": 1.0}, [1]), "released rules are"),
        (lambda: Plan.from_json("[1]"), "JSON object"),
        (lambda: Plan.from_json("{"), "JSON"),
        (lambda: Plan.from_json('{"rule": "x", "steps": 1}'), "has the keys"),
        (lambda: Plan.from_json('{"rule": "x", "steps": 1, "assignment": [["a", 1]], "extra": 1}'), "has the keys"),
        (
            lambda: Plan.from_json('{"rule": "x", "steps": 2, "assignment": [["a", 1]]}'),
            "adds up to the steps it says.*; 1 and 2",
        ),
        (lambda: Plan.from_json('{"rule": "x", "steps": 1, "assignment": [["a", true]]}'), "list of"),
    ],
)
def test_bad_plans_are_refused(make, said):
    with pytest.raises(HemstitchError, match=said):
        make()


def test_stitch_errors_are_value_errors():
    assert issubclass(StitchError, ValueError)
