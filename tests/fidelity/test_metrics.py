"""Parity with torch-fidelity 0.4's metrics on the same features, at its default settings.

Given float64 features both sides agree within 1e-6 (EXACT): the definitions are the same. The features that
torch-fidelity's own extractor gives it are float32; of those it keeps float32 means for FID, and float32 kernels for
KID, where ours are float64 throughout. By so much (ITS_FLOAT32) its figures then differ from ours, and from its own of
the same features as float64. IS, precision and recall agree within 1e-6 from float32 features too.
"""

import numpy as np
import pytest
import torch

from hemstitch.evaluate.frechet import Moments, frechet_distance
from hemstitch.evaluate.inception_score import inception_score
from hemstitch.evaluate.kernels import kernel_distance
from hemstitch.evaluate.neighbours import Manifold, neighbours

EXACT = 1e-6
ITS_FLOAT32 = 2e-5  # relative; measured: FID 7e-6 at 0.09, 1e-6 at 0.57; KID 1.4e-5, its deviation 1.2e-4


def pooled(N, F, seed, shift=0.0):
    """(N, F) float32 like pooled activations: not negative, correlated, of falling variance."""
    mixing = np.random.default_rng(7).normal(size=(F, F)) * np.linspace(1.5, 0.1, F)[:, None] / np.sqrt(F)
    z = np.random.default_rng(seed).normal(size=(N, F))
    return torch.from_numpy(np.logaddexp(0, z @ mixing + shift - 0.5).astype(np.float32))


@pytest.fixture(scope="module")
def both():
    return pooled(2000, 128, 1, shift=0.1), pooled(2500, 128, 2)


@pytest.mark.parametrize("counts", [(2000, 2500), (100, 2500), (100, 90)])
def test_frechet_distance_is_theirs_of_float64_features(both, counts):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = (features[:n] for features, n in zip(both, counts, strict=True))
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(v.double()) for v in (x, y)), verbose=False)
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=EXACT)


def test_frechet_distance_is_theirs_of_float32_features_but_for_their_float32_means():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    for seed, shift in ((1, 0.1), (11, 0.03)):
        x, y = pooled(10_000, 128, seed, shift), pooled(10_000, 128, seed + 10)
        statistics = [fid_features_to_statistics(v) for v in (x, y)]
        assert statistics[0]["mu"].dtype == np.float32
        theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(theirs, rel=ITS_FLOAT32)
        for s, v in zip(statistics, (x, y), strict=True):  # the means alone make the difference
            s["mu"] = Moments.of(v).mean
        theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(theirs, rel=EXACT)


def test_inception_score_is_theirs_of_float32_logits():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(3003, 200, generator=torch.Generator().manual_seed(0)) * 4
    for order, shuffle in (("shuffled", True), ("given", False)):
        theirs = isc_features_to_metric(logits, shuffle=shuffle)
        ours = inception_score(logits, order=order)
        assert ours.score.value == pytest.approx(theirs["inception_score_mean"], rel=EXACT)
        assert ours.splits_std == pytest.approx(theirs["inception_score_std"], rel=EXACT)


def test_kernel_distance_is_theirs_of_float64_features_and_nearly_of_float32(both):
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = both
    ours = kernel_distance(x, y, subsets=20)
    theirs = kid_features_to_metric(x.double(), y.double(), kid_subsets=20, verbose=False)
    assert ours.score.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=EXACT)
    assert ours.subsets_std == pytest.approx(theirs["kernel_inception_distance_std"], rel=EXACT)
    theirs = kid_features_to_metric(x, y, kid_subsets=20, verbose=False)
    assert ours.score.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=ITS_FLOAT32)
    assert ours.subsets_std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


@pytest.mark.parametrize("in_parts", [False, True])
def test_precision_and_recall_are_theirs_of_float32_features(both, in_parts):
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = both
    x = torch.cat([x, y[:50], x[:20]])  # images of the reference among the samples, and samples that occur twice
    theirs = prc_features_to_metric(x, y, save_cpu_ram=in_parts, verbose=False)
    ours = neighbours(Manifold.of(x), Manifold.of(y))
    assert 0.1 < ours.precision.value < 0.9
    assert 0.1 < ours.recall.value < 0.9
    assert ours.precision.value == pytest.approx(theirs["precision"], rel=EXACT)
    assert ours.recall.value == pytest.approx(theirs["recall"], rel=EXACT)
