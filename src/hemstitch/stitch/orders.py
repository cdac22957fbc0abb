"""Who goes first: the orders that T-Stitch compares its own with, at equal cost (PAPERS 2.2, "Who goes first").

Each has the same number of small steps, so the same latency, and differs in where they lie. Shape suffixes: K steps,
n small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .. import seeds
from ..errors import StitchError
from .plan import Plan

MOST_DRAWN = 4000  # steps of a drawn order, whose table of counts has up to MOST_DRAWN² entries of 8 bytes
_STREAM = 2**21 + 3  # of seeds.py


def small_to_large(K: int, n: int, seed: int) -> list[bool]:
    """T-Stitch's own."""
    return [i < n for i in range(K)]


def large_to_small(K: int, n: int, seed: int) -> list[bool]:
    return [i >= K - n for i in range(K)]


def interleaved(K: int, n: int, seed: int) -> list[bool]:
    """In turn, small first, spread evenly at any share: of the first i steps ⌈i·n/K⌉ are small (Bresenham's line)."""
    return [-(-(i + 1) * n // K) > -(-i * n // K) for i in range(K)]


def decreasing(K: int, n: int, seed: int) -> list[bool]:
    """Each step small at random with a probability that falls linearly from 1 to 0, given that n are small in all.

    Step i is small with p_i = 1 - (i + ½)/K, independently of the others, under the condition that n are: of all
    trials those with n small steps are kept, only that no trial is wasted. With R(i, m) = P(m of the steps i.. are
    small), step i is drawn small with p_i · R(i + 1, m - 1) / R(i, m), m being those still to come; any other way to
    mend the count, such as flipping steps at random, would draw other orders too often. Step i of a seed is drawn by
    the number that the seed and i are the key of.
    """
    if K > MOST_DRAWN:
        raise StitchError(f"a decreasing order has at most {MOST_DRAWN} steps, not {K}: take another order")
    log_R = log_counts(K, n)
    u_K = seeds.uniform(seeds.keys([(seed, i) for i in range(K)]), _STREAM).tolist()
    drawn, left = [], n
    for i, (u, p) in enumerate(zip(u_K, falling(K), strict=True)):
        chance = p * math.exp(log_R[i + 1, left - 1] - log_R[i, left]) if left else 0.0
        drawn.append(left == K - i or u < chance)
        left -= drawn[-1]
    return drawn


def falling(K: int) -> NDArray[np.float64]:
    """(K,) 1 - (i + ½)/K: from 1 to 0 along the trajectory, at the middle of each step; so no count is impossible."""
    return 1 - (np.arange(K) + 0.5) / K


def log_counts(K: int, n: int) -> NDArray[np.float64]:
    """(K+1, n+1) log P(m of the steps i.. are small) for steps that are small independently, with `falling`."""
    log_R = np.full((K + 1, n + 1), -np.inf)
    log_R[K, 0] = 0.0
    for i, p in reversed(list(enumerate(falling(K)))):
        log_R[i] = log_R[i + 1] + np.log1p(-p)
        log_R[i, 1:] = np.logaddexp(log_R[i, 1:], log_R[i + 1, :-1] + np.log(p))
    return log_R


ORDERS: dict[str, Callable[[int, int, int], list[bool]]] = {
    "small_to_large": small_to_large,
    "large_to_small": large_to_small,
    "interleaved": interleaved,
    "decreasing": decreasing,
}


def ordered(name: str, small: str, large: str, steps: int, share: float = 0.5, seed: int = 0) -> Plan:
    """A plan of `steps` steps, ⌊share·steps⌋ of them by `small` as in `Plan.fractions`, in the order of that name.

    name: one of `ORDERS`. seed: of "decreasing", which is drawn. The rule of the plan is "order:" and the name.
    """
    if name not in ORDERS:
        raise StitchError(f"an order is one of {', '.join(ORDERS)}, not {name!r}")
    if small == large:
        raise StitchError(f"an order is of two members, and both are {small!r}: name the other")
    if type(steps) is not int or steps < 1:
        raise StitchError(f"a plan has at least one step, a whole number of them; not {steps!r}")
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise StitchError(f"share, of the steps that {small} takes, lies in 0..1; not {share!r}")
    is_small = ORDERS[name](steps, math.floor(round(share * steps, 9)), seed)
    return Plan(tuple(small if first else large for first in is_small), rule=f"order:{name}")
