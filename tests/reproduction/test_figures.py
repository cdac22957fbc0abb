"""The arithmetic behind the document: curves, intervals, verdicts, and tables that land in their place."""

import numpy as np
import pytest

from reproduction import families, stitching, tables
from reproduction.write import filled

MARKS = (1500, 3000, 4200, 6000)


def judged(ends, power=1.0):
    """Results whose distances fall with the iterations to `ends` of families, by seed."""
    return {
        f"{family}-{seed}/{mark}": {
            figure: {"value": value * (MARKS[-1] / mark) ** power} for figure in families.FIGURES
        }
        for family, values in ends.items()
        for seed, value in enumerate(values)
        for mark in MARKS
    }


PACES = {"dit": [1.0, 1.0], "dtr": [1.0, 1.0], "switch_dit": [1.25, 1.25]}


def test_an_interval_over_three_seeds_is_student_s():
    told = families.interval([1.0, 2.0, 3.0])
    assert told["mean"] == 2
    assert told["half_width"] == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert families.interval([1.0])["half_width"] is None


def test_a_gap_is_of_pairs_of_seeds():
    told = families.gap([10.0, 11.0, 12.5], [12.0, 13.0, 14.0])
    assert told["gap"] == pytest.approx(-5.5 / 3)
    assert told["half_width"] == pytest.approx(4.303 * np.std([2, 2, 1.5], ddof=1) / np.sqrt(3), rel=1e-3)
    assert told["said"] == "lower"
    assert told["welch"]["said"] == "no difference"  # seeds spread by more than they differ
    assert families.gap([1.0, 2.0, 3.0], [1.1, 1.8, 3.0])["said"] == "no difference"


def test_families_are_compared_at_equal_iterations_and_at_equal_time():
    ends = {"dit": [12.0, 13.0, 14.0], "dtr": [12.0, 13.0, 14.0], "switch_dit": [10.0, 11.0, 12.0]}
    told = families.along(judged(ends), MARKS, PACES)
    assert told["at_equal_iterations"]["switch_dit to dit"][6000]["gap"] == pytest.approx(-2)
    assert told["at_equal_iterations"]["dtr to dit"][1500]["gap"] == 0
    assert told["over_seeds"]["distance"]["dit"][3000]["mean"] == pytest.approx(26)
    # In the time of 6,000 iterations of the DiT, Switch-DiT does 4,800.
    then = [value * 6 / 4.8 for value in ends["switch_dit"]]
    wanted = np.mean([a - b for a, b in zip(then, ends["dit"], strict=True)])
    assert told["at_equal_time"]["switch_dit to dit"]["gap"] == pytest.approx(wanted)
    assert told["sooner"]["switch_dit to dit"]["gap"] == pytest.approx(np.mean([v / 0.7 for v in (10, 11, 12)]) - 13)
    shares = told["share_to_reach"]["switch_dit to dit"]
    assert shares["values"] == pytest.approx([10 / 12, 11 / 13, 12 / 14])
    assert shares["mean"] == pytest.approx(np.mean(shares["values"]))
    assert told["share_to_reach"]["dtr to dit"]["values"] == [1, 1, 1]


def test_between_judged_checkpoints_a_distance_is_a_power_of_the_iterations():
    some = {1500: 100.0, 3000: 25.0, 6000: 20.0}
    assert families.value_at(some, 1500 * 2**0.5) == pytest.approx(50)
    assert families.share_to_reach(some, 50.0) == pytest.approx(1500 * 2**0.5 / 6000)
    assert families.share_to_reach(some, 10.0) is None
    assert families.share_to_reach(some, 200.0) == 0.25  # no earlier than the first


def test_figures_have_the_digits_that_their_interval_leaves():
    assert tables.pm(12.3456, 0.123) == "12.35 ± 0.12"
    assert tables.pm(123.456, 12.3) == "123 ± 12"
    assert tables.pm(0.81234, 0.004) == "0.8123 ± 0.0040"
    assert tables.pm(0.99981, 0.00012) == "0.99981 ± 0.00012"
    assert tables.pm(1.0, 0.0) == "1.000 ± 0.000"


def test_speed_is_a_median_of_ratios_within_a_round():
    times = {"0": [1.0, 2.0, 4.0], "0.5": [0.6, 1.2, 2.6], "1": [0.2, 0.4, 0.8], "3 steps, as long as 0.5": [0.5, 1, 2]}
    told = stitching.speed(times, 10)
    assert told["0"] == {"times": 1, "least": 1, "most": 1, "of_ideal": 1}
    assert told["0.5"]["times"] == pytest.approx(1 / 0.6)
    assert told["0.5"]["least"] == pytest.approx(4 / 2.6)
    assert told["0.5"]["of_ideal"] == pytest.approx(1)
    assert told["1"]["times"] == pytest.approx(5)
    assert told["3 steps, as long as 0.5"] == {"times": 2, "least": 2, "most": 2}


def test_a_fraction_s_ideal_is_that_of_its_whole_steps():
    """Of 25 steps .3 is 7, not 7.5."""
    times = {"0": [1.0], "0.3": [(18 + 7 / 5) / 25], "1": [0.2]}
    assert stitching.speed(times, 25)["0.3"]["of_ideal"] == pytest.approx(1)


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
