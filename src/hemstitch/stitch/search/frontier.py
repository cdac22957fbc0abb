"""The exact frontier of plans whose value is a sum over steps.

Dynamic programming over steps. A label is a partial plan's (cost, value); labels that another of the same state beats
in both are dropped, which loses no plan of the frontier because what follows depends on the state alone. Costs are
whole nanoseconds, so that equal costs are equal.

Shape suffixes: S steps, O options, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import HemstitchError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_LABELS = 20_000  # of one state and step; more are thinned


class Option(NamedTuple):
    """How a step may be done: by which member, and whether guided."""

    member: str
    guided: bool


class Ending(NamedTuple):
    """A plan on the frontier: its cost (ms), its value (lower is better), and the option of each step."""

    ms: float
    value: float
    options: tuple[int, ...]


@dataclass(frozen=True)
class Rules:
    """What a plan may look like.

    seams: changes of member at most, None for any number. interval: guided steps follow one another, without a gap.
    """

    seams: int | None = None
    interval: bool = False


class _State(NamedTuple):
    """What decides which options may follow: the member that ran last and the seams so far (None where they do not
    matter), and whether guidance is still to come (0), on (1) or over (2)."""

    member: str | None
    seams: int
    phase: int


@dataclass(frozen=True, eq=False)
class _Labels:
    """Partial plans of one state, by rising cost and falling value, and where each came from."""

    cost: Ints
    value: Floats
    came_state: Ints
    came_label: Ints
    option: Ints


def frontier(
    values_SO: Floats,
    ms_SO: Floats,
    options: Sequence[Option],
    rules: Rules = Rules(),
    allowed_SO: NDArray[np.bool_] | None = None,
) -> list[Ending]:
    """Every plan that no other beats in cost and value both, by rising cost.

    values_SO: what each option adds to the objective at each step. ms_SO: what it costs, milliseconds. allowed_SO:
    which options a step has, by default all. Exact, unless a state has more than MOST_LABELS labels, which are then
    thinned to the best of each of so many equal parts of the cost: a plan found is then at most 1 / MOST_LABELS of the
    dearest plan's cost, a step, from an exact one.
    """
    S, O = values_SO.shape
    if ms_SO.shape != (S, O) or len(options) != O or S < 1 or O < 1:
        raise HemstitchError(f"values and costs are (steps, options) alike, not {values_SO.shape} and {ms_SO.shape}")
    if not (np.isfinite(values_SO).all() and np.isfinite(ms_SO).all() and (ms_SO >= 0).all()):
        raise HemstitchError("values and costs are finite, costs at least 0")
    cost_SO = np.rint(ms_SO * 1e6).astype(np.int64)
    thin = max(1, int(cost_SO.max(1).sum()) // MOST_LABELS)
    states, start = _states(options, rules)
    nothing = np.zeros(1, np.int64)
    tables: list[dict[int, _Labels]] = [{start: _Labels(nothing, np.zeros(1), nothing, nothing, nothing)}]
    for s in range(S):
        found: dict[int, list[_Labels]] = {}
        for here, labels in tables[-1].items():
            for o, option in enumerate(options):
                there = _after(states[here], option, rules)
                if there is None or not (allowed_SO is None or allowed_SO[s, o]):
                    continue
                n = len(labels.cost)
                grown = _Labels(
                    labels.cost + cost_SO[s, o],
                    labels.value + values_SO[s, o],
                    np.full(n, here),
                    np.arange(n),
                    np.full(n, o),
                )
                found.setdefault(states.index(there), []).append(grown)
        tables.append({state: _undominated(parts, thin) for state, parts in found.items()})
    return [*_endings(tables)]


def best(endings: Sequence[Ending], ms: float) -> Ending | None:
    """The best plan of a frontier that costs no more, None if none does."""
    affordable = [ending for ending in endings if ending.ms <= ms * (1 + 1e-9)]
    return affordable[-1] if affordable else None


def _states(options: Sequence[Option], rules: Rules) -> tuple[list[_State], int]:
    """All states, and the index of the one before the first step."""
    if rules.seams is not None and rules.seams < 0:
        raise HemstitchError(f"the number of seams is at least 0, not {rules.seams}")
    names: list[str | None] = [None]
    if rules.seams is not None:
        names += dict.fromkeys(option.member for option in options)
    counts = range(1 if rules.seams is None else rules.seams + 1)
    states = [_State(*parts) for parts in product(names, counts, range(3 if rules.interval else 1))]
    return states, states.index(_State(None, 0, 0))


def _after(state: _State, option: Option, rules: Rules) -> _State | None:
    """The state after a step by this option, None where the rules forbid it."""
    phase = state.phase
    if rules.interval:
        if option.guided and phase == 2:
            return None
        phase = 1 if option.guided else 2 if phase == 1 else phase
    if rules.seams is None:
        return _State(None, 0, phase)
    seams = state.seams + (state.member is not None and state.member != option.member)
    return None if seams > rules.seams else _State(option.member, seams, phase)


def _undominated(parts: Sequence[_Labels], thin: int) -> _Labels:
    """The labels that no other beats, by rising cost."""
    joined: list[Any] = [
        np.concatenate([getattr(p, f) for p in parts]) for f in ("cost", "value", "came_state", "came_label", "option")
    ]
    cost, value = joined[0], joined[1]
    key = cost // thin if len(cost) > MOST_LABELS else cost
    order = np.lexsort((cost, value, key))
    ordered = value[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(ordered)[:-1]])
    kept = order[ordered < before]
    return _Labels(*(column[kept] for column in joined))


def _endings(tables: Sequence[dict[int, _Labels]]) -> Iterator[Ending]:
    """The plans of the last table, over all states, walked back."""
    ends = [
        (int(labels.cost[i]), float(labels.value[i]), state, i)
        for state, labels in tables[-1].items()
        for i in range(len(labels.cost))
    ]
    least = np.inf
    for cost, value, last, index in sorted(ends, key=lambda end: end[:2]):
        if value >= least:
            continue
        least = value
        options, state, i = [], last, index
        for table in reversed(tables[1:]):
            labels = table[state]
            options.append(int(labels.option[i]))
            state, i = int(labels.came_state[i]), int(labels.came_label[i])
        yield Ending(cost / 1e6, value, tuple(reversed(options)))
