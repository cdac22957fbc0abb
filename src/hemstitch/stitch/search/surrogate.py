"""What plans are expected to measure, learned from those that were measured.

A plan's distance beyond the largest member's is taken as a sum over its steps, one term for each option and position
along the trajectory, plus what no such sum explains. The terms are jointly Gaussian: in mean and in part of their
variance they follow the evidence, and beyond that they are smooth in position, alike for all options. Conditioned on
measured distances, a linear model; its mean is again a sum over steps, which `frontier` minimises exactly.

Shape suffixes: O options, G positions (cells of the largest number of steps), P = O · G terms, M measured plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from .evidence import Evidence
from .frontier import Floats, Option
from .trunk import Candidate

AMPLITUDES = (0.25, 0.5, 1.0, 2.0)  # of the smooth part, in units of the cheapest plan's distance beyond the largest's
LENGTHS = (0.08, 0.15, 0.3)  # of its correlation, in shares of the trajectory
NUGGETS = (0.01, 0.03, 0.1, 0.2)  # of what is not additive, in the same units
ALIKE = 0.7  # correlation of the smooth parts of two options at one position


@dataclass(frozen=True, eq=False)
class Measured:
    """A plan's distance less the largest member's at all steps, on the same samples, and the standard error of that."""

    candidate: Candidate
    gap: float
    error: float


@dataclass(frozen=True, eq=False)
class Terms:
    """What candidates are made of.

    usual: what the largest member does at each of the G steps; it adds nothing there.
    """

    evidence: Evidence
    usual: tuple[Option, ...]

    @property
    def cells(self) -> int:
        return len(self.usual)

    @cached_property
    def index(self) -> dict[Option, int]:
        return {option: o for o, option in enumerate(self.evidence.options)}

    @cached_property
    def other(self) -> Floats:
        """(O, G): 1 where an option is not what the largest member does."""
        return np.array([[float(option != usual) for usual in self.usual] for option in self.evidence.options])

    def spread(self, steps: int) -> Floats:
        """(steps, G): how much of each cell a step of a plan of so many covers."""
        edges = np.arange(self.cells + 1)
        low, high = (
            np.arange(steps)[:, None] * self.cells / steps,
            np.arange(1, steps + 1)[:, None] * self.cells / steps,
        )
        return np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None)

    def weights(self, candidate: Candidate) -> Floats:
        """(P,): how much of each term a candidate has."""
        spread = self.spread(candidate.plan.steps)
        weights_OG = np.zeros_like(self.other)
        for s, option in enumerate(candidate.options):
            weights_OG[self.index[option]] += spread[s]
        return (weights_OG * self.other).reshape(-1)

    @cached_property
    def shapes(self) -> list[Floats]:
        """(P,) each, as the evidence has it: the effect of a step on the finished sample, and on the state alone.

        A distance between distributions forgives early changes, which the effect on the sample does not know: how much
        of each counts is learned. Scaled so that the option that changes most, at all steps, comes to 1.
        """
        found = []
        for raw in (self.evidence.effect, self.evidence.moved**2):
            shape = raw * self.other
            most = shape.sum(1).max()
            found.append((shape / most if most > 0 else self.other / self.cells).reshape(-1))
        return found

    def prior(self, scale: float, amplitude: float, length: float) -> tuple[Floats, Floats]:
        """Mean (P,) and covariance (P, P) of the terms."""
        first, second = self.shapes
        mean = scale * (first + second) / 2
        covariance = (scale / 2) ** 2 * (np.outer(first, first) + np.outer(second, second))
        position = (np.arange(self.cells) + 0.5) / self.cells
        near = np.exp(-(((position[:, None] - position[None]) / length) ** 2) / 2)
        size = np.sqrt(np.clip(second.reshape(self.other.shape).sum(1), 0.04, 1))
        alike = np.where(np.eye(len(size), dtype=bool), 1.0, ALIKE) * np.outer(size, size)
        smooth = (amplitude * scale / self.cells) ** 2 * np.kron(alike, near)
        there = self.other.reshape(-1)
        return mean, covariance + smooth * np.outer(there, there)


@dataclass(frozen=True, eq=False)
class Belief:
    """Terms and the offsets of other numbers of steps, Gaussian.

    mean (P + K,) and covariance of the terms and then of the K offsets. nugget: standard deviation of what is not
    additive. residual: for measured plans, what of that their measurements showed.
    """

    terms: Terms
    steps: tuple[int, ...]
    mean: Floats
    covariance: Floats
    nugget: float
    residual: Mapping[Candidate, float]

    def row(self, candidate: Candidate) -> Floats:
        return _row(self.terms, self.steps, candidate)

    def additive(self, candidate: Candidate) -> float:
        """The expected gap as a sum over steps, as for a plan that was not measured."""
        return float(self.row(candidate) @ self.mean)

    def expected(self, candidate: Candidate) -> float:
        """The expected gap; of a measured plan, what was seen beyond the sum counts, too."""
        return self.additive(candidate) + self.residual.get(candidate, 0.0)

    def deviation(self, candidate: Candidate) -> float:
        """Standard deviation of the gap of a plan that was not measured."""
        row = self.row(candidate)
        variance = float(row @ self.covariance @ row)
        return math.sqrt(max(0.0, variance) + self.nugget**2)

    def values(self, steps: int, mean: Floats | None = None) -> tuple[Floats, float]:
        """(S, O) terms of plans of so many steps, for `frontier`, and the offset that all of them have."""
        mean = self.mean if mean is None else mean
        P = self.terms.other.size
        terms_OG = mean[:P].reshape(self.terms.other.shape) * self.terms.other
        offset = float(mean[P + self.steps.index(steps)]) if steps in self.steps else 0.0
        return self.terms.spread(steps) @ terms_OG.T, offset

    def drawn(self, generator: np.random.Generator) -> Floats:
        """(P + K,) one possible truth, as this belief has it (Thompson 1933)."""
        values, vectors = np.linalg.eigh(self.covariance)
        return self.mean + vectors @ (np.sqrt(values.clip(0)) * generator.standard_normal(len(values)))


def _row(terms: Terms, steps: Sequence[int], candidate: Candidate) -> Floats:
    offsets = np.array([float(candidate.plan.steps == other) for other in steps])
    return np.concatenate([terms.weights(candidate), offsets])


def learned(terms: Terms, steps: Sequence[int], measured: Sequence[Measured]) -> Belief:
    """The belief after measurements: hyper-parameters of greatest marginal likelihood, then conditioned.

    steps: numbers of steps other than G that candidates may have. Without measurements it is the prior at unit scale.
    """
    steps = tuple(steps)
    gaps = np.array([m.gap for m in measured])
    scale = float(np.abs(gaps).max(initial=0)) or 1.0
    if not measured:
        mean, covariance = _prior(terms, steps, scale, 1.0, 0.15)
        return Belief(terms, steps, mean, covariance, 0.1 * scale, {})
    rows = np.stack([_row(terms, steps, m.candidate) for m in measured])
    noise = np.diag([max(m.error, 1e-4 * scale) ** 2 for m in measured])
    best: tuple[float, float, Floats, Floats] | None = None
    for amplitude, length, nugget in product(AMPLITUDES, LENGTHS, NUGGETS):
        mean, covariance = _prior(terms, steps, scale, amplitude, length)
        seen = rows @ covariance @ rows.T + noise + (nugget * scale) ** 2 * np.eye(len(rows))
        rest = gaps - rows @ mean
        _, log_det = np.linalg.slogdet(seen)
        likelihood = -0.5 * float(rest @ np.linalg.solve(seen, rest) + log_det)
        if best is None or likelihood > best[0]:
            best = likelihood, nugget * scale, mean, covariance
    assert best is not None
    _, nugget, mean, covariance = best
    seen = rows @ covariance @ rows.T + noise + nugget**2 * np.eye(len(rows))
    gain = np.linalg.solve(seen, rows @ covariance).T
    pull = np.linalg.solve(seen, gaps - rows @ mean)
    residual = {m.candidate: float(nugget**2 * p) for m, p in zip(measured, pull, strict=True)}
    return Belief(
        terms, steps, mean + gain @ (gaps - rows @ mean), covariance - gain @ rows @ covariance, nugget, residual
    )


def _prior(
    terms: Terms, steps: tuple[int, ...], scale: float, amplitude: float, length: float
) -> tuple[Floats, Floats]:
    """Of the terms, and of the offsets.

    Fewer steps cost a solver's error, which falls as a power of their number: of first and second order, and a little
    of each number's own.
    """
    mean, covariance = terms.prior(scale, amplitude, length)
    K, P = len(steps), len(mean)
    whole = np.zeros((P + K, P + K))
    whole[:P, :P] = covariance
    least = min((*steps, terms.cells))
    for order in (1, 2) if K and least < terms.cells else ():
        error = np.array([s**-order - terms.cells**-order for s in steps]) / (least**-order - terms.cells**-order)
        whole[P:, P:] += scale**2 * np.outer(error, error)
    whole[P:, P:] += (0.05 * scale) ** 2 * np.eye(K)
    return np.concatenate([mean, np.zeros(K)]), whole
