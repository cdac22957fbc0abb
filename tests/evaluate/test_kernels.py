"""Oracle: the definitions by loops and by closed forms; errors against the spread of fresh samples."""

import math

import numpy as np
import pytest

from hemstitch import HemstitchError
from hemstitch.evaluate import kernels
from hemstitch.evaluate.kernels import cmmd, kernel_distance


def features(N, F=6, seed=0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(N, F)) + shift).astype(np.float32)


def unbiased(x, y, k):
    """Gretton et al. 2012, eq. 3, term by term."""
    n, m = len(x), len(y)
    xx = math.fsum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = math.fsum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * math.fsum(k(a, b) for a in x for b in y) / (n * m)


def test_one_subset_of_all_is_the_definition():
    x, y = features(20).astype(np.float64), features(20, seed=1, shift=0.5).astype(np.float64)
    result = kernel_distance(x, y, subsets=3)
    assert result.score.value == pytest.approx(unbiased(x, y, lambda a, b: (a @ b / 6 + 1) ** 3), rel=1e-10)
    assert result.subset_size == 20
    assert "3 subsets of 20" in result.score.note
    assert result.subsets_std == pytest.approx(0, abs=1e-12)


def test_subsets_are_drawn_as_said():
    x, y = features(50), features(40, seed=1, shift=0.5)
    random, values = np.random.RandomState(2020), []
    for _ in range(4):
        a, b = x[random.choice(50, 15, replace=False)], y[random.choice(40, 15, replace=False)]
        values.append(unbiased(*(v.astype(np.float64) for v in (a, b)), lambda a, b: (a @ b / 6 + 1) ** 3))
    result = kernel_distance(x, y, subsets=4, subset_size=15)
    assert (result.score.value, result.subsets_std) == pytest.approx((np.mean(values), np.std(values)), rel=1e-10)


def test_cmmd_is_its_definition_in_blocks_of_any_size(monkeypatch):
    x, y = features(30), features(40, seed=1, shift=0.5)
    unit = [v / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (x, y)]

    def mean(a, b):
        return np.exp(-np.square(a[:, None] - b).sum(-1) / 200).mean()

    expected = 1000 * (mean(unit[0], unit[0]) + mean(unit[1], unit[1]) - 2 * mean(*unit))
    for rows in (7, 2048):
        monkeypatch.setattr(kernels, "BLOCK", rows)
        assert cmmd(x, y).value == pytest.approx(expected, rel=1e-9)


def test_equal_sets_have_no_discrepancy():
    x = features(50)
    assert cmmd(x, x.copy()).value == pytest.approx(0, abs=1e-11)
    assert cmmd(x, 3 * x).value == pytest.approx(0, abs=1e-4)  # float32: directions are kept to its rounding
    # unbiased: of a set with itself it is below zero by the diagonal's excess
    assert kernel_distance(x, x.copy(), subsets=2).score.value < 0


def test_opposite_embeddings_have_a_closed_form():
    x = np.tile([[1.0, 0.0]], (5, 1))
    assert cmmd(x, -x).value == pytest.approx(1000 * 2 * (1 - math.exp(-4 / 200)), rel=1e-12)


@pytest.mark.parametrize("metric", ["kid", "cmmd"])
def test_the_error_is_the_spread_of_fresh_samples(metric, monkeypatch):
    monkeypatch.setattr(kernels, "PART", 250)  # part of the samples alone, as with 50,000
    reference = features(600, seed=999)

    def score(seed, resamples):
        x = features(500, seed=seed, shift=0.3)
        if metric == "cmmd":
            return cmmd(x, reference, resamples=resamples)
        return kernel_distance(x, reference, subsets=10, subset_size=100, resamples=resamples).score

    spread = np.std([score(i, 0).value for i in range(30)], ddof=1)
    assert 0.6 * spread < np.mean([score(i, 100).error for i in range(4)]) < 1.6 * spread


def test_the_biased_estimate_says_so_and_the_unbiased_does_not():
    assert cmmd(features(20), features(30)).biased_by_size
    assert not kernel_distance(features(20), features(30)).score.biased_by_size


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: kernel_distance(features(1), features(9)), "at least 2 samples"),
        (lambda: kernel_distance(features(9), features(9), subset_size=1), "at least 2 rows"),
        (lambda: kernel_distance(features(9), features(9, 5)), "one extractor"),
        (lambda: kernel_distance(features(9) * np.nan, features(9)), "NaN"),
        (lambda: cmmd(features(9), features(9, 5)), "one extractor"),
        (lambda: cmmd(0 * features(9), features(9)), "all zero"),
        (lambda: cmmd(features(9), features(9) + np.inf), "NaN or infinity"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(HemstitchError, match=said):
        call()
