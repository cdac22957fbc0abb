"""A sampling loop that stops at every noise level with what was predicted there.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..denoiser import Prediction
from ..sampling import Job, advance


@dataclass(frozen=True)
class Visit:
    """A trajectory at one noise level.

    index: 0 .. K. t: (B,) times, float64 on the host. x: (B, C, H, W) there. prediction: what the model said about x,
    the first time a sampler asked in this step; None at index K, where x is the finished image.
    """

    index: int
    t: Tensor
    x: Tensor
    prediction: Prediction | None


def visits(job: Job) -> Iterator[Visit]:
    """Sample as `sampling.run` does, to the same bits, showing the beginning of every step and the end: K+1 visits."""
    state = job.state
    K = int(state.levels.count[0])
    for index in range(K):
        x, t = state.x, state.t
        first = None
        while int(state.step[0]) == index:
            state, prediction = advance(job, state)
            first = first or prediction
        yield Visit(index, t, x, first)
    yield Visit(K, state.t, state.x, None)
