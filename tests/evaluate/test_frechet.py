"""Oracle: the distance between Gaussians that are known, and arithmetic of 60 digits. Invariance: blocks and merges."""

import mpmath
import numpy as np
import pytest
import torch

from hemstitch import HemstitchError
from hemstitch.evaluate import frechet
from hemstitch.evaluate.frechet import Accumulator, Moments, bootstrap_distances, frechet_distance, frechet_score
from hemstitch.evaluate.score import counts


def gaussian(mean, covariance):
    return Moments(1000, np.asarray(mean, float), np.asarray(covariance, float))


def test_commuting_covariances_have_a_closed_form():
    a, b = np.array([1.0, 4.0, 9.0, 0.0]), np.array([4.0, 1.0, 0.0, 0.25])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    offset = np.array([1.0, 2.0, 0.0, -1.0])
    expected = offset @ offset + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    ours = frechet_distance(
        gaussian(np.zeros(4), rotation * a @ rotation.T), gaussian(offset, rotation * b @ rotation.T)
    )
    assert ours == pytest.approx(expected, rel=1e-9)


def test_it_is_a_distance():
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    a, b = Moments.of(x[:150]), Moments.of(2 * x[150:] + 1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 1


def test_moments_are_numpys():
    x = torch.randn(50, 3)
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy().T), rtol=1e-5)
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-5, atol=1e-7)


def precisely(x, y):
    """The distance from the samples, 60 digits throughout."""
    with mpmath.workdps(60):
        (mean_a, a), (mean_b, b) = (precise_moments(v) for v in (x, y))
        root = precise_root(a)
        values = mpmath.eigsy(root * b * root, eigvals_only=True)
        cross = mpmath.fsum(mpmath.sqrt(v) for v in values if v > mpmath.mpf(10) ** -45)
        traces = mpmath.fsum(a[i, i] + b[i, i] for i in range(a.rows))
        return float(mpmath.norm(mean_a - mean_b) ** 2 + traces - 2 * cross)


def precise_moments(x):
    rows = mpmath.matrix(x.tolist())
    mean = mpmath.matrix([mpmath.fsum(rows[:, j]) / rows.rows for j in range(rows.cols)])
    centred = rows - mpmath.ones(rows.rows, 1) * mean.T
    return mean, centred.T * centred / (rows.rows - 1)


def precise_root(covariance):
    values, vectors = mpmath.eigsy(covariance)
    roots = [mpmath.sqrt(v) if v > mpmath.mpf(10) ** -45 else mpmath.mpf(0) for v in values]
    return vectors * mpmath.diag(roots) * vectors.T


def correlated(N, D, seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(N, D)) * scale @ generator.normal(size=(D, D)) + generator.normal(size=D)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param(correlated(40, 8, 0), correlated(50, 8, 1), id="full rank"),
        pytest.param(correlated(40, 24, 0), correlated(50, 24, 1), id="full rank, wider"),
        pytest.param(correlated(10, 16, 0), correlated(50, 16, 1), id="one of fewer samples than features"),
        pytest.param(correlated(10, 24, 0), correlated(12, 24, 1), id="both of fewer"),
        pytest.param(correlated(40, 8, 0), correlated(50, 8, 1) * 1e-5, id="sets of different scale"),
        pytest.param(
            np.random.default_rng(0).normal(size=(9, 16)) * np.logspace(-4, 3, 16),
            np.random.default_rng(1).normal(size=(30, 16)) * np.logspace(-4, 2, 16),
            id="features of different scale, singular",
        ),
        pytest.param(correlated(40, 8, 0, np.logspace(-5, 0, 8)), correlated(50, 8, 1), id="nearly singular"),
        pytest.param(correlated(40, 8, 0) * [1, 1, 1, 1, 1, 1, 0, 0], correlated(50, 8, 1), id="dead features"),
        pytest.param(correlated(40, 8, 0) + 1e4, correlated(50, 8, 1) + 1e4, id="mean large beside deviation"),
    ],
)
def test_it_is_right_to_eight_digits(x, y):
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    assert ours == pytest.approx(precisely(x, y), rel=1e-8)


