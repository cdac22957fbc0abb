"""The Inception Score (Salimans et al. 2016, sec. 4): how sure a classifier is of each image, and how varied of all.

Shape suffixes: N samples, K classes, R resamples.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, xlogy

from ..errors import HemstitchError
from .score import Array, Rows, Score, counts, gathered, shape_of

Order = Literal["shuffled", "given"]
SHUFFLE_SEED = 2020  # torch-fidelity's


class InceptionScore(NamedTuple):
    """score: mean over the splits, with its bootstrap. splits_std: deviation over the splits (ddof 0), as published."""

    score: Score
    splits_std: float


def inception_score(
    logits_NK: Rows, splits: int = 10, order: Order = "shuffled", resamples: int = 100, part: int | None = None
) -> InceptionScore:
    """exp E_x KL(p(y|x) ‖ p(y)), the mean over `splits` equal parts of the samples, float64.

    order: "shuffled" permutes the samples first, by NumPy's RandomState(2020), as torch-fidelity 0.4 does by default;
    "given" takes consecutive samples. part: how many in each, instead of splits: with "given" and 5,000 it is the score
    of ADM's evaluator (Dhariwal and Nichol 2021), the last part being what is left. The error is by bootstrap over the
    samples, each staying in its part. Biased by size: the smaller the parts, the lower the score (Chong and Forsyth
    2020). Raises `HemstitchError` for fewer samples than splits, an unknown order, NaN or infinity.
    """
    N, _ = shape_of(logits_NK, 1, "an Inception Score", "logits")
    if order not in ("shuffled", "given"):
        raise HemstitchError(f'the order of samples is "shuffled" or "given", not {order!r}')
    if (part is not None and part < 1) or (part is None and not 1 <= splits <= N):
        raise HemstitchError(
            f"{splits} splits of an Inception Score need at least {max(splits, 1)} samples, not {N}: give 1..{N}"
        )
    if part is not None:
        splits = -(-N // part)
    edges = [i * N // splits for i in range(splits + 1)] if part is None else [*range(0, N, part), N]
    index = np.random.RandomState(SHUFFLE_SEED).permutation(N) if order == "shuffled" else np.arange(N)
    weights = np.stack([np.ones(N, np.int64), *(counts(N, r) for r in range(resamples))])
    values = np.empty((splits, len(weights)))
    for i in range(splits):
        rows = index[edges[i] : edges[i + 1]].astype(np.int64)
        values[i] = _scores(gathered(logits_NK, rows), weights[:, rows])
    scores = np.nanmean(values, axis=0)  # a split of which a resample drew nothing says nothing about it
    note = f"mean over {splits} splits of {edges[1]}, order {order}; bootstrap over the samples"
    score = Score(float(scores[0]), scores[1:], note=note, resampled=N, biased_by_size=True)
    return InceptionScore(score, float(values[:, 0].std()))


def _scores(logits_NK: NDArray[np.floating], weights_RN: NDArray[np.int64]) -> Array:
    """(R,) scores under each weighting: E KL(p ‖ q) = E Σ p log p - Σ q log q, with q the weighted mean of p."""
    log_p = log_softmax(logits_NK.astype(np.float64), axis=1)
    p = np.exp(log_p)
    certainty_N = (p * log_p).sum(1)
    weights = weights_RN.astype(np.float64)
    drawn = weights.sum(1)
    weights /= np.where(drawn > 0, drawn, np.nan)[:, None]
    q = weights @ p
    return np.exp(weights @ certainty_N - xlogy(q, q).sum(1))
