"""Plan: which member runs at which solver step. A value: frozen, explicit, JSON in and out."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..errors import StitchError
from ..files import read_json

logger = logging.getLogger(__name__)

MOST_STEPS = 100_000  # of a plan read from a file
RULES = ("timestep", "completed", "started")


@dataclass(frozen=True)
class Plan:
    """One member name per solver step, noisiest step first.

    assignment: (K,) names. rule: how the plan was made, kept for the reader; it decides nothing.
    """

    assignment: tuple[str, ...]
    rule: str = "explicit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "assignment", tuple(self.assignment))
        if not self.assignment:
            raise StitchError("a plan has at least one step")
        for name in self.assignment:
            if not isinstance(name, str) or not name:
                raise StitchError(f"a plan names a member at every step; got {name!r}")

    @property
    def steps(self) -> int:
        return len(self.assignment)

    @property
    def counts(self) -> dict[str, int]:
        """Steps per member, in the order in which they first run."""
        counts: dict[str, int] = {}
        for name in self.assignment:
            counts[name] = counts.get(name, 0) + 1
        return counts

    @property
    def fraction(self) -> float | None:
        """The share of steps of the first of two members in a plain small-first plan; None for any other plan."""
        runs = [len(list(group)) for _, group in groupby(self.assignment)]
        return runs[0] / self.steps if len(runs) == 2 else None

    @classmethod
    def explicit(cls, assignment: Sequence[str]) -> Plan:
        """Any order at all: one member name per step."""
        if isinstance(assignment, str):
            raise StitchError(f"an explicit plan is a list of names, one per step; got the string {assignment!r}")
        return cls(tuple(assignment))

    @classmethod
    def fractions(cls, fractions: Mapping[str, float], steps: int) -> Plan:
        """The first ⌊f·K⌋ steps to each member in the order given, what remains to the last (PAPERS: T-Stitch 2.1).

        Fractions sum to 1 and are read as decimals: .29 of 100 steps is 29. The counts are logged.
        """
        check_fractions(fractions)
        names = list(fractions)
        counts = [math.floor(round(fractions[name] * steps, 9)) for name in names[:-1]]
        plan = cls._from_counts([*zip(names, [*counts, steps - sum(counts)], strict=True)], rule="fractions")
        logger.info("plan of %d steps: %s", steps, plan)
        return plan

    @classmethod
    def steps_each(cls, counts: Mapping[str, int]) -> Plan:
        """So many steps for each member, in the order given: {"small": 40, "large": 60}."""
        for name, count in counts.items():
            if not isinstance(count, int) or count < 0:
                raise StitchError(f"a step count is a whole number of at least 0; {name} has {count!r}")
        return cls._from_counts(list(counts.items()), rule="counts")

    @classmethod
    def released(
        cls, rule: str, fractions: Mapping[str, float], timesteps: Sequence[float], train_steps: int = 1000
    ) -> Plan:
        """The rules of the released T-Stitch code, which disagree with each other, by name, for parity.

        timesteps: the grid, noisiest first. rule: "timestep" (its DiT: small while 1 - t/T <= r), "completed" (its
        Stable Diffusion: small while (i+1)/K <= r) or "started" (its LCM: small while i/K <= r). With more than two
        members r is the cumulative fraction. A fraction of 0 gives no step to its member under any rule but "started".
        """
        if rule not in RULES:
            raise StitchError(f"released rules are {', '.join(RULES)}, not {rule!r}")
        check_fractions(fractions)
        times = [float(t) for t in timesteps]
        K = len(times)
        progress = {
            "timestep": [1 - t / train_steps for t in times],
            "completed": [(i + 1) / K for i in range(K)],
            "started": [i / K for i in range(K)],
        }[rule]
        names, ends, total = list(fractions), [], 0.0
        for name in names:
            total += fractions[name]
            ends.append(round(total, 9))
        assignment = []
        for p in progress:
            reached = [name for name, end in zip(names[:-1], ends[:-1], strict=True) if round(p, 9) <= end]
            assignment.append(reached[0] if reached else names[-1])
        return cls(tuple(assignment), rule=f"released:{rule}")

    @classmethod
    def _from_counts(cls, counts: list[tuple[str, int]], rule: str) -> Plan:
        return cls(tuple(name for name, count in counts for _ in range(count)), rule=rule)

    def to_json(self) -> str:
        """{"rule", "steps", "assignment": [[name, run length], …]}"""
        runs = [[name, len(list(group))] for name, group in groupby(self.assignment)]
        return json.dumps({"rule": self.rule, "steps": self.steps, "assignment": runs})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`; unknown or missing keys are refused."""
        return cls.from_data(read_json(text, "a plan"))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Plan:
        """From a JSON object already read."""
        if data.get("rule") == "adaptive":
            raise StitchError(
                "this is an adaptive plan, whose members every sample finds for itself, and here the member of each "
                "step is needed beforehand: give a fixed plan (`AdaptivePlan.fixed` makes one of a seam)"
            )
        if set(data) != {"rule", "steps", "assignment"}:
            raise StitchError(f"a plan has the keys rule, steps, assignment; got {', '.join(sorted(data)) or 'none'}")
        runs = data["assignment"]
        if not isinstance(runs, list) or not all(
            isinstance(r, list) and len(r) == 2 and isinstance(r[0], str) and type(r[1]) is int and r[1] > 0
            for r in runs
        ):
            raise StitchError("a plan's assignment is a list of [name, number of steps]")
        total = sum(count for _, count in runs)
        if total != data["steps"] or total > MOST_STEPS:
            raise StitchError(
                f"a plan's assignment adds up to the steps it says, {MOST_STEPS:,} at most; {total} and {data['steps']}"
            )
        return cls._from_counts([(name, count) for name, count in runs], rule=str(data["rule"]))

    def __str__(self) -> str:
        runs = [(name, len(list(group))) for name, group in groupby(self.assignment)]
        if len(runs) > 8:
            return ", ".join(f"{name} ×{count}" for name, count in self.counts.items()) + f" in {len(runs)} runs"
        return " → ".join(f"{name} ×{count}" for name, count in runs)


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise a StitchError unless these are shares of one whole: each in 0..1, together 1."""
    if not fractions:
        raise StitchError("fractions name at least one member: {'small': 0.4, 'large': 0.6}")
    for name, fraction in fractions.items():
        if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise StitchError(f"a fraction lies in 0..1; {name} has {fraction!r}")
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise StitchError(f"fractions sum to 1; {dict(fractions)} sum to {total:g}")