@pytest.mark.parametrize("N", [10, 200])
def test_equal_sets_are_at_no_distance(N):
    a = Moments.of(correlated(N, 16, 0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * np.trace(a.covariance))


def test_moments_are_the_same_in_blocks_of_any_size_and_parts_merged_in_any_order():
    x = correlated(1000, 6, 0) + 1e4
    whole = Moments.streamed(x, 1000)
    exact = np.array(x, dtype=np.longdouble)
    exact -= exact.mean(0)
    np.testing.assert_allclose(whole.covariance, (exact.T @ exact / 999).astype(float), rtol=1e-11)
    parts = [Accumulator.empty(6).updated(x[a:b]) for a, b in ((0, 1), (1, 500), (500, 500), (500, 1000))]
    merged = parts[3].merged(parts[0]).merged(parts[2]).merged(parts[1]).moments()
    for other in (Moments.streamed(x, 7), Moments.streamed(x, 333), Moments.streamed(x, 1), merged):
        assert other.count == 1000
        np.testing.assert_allclose(other.mean, whole.mean, rtol=1e-14)
        scale = np.sqrt(np.outer(*[whole.covariance.diagonal()] * 2))
        assert np.abs((other.covariance - whole.covariance) / scale).max() < 1e-12


def test_weighted_moments_are_those_of_the_rows_drawn(monkeypatch):
    x = correlated(300, 6, 0).astype(np.float32)
    monkeypatch.setattr(frechet, "BLOCK", 64)
    reference = Moments.of(correlated(400, 6, 0) + 0.3)
    drawn = [x[np.repeat(np.arange(300), counts(300, r))] for r in range(7)]
    expected = [frechet_distance(Moments.of(v), reference) for v in drawn]
    np.testing.assert_allclose(bootstrap_distances(x, reference, 7), expected, rtol=1e-5)
    # fewer samples than four times their width: float64
    np.testing.assert_allclose(
        bootstrap_distances(x[:20], reference, 2),
        [frechet_distance(Moments.of(x[:20][np.repeat(np.arange(20), counts(20, r))]), reference) for r in range(2)],
        rtol=1e-8,
    )


def test_bootstrap_covers_the_spread_of_fresh_samples():
    generator = torch.Generator().manual_seed(1)
    reference = gaussian(np.zeros(4), np.eye(4))
    fresh = [torch.randn(400, 4, generator=generator) + 0.5 for _ in range(60)]
    spread = np.std([frechet_distance(Moments.of(x), reference) for x in fresh], ddof=1)
    scores = [frechet_score(x, reference) for x in fresh[:10]]
    assert 0.7 * spread < np.mean([s.error for s in scores]) < 1.4 * spread
    assert scores[0].value == frechet_distance(Moments.of(fresh[0]), reference)


def test_published_statistics_stand_in_for_a_reference():
    x, reference = correlated(300, 6, 0), Moments.of(correlated(400, 6, 0) + 0.3)
    published = Moments.published(reference.mean, reference.covariance)
    assert published.count is None
    assert frechet_score(x, published).value == frechet_score(x, reference).value
    with pytest.raises(HemstitchError, match=r"covariance \(F, F\)"):
        Moments.published(reference.mean, reference.covariance[:3])
    with pytest.raises(HemstitchError, match="NaN"):
        Moments.published(reference.mean, reference.covariance * np.nan)
    for wrong, said in (
        (-np.eye(6), "variances below zero, down to -1"),
        (np.diag([1.0, 1, 1, 1, 1, -1e-3]), "variances below zero, down to -0.001"),
        (np.tril(reference.covariance), "not symmetric"),
        (np.linalg.cholesky(reference.covariance), "not symmetric"),
    ):
        with pytest.raises(HemstitchError, match=said):
            Moments.published(reference.mean, wrong)
    rounded = reference.covariance.astype(np.float32)  # as others publish it, mirror images rounded apart
    rounded[1, 0] = np.nextafter(rounded[1, 0], np.float32(0))
    rounded[5] = rounded[:, 5] = 0
    rounded[5, 5] = -1e-12  # of a feature that never fires
    assert frechet_score(x, Moments.published(reference.mean, rounded)).value > 0


def test_a_distance_is_known_to_depend_on_the_size():
    score = frechet_score(correlated(30, 4, 0), Moments.of(correlated(40, 4, 1)))
    assert (score.biased_by_size, score.resampled) == (True, 30)


def test_unequal_widths_are_refused():
    narrow, wide = correlated(30, 4, 0), Moments.of(correlated(30, 5, 0))
    for compare in (lambda: frechet_distance(Moments.of(narrow), wide), lambda: bootstrap_distances(narrow, wide)):
        with pytest.raises(HemstitchError, match="widths 4 and 5"):
            compare()
    with pytest.raises(HemstitchError, match="one width"):
        Accumulator.empty(3).merged(Accumulator.empty(4))
    with pytest.raises(HemstitchError, match="at least 2 samples"):
        Accumulator.empty(3).updated(np.ones((1, 3))).moments()


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.zeros(1, 3), "at least 2 samples"),
        (torch.full((5, 3), torch.nan), "NaN"),
        (torch.zeros(5), "at least 2|features"),
    ],
)
def test_bad_features_are_refused(features, said):
    with pytest.raises(HemstitchError, match=said):
        Moments.of(features)
