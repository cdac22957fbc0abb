"""Route: which member a pipeline's call of its network goes to.

What is chosen (a fraction and its rule, or a plan) is a value that may change between calls of the pipeline; what a
call belongs to is read from its timestep. A run is one trajectory: it is told by its scheduler's timesteps, which
every call of a pipeline makes anew, and its assignment is made once, at its first call.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ..errors import StitchError
from ..stitch.plan import Plan, check_fractions
from .steps import Schedule, indexed, place_of, schedule_of, view_of

logger = logging.getLogger(__name__)

RULES = ("step", "timestep", "completed", "started")
REPLACED = (
    "the pipeline's scheduler was replaced in the middle of a run (by a callback?): its solver's state is lost; "
    "replace it between calls"
)
DEEPEST = 64  # frames between a network's forward and the pipeline that called it; seen: 3 to 8


@dataclass(frozen=True)
class Choice:
    """A fraction of the steps per member (noisiest first) under a rule, or a plan for a fixed number of steps.

    rule: "step" gives a member the first ⌊f·K⌋ of K solver steps (T-Stitch, section 3); "timestep", "completed" and
    "started" are the three rules of the released code (`Plan.released`).
    """

    fractions: tuple[tuple[str, float], ...] | None
    plan: Plan | None = None
    rule: str = "step"

    def __post_init__(self) -> None:
        if (self.fractions is None) == (self.plan is None):
            raise StitchError("give a fraction or a plan, one of the two")
        if self.rule not in RULES:
            raise StitchError(f"the rules are {', '.join(RULES)}, not {self.rule!r}")
        if self.plan is not None and self.rule != "step":
            raise StitchError("a rule says how a fraction is read; a plan has none")
        if self.fractions is not None:
            check_fractions(dict(self.fractions))

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        fraction: float | Sequence[float] | Mapping[str, float] | None,
        plan: Plan | None,
        rule: str = "step",
    ) -> Choice:
        """What the arguments of `stitch` mean for members of these names, the pipeline's own last."""
        if plan is not None:
            if fraction is not None:
                raise StitchError("give a fraction or a plan, one of the two")
            unknown = [name for name in plan.counts if name not in names]
            if unknown:
                raise StitchError(f"the plan names {', '.join(unknown)}; the members are {', '.join(names)}")
            return cls(None, plan, rule)
        if fraction is None:
            raise StitchError("say how the steps are shared: fraction=0.4, or plan=Plan.explicit([…])")
        return cls(tuple(_fractions(names, fraction).items()), None, rule)

    def plan_for(self, schedule: Schedule, train_steps: int) -> Plan:
        """The plan of a run. train_steps: T, for the rule by timestep."""
        if self.plan is not None:
            if self.plan.steps != schedule.steps:
                raise StitchError(
                    f"the plan is for {self.plan.steps} solver steps and this run takes {schedule.steps}: give a plan "
                    f"for {schedule.steps} (img2img runs strength × num_inference_steps), or a fraction"
                )
            return self.plan
        assert self.fractions is not None
        fractions = dict(self.fractions)
        if self.rule == "step":
            return Plan.fractions(fractions, schedule.steps)
        times = schedule.times if self.rule == "timestep" else [0.0] * schedule.steps
        if self.rule == "timestep":
            scale = 1 if max(times) <= 1 else train_steps  # IPNDM counts 1..0
            if min(times) < 0 or max(times) > scale:
                raise StitchError(
                    "this scheduler's timesteps are not times (EDM and consistency schedulers pass log sigma / 4): "
                    'use rule="step"'
                )
            return Plan.released("timestep", fractions, times, scale)
        return Plan.released(self.rule, fractions, times)

    def to_data(self) -> dict[str, Any]:
        if self.plan is not None:
            return {"plan": self.plan.to_json()}
        assert self.fractions is not None
        return {"fractions": dict(self.fractions), "rule": self.rule}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Choice:
        if "plan" in data:
            return cls(None, Plan.from_json(data["plan"]))
        fractions = data["fractions"]
        if not isinstance(fractions, Mapping):
            raise StitchError(f"fractions map names to numbers; got {fractions!r}")
        return cls(tuple(fractions.items()), None, str(data.get("rule", "step")))


def _fractions(names: Sequence[str], fraction: float | Sequence[float] | Mapping[str, float]) -> dict[str, float]:
    if isinstance(fraction, Mapping):
        unknown = [name for name in fraction if name not in names]
        if unknown:
            raise StitchError(f"fractions name {', '.join(unknown)}; the members are {', '.join(names)}")
        return {**{name: 0.0 for name in names if name not in fraction}, **fraction}
    shares = [fraction] if isinstance(fraction, int | float) else list(fraction)
    if len(shares) != len(names) - 1:
        others = ", ".join(names[:-1])
        raise StitchError(
            f"give {len(names) - 1} fractions, for {others} (the rest is {names[-1]}'s); got {fraction!r}"
        )
    for share in shares:
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise StitchError(f"a fraction lies in 0..1, not {share!r}")
    rest = round(1 - sum(shares), 9)
    if rest < 0:
        raise StitchError(f"fractions sum to at most 1; {shares} sum to {sum(shares):g}")
    return dict(zip(names, [*shares, rest], strict=True))


