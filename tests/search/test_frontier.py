"""The frontier against every plan there is."""

from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest

from hemstitch.errors import HemstitchError
from hemstitch.stitch.search import frontier as module
from hemstitch.stitch.search.frontier import Option, Rules, best, frontier


def every_plan(values, ms, options, rules):
    """The frontier by looking at all plans."""
    S, O = values.shape
    plans = []
    for chosen in product(range(O), repeat=S):
        runs = [name for name, _ in groupby(options[o].member for o in chosen)]
        if rules.seams is not None and len(runs) - 1 > rules.seams:
            continue
        guided = [flag for flag, _ in groupby(options[o].guided for o in chosen)]
        if rules.interval and sum(guided) > 1:
            continue
        cost = sum(round(ms[s, o] * 1e6) for s, o in enumerate(chosen))
        plans.append((cost, sum(values[s, o] for s, o in enumerate(chosen))))
    front, least = [], np.inf
    for cost, value in sorted(plans):
        if value < least - 1e-12:
            least = value
            front.append((cost / 1e6, value))
    return front


TWO = [Option("small", True), Option("large", True)]
FOUR = [Option("small", True), Option("large", True), Option("small", False), Option("large", False)]
THREE = [Option("small", True), Option("middle", True), Option("large", True)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("options", "rules", "steps"),
    [
        (TWO, Rules(), 9),
        (TWO, Rules(seams=1), 9),
        (TWO, Rules(seams=2), 9),
        (THREE, Rules(), 6),
        (THREE, Rules(seams=2), 6),
        (FOUR, Rules(interval=True), 5),
        (FOUR, Rules(seams=1, interval=True), 5),
    ],
)
def test_frontier_is_that_of_all_plans(options, rules, steps, seed):
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(steps, len(options)))  # of either sign: a cheap member may do better
    ms = np.repeat(draw.uniform(0.1, 3, len(options))[None], steps, 0)
    ms[-1] /= 2  # as Heun's last step
    found = frontier(values, ms, options, rules)
    expected = every_plan(values, ms, options, rules)
    assert [(e.ms, pytest.approx(e.value)) for e in found] == [(pytest.approx(c), v) for c, v in expected]
    for ending in found:  # what it says of a plan is true of the plan
        assert ending.value == pytest.approx(sum(values[s, o] for s, o in enumerate(ending.options)))
        assert ending.ms == pytest.approx(sum(ms[s, o] for s, o in enumerate(ending.options)), abs=1e-5)


def test_best_affordable():
    values, ms = np.array([[5.0, 0.0]] * 4), np.array([[1.0, 3.0]] * 4)
    found = frontier(values, ms, TWO)
    assert [e.ms for e in found] == [4, 6, 8, 10, 12]
    assert best(found, 7.9).value == 15
    assert best(found, 12).value == 0
    assert best(found, 3.9) is None


def test_thinned_where_labels_are_too_many(monkeypatch):
    monkeypatch.setattr(module, "MOST_LABELS", 40)
    draw = np.random.default_rng(1)
    values, ms = draw.normal(size=(30, 3)), np.repeat(np.array([[1.0, 2.718281, 7.389056]]), 30, 0)
    thinned, endings = frontier(values, ms, THREE), None
    monkeypatch.setattr(module, "MOST_LABELS", 20_000)
    endings = frontier(values, ms, THREE)
    for share in (0.3, 0.5, 0.8):
        budget = share * 30 * 7.389056
        exact, near = best(endings, budget), best(thinned, budget)
        assert near.ms <= budget
        assert exact.value <= near.value <= best(endings, budget * 0.9).value


def test_refusals():
    with pytest.raises(HemstitchError, match="steps, options"):
        frontier(np.zeros((3, 2)), np.zeros((3, 3)), TWO)
    with pytest.raises(HemstitchError, match="finite"):
        frontier(np.full((3, 2), np.nan), np.zeros((3, 2)), TWO)
    with pytest.raises(HemstitchError, match="seams"):
        frontier(np.zeros((3, 2)), np.ones((3, 2)), TWO, Rules(seams=-1))
