"""Oracle: standard errors against the spread of fresh draws. Invariance: resamples. Fault: features that are broken."""

import math

import numpy as np
import pytest
import torch

from hemstitch import HemstitchError
from hemstitch.evaluate.score import Score, block, counts, gap_error, gathered, resampled_means, same_width, verdict


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
