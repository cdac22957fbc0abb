"""Orders of two members: the counts, where the steps lie, and the law of the drawn one."""

import itertools
import math

import numpy as np
import pytest

from hemstitch import HemstitchError, Plan
from hemstitch.stitch.orders import MOST_DRAWN, ORDERS, decreasing, falling, log_counts, ordered


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50])
def test_every_order_has_the_steps_of_the_one_rule(name, steps):
    for share in [*(i / 20 for i in range(21)), 0.29, 1 / 3]:
        plan = ordered(name, "s", "l", steps, share)
        rule = Plan.fractions({"s": share, "l": 1 - share}, steps)
        assert plan.steps == steps
        assert plan.counts.get("s", 0) == rule.counts.get("s", 0)
        assert plan.rule == f"order:{name}"


@pytest.mark.parametrize("name", ORDERS)
def test_29_hundredths_of_100_is_29_in_every_order(name):
    assert ordered(name, "s", "l", 100, 0.29).counts["s"] == 29


def letters(name, steps, share, **options):
    return "".join(ordered(name, "s", "L", steps, share, **options).assignment)


@pytest.mark.parametrize(
    ("name", "steps", "share", "expected"),
    [
        ("small_to_large", 8, 0.5, "ssssLLLL"),
        ("large_to_small", 8, 0.5, "LLLLssss"),
        ("large_to_small", 5, 0.2, "LLLLs"),
        ("interleaved", 8, 0.5, "sLsLsLsL"),
        ("interleaved", 9, 0.5, "sLsLsLsLL"),
        ("interleaved", 9, 1 / 3, "sLLsLLsLL"),
        ("interleaved", 8, 0.75, "sssLsssL"),
        ("interleaved", 4, 0, "LLLL"),
        ("interleaved", 4, 1, "ssss"),
    ],
)
def test_where_the_steps_lie(name, steps, share, expected):
    assert letters(name, steps, share) == expected


@pytest.mark.parametrize("steps", [10, 50, 97])
def test_interleaved_is_even_at_any_share(steps):
    """Any two stretches of the same length differ by at most one small step."""
    for small in range(1, steps):
        taken = np.array([name == "s" for name in ordered("interleaved", "s", "L", steps, small / steps).assignment])
        assert taken[0]
        for length in (2, 3, 5, steps // 2):
            stretches = np.convolve(taken, np.ones(length), "valid")
            assert stretches.max() - stretches.min() <= 1


def law(steps, small):
    """Every order of so many small steps and its chance, by enumeration."""
    p = [1 - (i + 0.5) / steps for i in range(steps)]
    weights = {
        order: math.prod(p[i] if taken else 1 - p[i] for i, taken in enumerate(order))
        for order in itertools.product([False, True], repeat=steps)
        if sum(order) == small
    }
    total = sum(weights.values())
    return {order: weight / total for order, weight in weights.items()}, total


@pytest.mark.parametrize(("steps", "small"), [(1, 0), (4, 2), (6, 3), (7, 2), (7, 7)])
def test_the_table_of_counts_is_the_sum_over_all_orders(steps, small):
    assert math.exp(log_counts(steps, small)[0, small]) == pytest.approx(law(steps, small)[1], rel=1e-12)


@pytest.mark.parametrize(("steps", "small"), [(4, 2), (6, 3), (6, 1)])
def test_decreasing_draws_each_order_as_often_as_its_law_says(steps, small):
    """χ² over all orders; the seeds are fixed, and a right law exceeds this bound for one set of them in 10,000."""
    from scipy.stats import chi2

    exact, _ = law(steps, small)
    draws = 2000
    seen = dict.fromkeys(exact, 0)
    for seed in range(draws):
        seen[tuple(decreasing(steps, small, seed))] += 1
    statistic = sum((seen[order] - draws * chance) ** 2 / (draws * chance) for order, chance in exact.items())
    assert statistic < chi2.isf(1e-4, len(exact) - 1)


def test_the_marginals_of_decreasing_fall_and_are_exact():
    steps, small, draws = 8, 4, 3000
    exact, _ = law(steps, small)
    marginals = [sum(chance for order, chance in exact.items() if order[i]) for i in range(steps)]
    drawn = np.mean([decreasing(steps, small, seed) for seed in range(draws)], axis=0)
    for told, found in zip(marginals, drawn, strict=True):
        assert abs(found - told) < 4 * math.sqrt(told * (1 - told) / draws)
    assert marginals == sorted(marginals, reverse=True)
    # the condition moves the marginals away from the unconditional chances by more than the draws' error
    assert max(abs(np.array(marginals) - falling(steps))) > 4 * math.sqrt(0.25 / draws)


def test_a_seed_decides_a_drawn_order():
    assert letters("decreasing", 50, 0.5, seed=3) == letters("decreasing", 50, 0.5, seed=3)
    assert len({letters("decreasing", 50, 0.5, seed=seed) for seed in range(20)}) == 20
    assert letters("interleaved", 50, 0.5, seed=3) == letters("interleaved", 50, 0.5, seed=4)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999, 1])
def test_long_orders_are_drawn_too(share):
    """Their chances are far below the smallest float."""
    assert log_counts(1000, 1000)[0, 1000] < -745
    assert ordered("decreasing", "s", "l", 1000, share).counts.get("s", 0) == round(share * 1000)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("guess", "s", "l", 10), "an order is one of small_to_large"),
        (("interleaved", "s", "s", 10), "two members, and both are 's'"),
        (("interleaved", "s", "l", 0), "at least one step"),
        (("interleaved", "s", "l", 2.5), "at least one step"),
        (("interleaved", "s", "l", True), "at least one step"),
        (("interleaved", "s", "l", 10, 1.1), "share, of the steps that s takes, lies in 0..1"),
        (("interleaved", "s", "l", 10, float("nan")), "lies in 0..1"),
        (("interleaved", "s", "l", 10, "half"), "lies in 0..1"),
        (("decreasing", "s", "l", MOST_DRAWN + 1), f"at most {MOST_DRAWN} steps"),
        (("decreasing", "s", "l", 10, 0.5, -1), "seeds and indices lie in"),
    ],
)
def test_what_is_no_order_is_refused(arguments, said):
    with pytest.raises(HemstitchError, match=said):
        ordered(*arguments)
