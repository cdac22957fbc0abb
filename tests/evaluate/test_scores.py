"""Oracle: standard errors against the spread of fresh draws. Invariance: resamples. Fault: features that are broken."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from hemstitch import HemstitchError
from hemstitch.evaluate.score import (
    Score,
    block,
    compared,
    counts,
    gap_error,
    gathered,
    halves,
    repeated,
    resampled_means,
    same_width,
    verdict,
)


def of_mean(values, note=""):
    return Score(float(values.mean()), resampled_means(values, 200), note=note, resampled=len(values))


def test_the_error_of_a_mean_is_the_textbooks():
    x = np.random.default_rng(0).normal(size=500)
    assert of_mean(x).error == pytest.approx(x.std(ddof=1) / math.sqrt(500), rel=0.15)
    low, high = of_mean(x).interval
    assert (low + high) / 2 == pytest.approx(x.mean())
    assert high - low == pytest.approx(2 * 1.96 * of_mean(x).error)


def test_resamples_depend_on_size_and_number_alone():
    assert counts(7, 3).sum() == 7
    np.testing.assert_array_equal(counts(100, 3), counts(100, 3))
    assert (counts(100, 3) != counts(100, 4)).any()
    assert (counts(100, 3) != counts(101, 3)[:100]).any()
    assert np.mean([counts(50, r) for r in range(400)], axis=0) == pytest.approx(1, abs=0.25)
    # the published stream: a change would unpair every stored score
    assert counts(8, 0).tolist() == [0, 0, 2, 2, 0, 1, 0, 3]


@pytest.mark.parametrize("N", [1, 2, 7, 100])
def test_halves_share_no_row_and_depend_on_size_and_number_alone(N):
    a, b = halves(N, 3)
    assert len(a) == len(b) == N // 2
    assert len(set(a) | set(b)) == N // 2 * 2
    np.testing.assert_array_equal(halves(N, 3), (a, b))
    # the published stream: a change would unpair every stored score
    assert [half.tolist() for half in halves(8, 0)] == [[6, 5, 1, 7], [2, 3, 4, 0]]


def test_sets_of_one_size_are_compared_in_pairs():
    generator = np.random.default_rng(1)
    shared, own = generator.normal(size=400), 0.1 * generator.normal(size=400)
    a, b = of_mean(shared), of_mean(shared + own + 0.05)
    assert gap_error(a, b) == pytest.approx(own.std() / 20, rel=0.15)
    assert verdict(a, b) == "lower"
    assert verdict(b, a) == "higher"
    longer = of_mean(np.concatenate([shared, shared[:100]]) + 0.02)
    assert gap_error(a, longer) == pytest.approx(math.hypot(a.error, longer.error))
    assert verdict(a, longer) == "no difference"
    assert verdict(a, a) == "no difference"


def test_pairs_that_share_nothing_err_as_in_quadrature():
    generator = np.random.default_rng(2)
    a, b = (of_mean(generator.normal(size=400)) for _ in range(2))
    assert gap_error(a, b) == pytest.approx(math.hypot(a.error, b.error), rel=0.2)


def test_the_scale_is_applied_before_the_gap():
    draws = np.array([1.0, 2.0, 3.0])
    a, b = Score(1, draws, 0.5, resampled=9), Score(1, draws, 1.0, resampled=9)
    assert a.error == pytest.approx(0.5)
    assert gap_error(a, b) == pytest.approx(0.5)


def values_of(values, size=0, biased=False):
    return repeated([Score(value, np.zeros(0), resampled=size, biased_by_size=biased) for value in values])


def test_repeats_have_students_interval():
    score = values_of([1.0, 2.0, 4.0], 50)
    assert (score.value, score.degrees, score.resampled) == (pytest.approx(7 / 3), 2, 50)
    assert score.error == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
    assert score.half_width == pytest.approx(4.302653 * score.error)  # the table's t of 2 degrees
    assert score.interval == pytest.approx((7 / 3 - score.half_width, 7 / 3 + score.half_width))
    single = of_mean(np.arange(9.0))
    assert repeated([single]) is single
    with pytest.raises(HemstitchError, match="at least one score"):
        repeated([])


@pytest.mark.parametrize(("a", "b"), [((1.0, 2.0, 4.0), (5.0, 5.5, 7.0, 7.5)), ((1.0, 3.0), (2.0, 9.0))])
def test_repeats_are_compared_by_welch(a, b):
    found = compared(values_of(a), values_of(b))
    interval = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.gap - found.half_width, found.gap + found.half_width) == pytest.approx(tuple(interval))
    assert found.said == ("lower" if interval.high < 0 else "no difference")


def test_verdicts_between_few_repeats_err_as_often_as_they_say_and_detect():
    """Welch's test of 2 and 3 repeats is a little careful: 2.3 % and 3.5 % instead of 5 %."""
    generator = np.random.default_rng(4)
    for n, fewest, most in ((2, 0.01, 0.04), (3, 0.02, 0.055), (6, 0.03, 0.065)):
        pairs = generator.normal(size=(3000, 2, n))
        flagged = [verdict(values_of(a), values_of(b)) != "no difference" for a, b in pairs]
        assert fewest < np.mean(flagged) < most
    far = generator.normal(size=(1000, 2, 3)) + np.array([[[0], [3]]])
    assert np.mean([verdict(values_of(a), values_of(b)) == "lower" for a, b in far]) > 0.6


