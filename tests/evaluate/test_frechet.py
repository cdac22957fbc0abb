"""Oracle: the distance between Gaussians that are known."""

import numpy as np
import pytest
import torch

from hemstitch import HemstitchError
from hemstitch.evaluate.frechet import Moments, bootstrap_distances, frechet_distance


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


def test_bootstrap_covers_the_spread_of_fresh_samples():
    generator = torch.Generator().manual_seed(1)
    reference = gaussian(np.zeros(4), np.eye(4))
    fresh = [torch.randn(400, 4, generator=generator) + 0.5 for _ in range(30)]
    spread = np.std([frechet_distance(Moments.of(x), reference) for x in fresh], ddof=1)
    estimates = [bootstrap_distances(x, reference).std(ddof=1) for x in fresh[:5]]
    assert 0.5 * spread < np.mean(estimates) < 2 * spread


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