@dataclass(frozen=True, eq=False)
class Run:
    """One trajectory: its scheduler, its calls, its plan, and the member index of every solver step."""

    scheduler: Any
    schedule: Schedule
    plan: Plan
    members: tuple[int, ...]
    pipe: weakref.ref[Any]

    def place(self, t: Any) -> int | None:
        """The place of a call of this run; None where the call belongs to another."""
        place = view_of(self.schedule.timesteps, t)
        pipe = self.pipe()
        replaced = pipe is not None and pipe.scheduler is not self.scheduler
        if place is None:
            if replaced or self.scheduler.timesteps is not self.schedule.timesteps:
                return None
            place = indexed(self.scheduler, t)
        elif replaced:
            raise StitchError(REPLACED)
        return place if place is not None and self.schedule.begin <= place < self.schedule.end else None


class Route:
    """The member index of each call, for one pipeline at a time.

    choice: replaced at will; the run under way keeps the assignment that it began with. last: the plan of the last
    run, as it was carried out.
    """

    def __init__(self, names: Sequence[str], choice: Choice) -> None:
        self.names = tuple(names)
        self.choice = choice
        self.run: Run | None = None
        self._pipe: weakref.ref[Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Route:
        return Route(self.names, self.choice)  # a copy of a pipeline finds itself

    def follow(self, pipe: Any) -> None:
        """The pipeline whose scheduler counts where the caller cannot be seen (a loop of one's own)."""
        self._pipe = weakref.ref(pipe)

    @property
    def last(self) -> Plan | None:
        return None if self.run is None else self.run.plan

    def at(self, t: Any, model: nn.Module) -> int:
        """The member index for a call of `model` at timestep `t` (a number, or a tensor of any shape)."""
        run = self.run
        place = None if run is None else run.place(t)
        if run is None or place is None:
            run, place = self._begin(t, model)
        return run.members[run.schedule.step_of(place)]

    def _begin(self, t: Any, model: nn.Module) -> tuple[Run, int]:
        pipe = calling_pipeline(model) or (self._pipe() if self._pipe else None)
        if pipe is None:
            raise StitchError(
                "this stitched model does not know its pipeline: call it from one, or stitch(pipe, …) the pipeline "
                "whose scheduler your own loop uses"
            )
        scheduler = pipe.scheduler
        place = place_of(scheduler, t)
        if view_of(scheduler.timesteps, t) is None and getattr(scheduler, "num_inference_steps", None) is None:
            raise StitchError(
                REPLACED if self.run else "set the scheduler's timesteps first: scheduler.set_timesteps(…)"
            )
        if place is None or not place < len(scheduler.timesteps):
            raise StitchError(
                f"the timestep {t!r} is not among those of the pipeline's {type(scheduler).__name__}: a loop of one's "
                "own uses pipe.scheduler and passes its timesteps"
            )
        begin = getattr(scheduler, "begin_index", None)
        if begin is None:
            begin = 0 if getattr(pipe, "transformer_2", None) is not None else place  # the other one may have begun
        begin = min(int(begin), place)
        schedule = schedule_of(scheduler, begin, _end(pipe, scheduler, begin))
        plan = self.choice.plan_for(schedule, int(scheduler.config.get("num_train_timesteps", 1000)))
        members = tuple(self.names.index(name) for name in plan.assignment)
        self.follow(pipe)
        self.run = Run(scheduler, schedule, plan, members, weakref.ref(pipe))
        logger.info("run of %d solver steps: %s", plan.steps, plan)
        return self.run, place


def _end(pipe: Any, scheduler: Any, begin: int) -> int | None:
    """Behind the last call of a run that SDXL's `denoising_end` cuts short, counted as its pipelines do."""
    cut = getattr(pipe, "denoising_end", None)
    if not isinstance(cut, float) or not 0 < cut < 1:
        return None
    T = int(scheduler.config.num_train_timesteps)
    last = round(T - cut * T)
    return begin + sum(t >= last for t in scheduler.timesteps[begin:].tolist())


def calling_pipeline(model: nn.Module) -> Any | None:
    """The diffusers pipeline, among the callers of this function, that has `model` as a component.

    Asked once per run. Pipelines share components (`from_pipe`), so the one that was stitched need not be the one that
    calls; and a loaded one was never told to its components.
    """
    frame, depth = sys._getframe(1), 0
    while frame is not None and depth < DEEPEST:
        code = frame.f_code
        if "self" in code.co_varnames or "self" in code.co_cellvars:
            owner = frame.f_locals.get("self")
            if isinstance(owner, DiffusionPipeline) and any(
                part is model or getattr(part, "_orig_mod", None) is model for part in vars(owner).values()
            ):
                return owner
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return None