def test_repeats_against_one_set_keep_students_width():
    repeats, one = values_of([1.0, 2.0, 4.0], 9), Score(3.0, np.array([-0.1, 0.1]) / math.sqrt(2) * 1e-6, resampled=9)
    assert compared(repeats, one).half_width == pytest.approx(repeats.half_width)  # the other is as good as known
    equal = Score(3.0, np.array([-1, 1]) / math.sqrt(2) * repeats.error, resampled=9)
    degrees = 2 * 2**2  # half of the variance has two
    expected = scipy.stats.t.ppf(0.975, degrees) * math.sqrt(2) * repeats.error
    assert compared(repeats, equal).half_width == pytest.approx(expected)
    assert compared(equal, equal).half_width == 0


def test_repeats_are_never_pairs_and_may_agree_wholly():
    a, b = values_of([1.0, 2.0], 9), values_of([3.0, 4.0], 9)
    assert gap_error(a, b) == pytest.approx(math.hypot(a.error, b.error))
    assert compared(values_of([1.0, 1.0]), values_of([1.0, 1.0])) == (0, 0, "no difference")
    assert verdict(values_of([1.0, 1.0]), values_of([2.0, 2.0])) == "lower"


def test_a_difference_of_size_is_not_taken_for_one_of_quality():
    def score(value, size, biased):
        return Score(value, np.array([-0.1, 0.1]), resampled=size, biased_by_size=biased)

    assert compared(score(1, 50, True), score(9, 60, True)).said == "no verdict"
    assert compared(score(1, 50, True), score(9, 60, True)).gap == -8
    assert verdict(score(1, 50, False), score(9, 60, True)) == "no verdict"
    assert verdict(score(1, 50, False), score(9, 60, False)) == "lower"
    assert verdict(score(1, 50, True), score(9, 50, True)) == "lower"
    assert verdict(score(1, 0, True), score(9, 60, True)) == "lower"  # unknown: as asked for
    assert verdict(values_of([1.0, 1.1], 50, True), score(9, 60, True)) == "no verdict"
    mixed = repeated([score(1, 50, True), score(1.1, 60, True)])
    assert verdict(mixed, mixed) == "no verdict"
    assert verdict(mixed, score(9, 0, True)) == "lower"


def test_no_draws_no_error_and_no_verdict():
    bare = Score(1.0, np.empty(0))
    assert math.isnan(bare.error)
    with pytest.raises(HemstitchError, match="at least 2 resamples"):
        verdict(bare, bare)


class Lazy:
    """Rows that can be sliced and indexed and nothing else."""

    def __init__(self, x):
        self.x, self.shape = x, x.shape

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        assert isinstance(index, slice) or index.dtype == np.int64
        return self.x[index]


def test_all_kinds_of_rows_read_alike(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    index = np.array([5, 1, 1], np.int64)
    for rows in (x, np.load(tmp_path / "x.npy", mmap_mode="r"), torch.from_numpy(x), Lazy(x), Lazy(torch.tensor(x))):
        np.testing.assert_array_equal(block(rows, 2, 5), x[2:5])
        np.testing.assert_array_equal(gathered(rows, index), x[index])
    assert block(x.astype(np.float16), 0, 9).dtype == np.float32
    assert block(torch.from_numpy(x).bfloat16(), 0, 9).dtype == np.float32
    assert block(x.astype(np.float64), 0, 9).dtype == np.float64


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.ones(5), np.ones((5, 2)), r"at least 2 samples as \(N, F\) features, not \(5,\)"),
        (np.ones((1, 2)), np.ones((5, 2)), "at least 2 samples"),
        (np.ones((5, 2)), np.ones((5, 3)), "the samples have 2 per image, the reference 3"),
    ],
)
def test_sets_that_do_not_compare_are_refused(x, y, said):
    with pytest.raises(HemstitchError, match=said):
        same_width(x, y, 2, "it")


def test_broken_features_are_refused():
    for value in (np.nan, np.inf):
        with pytest.raises(HemstitchError, match="NaN or infinity"):
            block(np.full((3, 2), value), 0, 3)
