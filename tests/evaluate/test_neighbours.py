"""Oracle: all distances in float64, by differences. Invariance: blocks. Ties and duplicates as published."""

import numpy as np
import pytest
import torch

from hemstitch import HemstitchError
from hemstitch.evaluate import neighbours as module
from hemstitch.evaluate.neighbours import Manifold, neighbours
from hemstitch.evaluate.score import gap_error, halves, verdict


def features(N, F=16, seed=0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(N, F)) + shift).astype(np.float32)


def values(x, y, **changes):
    result = neighbours(Manifold.of(x), Manifold.of(y), **changes)
    return tuple(score.value for score in result)


def distances(x, y):
    return np.array([np.square(row.astype(np.float64) - y.astype(np.float64)).sum(1) for row in x])


def recalled(x, y, k=3):
    """Per row of y, whether it is in the ball of a row of x."""
    return (distances(x, y) <= np.sort(distances(x, x), 1)[:, k, None]).any(0)


def brute(x, y, k=3, density_k=5):
    """The four, from whole matrices of float64."""
    yy, xy = np.sort(distances(y, y), 1), distances(x, y)
    inside = xy < yy[:, density_k]
    return (
        (xy <= yy[:, k]).any(1).mean(),
        recalled(x, y, k).mean(),
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
    assert all(manifold.squared_radius(k).eq(0).all() for k in manifold.ks)
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


def test_radii_are_exact_where_float32_mistakes_the_order():
    x = features(300, 64)
    x[:150] += 100  # two clusters: squared distances of 128 from norms of 640,000
    x[150:] -= 100
    exact = np.sort(distances(x, x), 1)
    manifold = Manifold.of(x)
    for k in (3, 5):
        np.testing.assert_allclose(manifold.squared_radius(k), exact[:, k], rtol=1e-12)
    rows = torch.from_numpy(x)
    nearest = torch.from_numpy(np.sort(module._candidates(rows, 6, module._silent), 1))
    in_truth = np.sort(np.argsort(distances(x, x), 1)[:, :6], 1)
    assert (nearest.numpy() != in_truth).any()  # without spare candidates some would be wrong


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_draws_of_recall_are_differences_of_independent_halves(shift):
    x, y = features(200, 8, shift=shift), features(250, 8, seed=1)
    result = neighbours(Manifold.of(x, (3,)), Manifold.of(y), resamples=20).recall
    found = np.array([[recalled(x[half], y) for half in halves(200, r)] for r in range(20)])
    draws = found.mean(2)[:, 0] - found.mean(2)[:, 1]
    assert np.abs(result.draws - draws).max() < 1.5 / 250  # a row of few candidates in its half
    together, each = np.square(draws).mean() / 2, (found[:, 0] != found[:, 1]).mean() / 2 / 250
    assert np.square(result.scale * draws).mean() == pytest.approx((together + each) / 2, rel=0.03)


@pytest.mark.parametrize("shared", [False, True])
def test_the_error_of_coverage_is_of_the_balls_with_few_samples(shared, monkeypatch):
    """Twelve threes of reference images; a sample in the middle of a three is in its three balls, at an end in one."""
    y = np.array([[100.0 * t + i, 0] for t in range(12) for i in range(3)])
    x = [0, 100, 101, 200, 201, 202, 402.1, 402.2, 402.3, 502.1, 502.2, 502.3, 502.4]
    x += [300.6, 300.4] if shared else []  # two in the same three balls
    x = np.array([[v, 0] for v in x] + [[v, 999] for v in range(0, 400, 40)])
    alone, pairs = [1, 2, 1], [1, 1, 1, *([3] if shared else [])]
    variance = 15 / 16 * 6 - 11 / 16 * sum(n**2 for n in pairs) + 5 / 16 - 1 / 16 - sum(alone) ** 2 / len(x)
    assert (variance > 6 / 4) is not shared  # or the least that it is taken for
    for rows in (4096, 4):
        monkeypatch.setattr(module, "BLOCK", rows)
        score = neighbours(Manifold.of(x, (2,)), Manifold.of(y, (2,)), k=2, density_k=2, resamples=1000).coverage
        assert score.value == (12 if shared else 9) / 36
        assert score.error == pytest.approx(max(variance, 6 / 4) ** 0.5 / 36, rel=0.04)


@pytest.mark.parametrize(("N", "M", "F", "shift"), [(200, 240, 8, 0.3), (200, 240, 32, 0.0), (120, 400, 8, 0.6)])
def test_the_errors_are_the_spread_of_fresh_samples(N, M, F, shift):
    """A bootstrap over the reference's images tells 0.4 to 0.87 of the spread of recall and coverage here."""
    y = Manifold.of(features(M, F, seed=999))
    results = [neighbours(Manifold.of(features(N, F, seed=i, shift=shift), (3,)), y, resamples=40) for i in range(120)]
    for name in ("precision", "recall", "density", "coverage"):
        scores = [getattr(r, name) for r in results]
        spread = np.std([s.value for s in scores], ddof=1)
        assert 0.85 * spread < np.sqrt(np.mean([s.error**2 for s in scores])) < 1.18 * spread, name
        assert "reference given" in scores[0].note
        assert (scores[0].resampled, scores[0].biased_by_size) == (N, name in ("recall", "coverage"))
        differ = [verdict(a, b) != "no difference" for a, b in zip(scores[::2], scores[1::2], strict=True)]
        assert np.mean(differ) < 0.15  # 5 % of 60, and three deviations


def test_equal_sets_of_equal_seeds_do_not_differ():
    x, y = features(300, shift=0.3), Manifold.of(features(400, seed=1))
    moved = x.copy()
    moved[:20] += 0.05
    a, b = (neighbours(Manifold.of(rows), y) for rows in (x, moved))
    for first, second in zip(a, b, strict=True):
        assert gap_error(first, second) < 0.5 * first.error


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
