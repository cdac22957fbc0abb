"""Oracle: closed forms and a direct evaluation of the definition."""

import numpy as np
import pytest
import torch

from hemstitch import HemstitchError
from hemstitch.evaluate.inception_score import inception_score


def logits(N=600, K=12, seed=0):
    return np.random.default_rng(seed).normal(size=(N, K)) * 3


def defined(x, splits):
    """The definition, sample by sample."""
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    scores = []
    for part in np.array_split(p, splits):
        q = part.mean(0)
        scores.append(np.exp(np.mean([(row * np.log(row / q)).sum() for row in part])))
    return np.mean(scores), np.std(scores)


def test_sure_and_even_answers_score_the_number_of_classes():
    sure = 2000.0 * np.eye(10)[np.arange(1000) % 10]
    result = inception_score(sure, splits=10, order="given")
    assert result.score.value == pytest.approx(10, rel=1e-12)
    assert result.splits_std == pytest.approx(0, abs=1e-12)


def test_one_answer_for_all_scores_one():
    assert inception_score(np.tile(logits(1), (50, 1)), splits=5).score.value == pytest.approx(1, rel=1e-12)


def test_it_is_its_definition_and_shuffles_as_said():
    x = logits()
    given = inception_score(x, order="given")
    assert (given.score.value, given.splits_std) == pytest.approx(defined(x, 10), rel=1e-12)
    shuffled = inception_score(x)
    expected = defined(x[np.random.RandomState(2020).permutation(600)], 10)
    assert (shuffled.score.value, shuffled.splits_std) == pytest.approx(expected, rel=1e-12)
    assert "shuffled" in shuffled.score.note


def test_smaller_parts_score_lower_and_the_score_says_that_size_matters():
    many, few = inception_score(logits(600)).score, inception_score(logits(60)).score
    assert few.value < many.value
    assert many.biased_by_size


def test_rows_of_any_kind_score_alike():
    x = logits().astype(np.float32)
    assert inception_score(torch.from_numpy(x)).score.value == inception_score(x).score.value


def test_the_error_is_the_spread_of_fresh_samples():
    results = [inception_score(logits(seed=i), resamples=40 if i < 4 else 0).score for i in range(60)]
    spread = np.std([r.value for r in results], ddof=1)
    assert 0.6 * spread < np.mean([r.error for r in results[:4]]) < 1.6 * spread


def test_a_split_that_a_resample_misses_is_left_out():
    assert np.isfinite(inception_score(logits(12), splits=12).score.draws).all()


@pytest.mark.parametrize(
    ("x", "changes", "said"),
    [
        (logits(9), {}, "at least 10 samples, not 9"),
        (logits(9), {"splits": 0}, "give 1..9"),
        (logits(20), {"order": "sorted"}, "'sorted'"),
        (np.full((20, 3), np.nan), {}, "NaN"),
        (np.ones(20), {}, "logits"),
    ],
)
def test_bad_input_is_refused(x, changes, said):
    with pytest.raises(HemstitchError, match=said):
        inception_score(x, **changes)


def test_parts_are_adms():
    """Consecutive parts of so many, the last of what is left."""
    logits = np.random.default_rng(5).normal(size=(23, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = []
    for start in range(0, 23, 10):
        part = p[start : start + 10]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    found = inception_score(logits, order="given", part=10)
    assert found.score.value == pytest.approx(np.mean(scores), rel=1e-12)
    assert "3 splits of 10" in found.score.note
