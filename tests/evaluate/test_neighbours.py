"""Oracle: all distances in float64, by differences. Invariance: blocks. Ties and duplicates as published."""

import numpy as np
import pytest
import torch

from hemstitch import HemstitchError
from hemstitch.evaluate import neighbours as module
from hemstitch.evaluate.neighbours import Manifold, neighbours


def features(N, F=16, seed=0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(N, F)) + shift).astype(np.float32)


def values(x, y, **changes):
    result = neighbours(Manifold.of(x), Manifold.of(y), **changes)
    return tuple(score.value for score in result)


def distances(x, y):
    return np.array([np.square(row.astype(np.float64) - y.astype(np.float64)).sum(1) for row in x])


def brute(x, y, k=3, density_k=5):
    """The four, from whole matrices of float64."""
    xx, yy, xy = (np.sort(distances(x, x), 1), np.sort(distances(y, y), 1), distances(x, y))
    inside = xy < yy[:, density_k]
    return (
        (xy <= yy[:, k]).any(1).mean(),
        (xy <= xx[:, k, None]).any(0).mean(),
        inside.sum(1).mean() / density_k,
        inside.any(0).mean(),
    )


@pytest.mark.parametrize("shift", [0.0, 0.3, 100.0])
def test_they_are_their_definitions(shift):
    x, y = features(300, shift=shift), features(400, seed=1, shift=shift + 0.1)
    assert values(x, y) == pytest.approx(brute(x, y), rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    x, y = features(300), features(400, seed=1, shift=0.3)
    whole = values(x, y)
    for rows in (67, 128):
        monkeypatch.setattr(module, "BLOCK", rows)
        monkeypatch.setattr(module, "PAIRS", 50)
        assert values(x, y) == whole


def test_equal_sets_are_wholly_inside_and_disjoint_sets_outside():
    x = features(200)
    assert values(x, x.copy())[:2] == (1, 1)
    assert values(x, x.copy())[3] == 1
    assert values(x, features(200, seed=1, shift=50)) == (0, 0, 0, 0)


def test_a_border_is_inside_for_precision_and_outside_for_density():
    y = np.arange(20.0)[:, None].repeat(2, 1)  # on a diagonal, two neighbours of all but the ends are at √2
    reference = Manifold.of(y, (2,))
    beside = neighbours(Manifold.of(y[5:10] + np.array([1, -1]), (2,)), reference, k=2, density_k=2)
    assert (beside.precision.value, beside.density.value, beside.coverage.value) == (1, 0, 0)
    on = neighbours(Manifold.of(y[5:10], (2,)), reference, k=2, density_k=2)
    assert (on.precision.value, on.density.value, on.coverage.value) == (1, 1 / 2, 5 / 20)  # in its twin's ball alone


def test_ties_with_the_neighbour_itself_are_found_in_any_rounding():
    y = features(300, 64, shift=30)
    x = np.concatenate([y[:150], features(150, 64, seed=1, shift=30)])  # a sample that is y's third neighbour
    assert values(x, y) == pytest.approx(brute(x, y), rel=1e-12)


def test_duplicates_have_radius_zero_and_still_hold_themselves():
    y = np.repeat(features(20, shift=10), 6, 0)  # each row six times: nothing but itself within five neighbours
    manifold = Manifold.of(y)
    assert manifold.squared_radii.eq(0).all()
    result = values(y[::6].repeat(6, 0), y)
    assert result[:2] == (1, 1)  # 0 <= 0
    assert result[2:] == (0, 0)  # 0 < 0 is false, as published
    assert values(y + 1, y)[:2] == (0, 0)


def test_a_reference_serves_many_sets_and_more_counts():
    x, y = features(100), Manifold.of(features(100, seed=1), ks=(1, 3, 5))
    assert neighbours(Manifold.of(x, (1,)), y, k=1).precision.value <= neighbours(Manifold.of(x), y).precision.value
    with pytest.raises(HemstitchError, match=r"radii for \(1,\) neighbours, not 3"):
        neighbours(Manifold.of(x, (1,)), y)


def test_a_caller_sees_progress(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 40)
    seen = []
    y = Manifold.of(features(100), progress=lambda *done: seen.append(done))
    assert seen == [(i, 6) for i in range(1, 7)]
    seen.clear()
    neighbours(y, y, progress=lambda *done: seen.append(done))
    assert seen == [(i, 9) for i in range(1, 10)]


def test_a_callers_precision_is_kept_and_not_used():
    x, y = features(300), features(400, seed=1, shift=0.3)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert values(x, y) == pytest.approx(brute(x, y), rel=1e-12)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_errors_are_the_spread_of_fresh_samples():
    y = Manifold.of(features(500, 8, seed=999))
    results = [neighbours(Manifold.of(features(400, 8, seed=i, shift=0.3), (3,)), y) for i in range(30)]
    for name in ("precision", "density"):
        scores = [getattr(r, name) for r in results]
        spread = np.std([s.value for s in scores], ddof=1)
        assert 0.7 * spread < np.mean([s.error for s in scores]) < 1.4 * spread
    for name in ("recall", "coverage"):
        score = getattr(results[0], name)
        assert score.error == pytest.approx(np.sqrt(score.value * (1 - score.value) / 500), rel=0.2)
        assert "given the samples" in score.note


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Manifold.of(features(5)), "at least 6 samples"),
        (lambda: Manifold.of(features(9), ()), "1 or more"),
        (lambda: Manifold.of(features(9) * np.nan), "NaN"),
        (lambda: neighbours(Manifold.of(features(9)), Manifold.of(features(9, 5))), "one extractor"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(HemstitchError, match=said):
        call()
