"""Parity with torch-fidelity 0.4's metrics on the same features, at its default settings."""

import numpy as np
import pytest
import torch

from hemstitch.evaluate.frechet import Moments, frechet_distance
from hemstitch.evaluate.inception_score import inception_score
from hemstitch.evaluate.kernels import kernel_distance
from hemstitch.evaluate.neighbours import Manifold, neighbours

EXACT = 1e-6


def pooled(N, F, seed, shift=0.0):
    """(N, F) float32 like pooled activations: not negative, correlated, of falling variance."""
    mixing = np.random.default_rng(7).normal(size=(F, F)) * np.linspace(1.5, 0.1, F)[:, None] / np.sqrt(F)
    z = np.random.default_rng(seed).normal(size=(N, F))
    return torch.from_numpy(np.logaddexp(0, z @ mixing + shift - 0.5).astype(np.float32))


@pytest.fixture(scope="module")
def both():
    return pooled(2000, 128, 1, shift=0.1), pooled(2500, 128, 2)


@pytest.mark.parametrize("counts", [(2000, 2500), (100, 2500), (100, 90)])
def test_frechet_distance(both, counts):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = (features[:n] for features, n in zip(both, counts, strict=True))
    # float64: from float32, its means are float32's
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(v.double()) for v in (x, y)), verbose=False)
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=EXACT)


def test_inception_score():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(3003, 200, generator=torch.Generator().manual_seed(0)) * 4
    for order, shuffle in (("shuffled", True), ("given", False)):
        theirs = isc_features_to_metric(logits, shuffle=shuffle)
        ours = inception_score(logits, order=order)
        assert ours.score.value == pytest.approx(theirs["inception_score_mean"], rel=EXACT)
        assert ours.splits_std == pytest.approx(theirs["inception_score_std"], rel=EXACT)
    assert inception_score(logits).score.value == pytest.approx(isc_features_to_metric(logits)["inception_score_mean"])


def test_kernel_distance(both):
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = both
    ours = kernel_distance(x, y, subsets=20)
    # float64: in float32 its million terms of a kernel differ from ours where they cancel
    theirs = kid_features_to_metric(x.double(), y.double(), kid_subsets=20, verbose=False)
    assert ours.score.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=EXACT)
    assert ours.subsets_std == pytest.approx(theirs["kernel_inception_distance_std"], rel=EXACT)
    theirs = kid_features_to_metric(x, y, kid_subsets=20, verbose=False)
    assert ours.score.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)


@pytest.mark.parametrize("in_parts", [False, True])
def test_precision_and_recall(both, in_parts):
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = both
    x = torch.cat([x, y[:50], x[:20]])  # images of the reference among the samples, and samples that occur twice
    theirs = prc_features_to_metric(x, y, save_cpu_ram=in_parts, verbose=False)
    ours = neighbours(Manifold.of(x), Manifold.of(y))
    assert 0.1 < ours.precision.value < 0.9
    assert 0.1 < ours.recall.value < 0.9
    assert ours.precision.value == pytest.approx(theirs["precision"], rel=EXACT)
    assert ours.recall.value == pytest.approx(theirs["recall"], rel=EXACT)
