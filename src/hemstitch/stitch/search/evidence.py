"""What it would change to do a single step otherwise: evidence for every step before any plan is sampled.

On trajectories of the largest member, every option (a member, with guidance or without) is asked at every step.
`moved` is how far it takes the state from where the largest takes it. `gain` is the sampler's sensitivity: how much a
change made by a step has grown when the largest member has finished the image, measured at some steps by finishing the
changed trajectories, and between them interpolated.

Shape suffixes: O options, S steps, A anchors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import HemstitchError
from ...samplers import State
from .frontier import Floats, Option
from .trunk import Ground, Root

ANCHORS = 5


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of each option at each step, root mean squares over samples and pixels, all (O, S) but gain (S,).

    x0, eps: difference of the predictions from the largest member's at its own state. moved: of the state after the
    step. gain: see the module. effect: (moved · gain)², the mean square by which the finished sample would differ if
    this step alone were done by the option. samples: trajectories it was measured on.
    """

    options: tuple[Option, ...]
    x0: Floats
    eps: Floats
    moved: Floats
    gain: Floats
    samples: int

    @property
    def effect(self) -> Floats:
        return (self.moved * self.gain) ** 2

    def to_data(self) -> dict[str, Any]:
        return {
            "options": [list(option) for option in self.options],
            **{name: getattr(self, name).tolist() for name in ("x0", "eps", "moved", "gain")},
            "samples": self.samples,
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Evidence:
        """The inverse of `to_data`. Raises `HemstitchError` for anything else."""
        try:
            options = tuple(Option(str(name), bool(guided)) for name, guided in data["options"])
            arrays = {name: np.array(data[name], dtype=np.float64) for name in ("x0", "eps", "moved", "gain")}
            evidence = cls(options, **arrays, samples=int(data["samples"]))
        except (KeyError, TypeError, ValueError) as error:
            raise HemstitchError(f"this is no evidence of a search: {error}") from None
        shape = len(options), len(evidence.gain)
        if any(getattr(evidence, name).shape != shape for name in ("x0", "eps", "moved")):
            raise HemstitchError("this is no evidence of a search: its arrays differ in shape")
        return evidence


def anchors_of(steps: int) -> list[int]:
    """The steps at which the gain is measured: the first, the last, and others evenly between."""
    return sorted({round(i) for i in np.linspace(0, steps - 1, min(ANCHORS, steps))})


def measured(
    ground: Ground, steps: int, options: Sequence[Option], usual: Sequence[Option], samples: int
) -> Iterator[Evidence]:
    """The evidence after each batch of trajectories, growing to `samples`.

    usual: (S,) what the largest member does at each step, guided as asked: the trajectory that others are held against.
    """
    taken: list[tuple[int, _Sums]] = []
    for start in range(0, samples, ground.batch):
        rows = range(start, min(samples, start + ground.batch))
        taken.append((len(rows), _of_batch(ground.root(steps, usual[0].member, rows), steps, options, usual)))
        yield _joined(taken, tuple(options))


@dataclass(frozen=True, eq=False)
class _Sums:
    """Mean squares of one batch: x0, eps, moved (O, S); before and after (A,), of changes when made and at the end."""

    x0: Floats
    eps: Floats
    moved: Floats
    before: Floats
    after: Floats


def _of_batch(root: Root, steps: int, options: Sequence[Option], usual: Sequence[Option]) -> _Sums:
    x0, eps, moved = (np.zeros((len(options), steps)) for _ in range(3))
    anchors = anchors_of(steps)
    changed: dict[int, tuple[float, State]] = {}
    state = root.state
    for s in range(steps):
        onward, said = root.stepped(state, usual[s])
        for o, option in enumerate(options):
            if option == usual[s]:
                continue
            other, theirs = root.stepped(state, option)
            x0[o, s] = _mean_square(theirs.x0, said.x0)
            eps[o, s] = _mean_square(theirs.eps, said.eps)
            moved[o, s] = _mean_square(other.x, onward.x)
            if not np.isfinite([x0[o, s], eps[o, s], moved[o, s]]).all():
                raise HemstitchError(
                    f"at step {s} {option.member} or {usual[s].member} predicts NaN or infinity: use another "
                    "precision, sampler or guidance"
                )
            # the change that differs most from nothing shows the gain best
            if s in anchors and moved[o, s] > changed.get(s, (0.0, other))[0]:
                changed[s] = moved[o, s], other
        state = onward
    before, after = np.zeros(len(anchors)), np.zeros(len(anchors))
    for a, s in enumerate(anchors):
        if s in changed:
            before[a], other = changed[s]
            for later in range(s + 1, steps):
                other = root.step(other, usual[later])
            after[a] = _mean_square(other.x, state.x)
    return _Sums(x0, eps, moved, before, after)


def _mean_square(a: Tensor, b: Tensor) -> float:
    return float(torch.mean((a.double() - b.double()) ** 2))


def _joined(taken: Sequence[tuple[int, _Sums]], options: tuple[Option, ...]) -> Evidence:
    total = sum(n for n, _ in taken)

    def mean(name: str) -> Floats:
        return np.sum([n * getattr(sums, name) for n, sums in taken], axis=0) / total

    x0, eps, moved = (np.sqrt(mean(name)) for name in ("x0", "eps", "moved"))
    return Evidence(options, x0, eps, moved, _gain(x0.shape[1], mean("before"), mean("after")), total)


def _gain(steps: int, before_A: Floats, after_A: Floats) -> Floats:
    """(S,) from its measurements at the anchors: log-linear between them. 1 where nothing was changed."""
    seen = (before_A > 0) & (after_A > 0)
    if not seen.any():
        return np.ones(steps)
    where = np.array(anchors_of(steps))[seen]
    logs = np.log(after_A[seen] / before_A[seen]) / 2
    return np.exp(np.interp(np.arange(steps), where, logs))
