"""The belief about plans, against sums known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from hemstitch import Plan
from hemstitch.stitch.search.evidence import Evidence
from hemstitch.stitch.search.frontier import Option, best, frontier
from hemstitch.stitch.search.surrogate import Measured, Terms, learned
from hemstitch.stitch.search.trunk import Candidate

S = 20
OPTIONS = (Option("small", False), Option("large", False))


def terms(disagreement):
    """Evidence with this disagreement by step."""
    d = np.stack([np.asarray(disagreement, float), np.zeros(S)])
    return Terms(Evidence(OPTIONS, d, d, d, np.ones(S), 8), (OPTIONS[1],) * S)


def plan(mask):
    return Candidate(Plan.explicit(["small" if m else "large" for m in mask]), (False,) * len(mask))


def first(k, steps=S):
    return plan([i < k for i in range(steps)])


def random_plans(n, seed=0):
    draw = np.random.default_rng(seed)
    return [plan(draw.random(S) < draw.random()) for _ in range(n)]


TRUTH = np.linspace(-0.5, 2, S) ** 3  # an early small member helps, a late one hurts


def gap(candidate):
    return sum(TRUTH[i] for i, name in enumerate(candidate.plan.assignment) if name == "small")


def test_without_measurements_it_follows_the_evidence():
    rising = learned(terms(range(1, S + 1)), (), [])
    assert rising.expected(first(5)) < rising.expected(plan([i >= S - 5 for i in range(S)]))
    assert rising.expected(first(0)) == 0


def test_it_learns_a_sum_against_the_evidence():
    """The evidence says that early steps matter most; measured, the late ones do."""
    falling = terms(range(S, 0, -1))
    probes = [first(k) for k in (0, 4, 8, 12, 16, 20)] + [plan([i >= k for i in range(S)]) for k in (4, 8, 12, 16)]
    belief = learned(falling, (), [Measured(p, gap(p), 0.01) for p in probes])
    new = random_plans(40)
    said, true = [belief.expected(p) for p in new], [gap(p) for p in new]
    assert spearmanr(said, true).statistic > 0.98
    values, offset = belief.values(S)
    assert offset == 0
    for candidate in new[:5]:  # the mean is a sum over steps, which the frontier minimises
        chosen = [OPTIONS.index(option) for option in candidate.options]
        assert sum(values[i, o] for i, o in enumerate(chosen)) == pytest.approx(belief.additive(candidate))
    found = best(frontier(values, np.array([[1.0, 5.0]] * S), OPTIONS), 0.6 * 5 * S)
    mask = [OPTIONS[o].member == "small" for o in found.options]
    assert sum(TRUTH[i] for i in range(S) if mask[i]) <= min(gap(first(k)) for k in range(10, S)) + 0.05


def test_noise_is_not_believed():
    """Two plans that differ by a step, one measured badly."""
    belief = learned(
        terms(np.ones(S)),
        (),
        [Measured(first(k), gap(first(k)), 0.02) for k in range(0, S + 1, 2)] + [Measured(first(11), 9.0, 8.0)],
    )
    assert abs(belief.expected(first(11)) - gap(first(11))) < 1


def test_what_is_not_additive_stays_with_its_plan():
    probes = random_plans(25, seed=3)
    odd = probes[7]
    measured = [Measured(p, gap(p) + (4.0 if p is odd else 0.0), 0.01) for p in probes]
    belief = learned(terms(np.ones(S)), (), measured)
    assert belief.expected(odd) - belief.additive(odd) > 1
    assert belief.nugget > 0


def test_fewer_steps_have_an_offset_of_their_own():
    measured = [Measured(first(k), gap(first(k)), 0.01) for k in (0, 5, 10, 15, 20)]
    measured.append(Measured(first(0, 10), 3.0, 0.01))
    belief = learned(terms(np.ones(S)), (10,), measured)
    assert belief.expected(first(0, 10)) == pytest.approx(3, abs=0.2)
    half = plan([i < 5 for i in range(10)])
    assert belief.additive(half) == pytest.approx(3 + gap(first(10)), abs=1)
    values, offset = belief.values(10)
    assert values.shape == (10, 2)
    assert offset == pytest.approx(3, abs=0.3)


def test_deviation_falls_where_it_was_measured():
    none = learned(terms(np.ones(S)), (), [])
    some = learned(terms(np.ones(S)), (), [Measured(first(k), gap(first(k)) / 15, 0.01) for k in (0, 10, 20)])
    assert some.deviation(first(10)) < none.deviation(first(10)) / 2
    draws = np.stack([some.drawn(np.random.default_rng(i)) for i in range(400)]) @ some.row(first(10))
    assert draws.std() == pytest.approx(np.sqrt(some.deviation(first(10)) ** 2 - some.nugget**2), rel=0.2)
