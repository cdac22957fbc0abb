"""Route: which member a pipeline's call of its network goes to.

What is chosen (a fraction and its rule, or a plan) is a value that may change between calls of the pipeline; what a
call belongs to is read from its timestep. A run is one trajectory: it is told by its scheduler's timesteps, which
every call of a pipeline makes anew, and its assignment is made once, at its first call.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..errors import StitchError
from ..stitch.adaptive import AdaptivePlan
from ..stitch.plan import Plan, check_fractions
from .steps import Schedule, place_of, schedule_of, view_of

logger = logging.getLogger(__name__)

RULES = ("step", "timestep", "completed", "started")
REPLACED = (
    "the pipeline's scheduler was replaced in the middle of a run (by a callback?): its solver's state is lost; "
    "replace it between calls"
)
RUNS = 32  # that are remembered: one for each pipeline that a network is called from in turns
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
            if isinstance(plan, AdaptivePlan):
                raise StitchError(
                    "a pipeline's loop keeps one member for all images of a batch, and shows no x_0 estimates: an "
                    "AdaptivePlan needs hemstitch's own sampler (sample, generate); here give a fixed plan"
                )
            if not isinstance(plan, Plan):
                raise StitchError(f"a plan is a hemstitch.Plan, such as Plan.explicit([…]); got {plan!r}")
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
    def from_data(cls, names: Sequence[str], data: Mapping[str, Any]) -> Choice:
        """The inverse of `to_data`, for members of these names."""
        if "plan" in data:
            return cls.of(names, None, Plan.from_json(data["plan"]))
        fractions = data["fractions"]
        if not isinstance(fractions, Mapping):
            raise StitchError(f"fractions map names to numbers; got {fractions!r}")
        return cls.of(names, fractions, None, str(data.get("rule", "step")))


def _fractions(names: Sequence[str], fraction: float | Sequence[float] | Mapping[str, float]) -> dict[str, float]:
    """{name: share} of every member, in the order of their steps; what is not given is the last one's."""
    *others, own = names
    if isinstance(fraction, Mapping):
        unknown = [name for name in fraction if name not in names]
        if unknown:
            raise StitchError(f"fractions name {', '.join(map(str, unknown))}; the members are {', '.join(names)}")
        shares = {name: _share(fraction[name]) for name in names if name in fraction}
    else:
        listed: list[Any] = [fraction] if isinstance(fraction, Real | str | Tensor) else list(fraction)  # type: ignore[arg-type]
        if len(listed) != len(others):
            raise StitchError(
                f"give {len(others)} fractions, for {', '.join(others)} (the rest is {own}'s); got {fraction!r}"
            )
        shares = {name: _share(share) for name, share in zip(others, listed, strict=True)}
    rest = round(1 - sum(shares.values()), 9)
    if own not in shares:
        if rest < 0:
            raise StitchError(f"fractions sum to at most 1; {fraction!r} sum to {sum(shares.values()):g}")
        shares[own] = rest
    return {name: shares.get(name, 0.0) for name in names}


def _share(value: Any) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= 1:
        raise StitchError(f"a fraction lies in 0..1, not {value!r}")
    return value if type(value) is float else float(str(value))  # numpy's float32 of 0.7 means 0.7


@dataclass(eq=False)
class Run:
    """One trajectory: its scheduler, its calls, its plan, and the member index of every solver step.

    reached: the furthest place that was called; a call before it belongs to another run.
    """

    scheduler: weakref.ref[Any]
    schedule: Schedule
    plan: Plan
    members: tuple[int, ...]
    pipe: weakref.ref[Any]
    reached: int

    def goes_on(self, place: int) -> bool:
        """Whether a call at this place may be this run's next one; if so, it is."""
        if not self.reached <= place < self.schedule.end:
            return False
        self.reached = place
        return True


@dataclass(frozen=True)
class Caller:
    """The pipeline that calls a network, and two variables of its loop: the `timesteps` it goes through, and `t`."""

    pipe: Any
    timesteps: Tensor | None = None
    t: Tensor | None = None


class Route:
    """The member index of each call of a network, from however many pipelines, also by turns.

    choice: replaced at will; a run under way keeps the assignment that it began with.
    """

    def __init__(self, names: Sequence[str], choice: Choice) -> None:
        self.names = tuple(names)
        self.choice = choice
        self._runs: tuple[Run, ...] = ()  # one for each scheduler; that which was called last is the last
        self._lock = threading.Lock()
        self._pipe: weakref.ref[Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Route:
        return Route(self.names, self.choice)  # a copy of a pipeline finds itself

    def __reduce__(self) -> tuple[Any, ...]:
        return Route, (self.names, self.choice)

    def follow(self, pipe: Any) -> None:
        """The pipeline whose scheduler counts where the caller cannot be seen (a loop of one's own)."""
        self._pipe = weakref.ref(pipe)

    @property
    def last(self) -> Plan | None:
        """The plan of the run that was called last, as it was carried out."""
        return self._runs[-1].plan if self._runs else None

    @property
    def run(self) -> Run | None:
        """The run that was called last."""
        return self._runs[-1] if self._runs else None

    def at(self, t: Any, model: nn.Module) -> tuple[int, Run]:
        """The member index for a call of `model` at timestep `t` (a number, or a tensor of any shape), and its run."""
        run, place = self._known(t)
        caller = None
        if run is None:  # no view of a schedule that is known: a new run, or a pipeline that passes other tensors
            caller = self._caller(model)
            run, place = self._known(caller.t)
            if run is None:
                run, place = self._by_index(t, caller)
        if run is None or not run.goes_on(place):
            run, place = self._begin(t, caller or self._caller(model))
        if run is not self._runs[-1]:
            self._remember(run)
        return run.members[run.schedule.step_of(place)], run

    def _known(self, t: Any) -> tuple[Run | None, int]:
        """The run whose schedule `t` is a view of, and its place there."""
        for run in reversed(self._runs):
            place = view_of(run.schedule.timesteps, t)
            if place is not None:
                pipe = run.pipe()
                if pipe is not None and pipe.scheduler is not run.scheduler():
                    raise StitchError(REPLACED)
                return run, place
        return None, -1

    def _by_index(self, t: Any, caller: Caller) -> tuple[Run | None, int]:
        """The run of the caller's scheduler, and the place that this scheduler has come to."""
        scheduler = caller.pipe.scheduler
        for run in reversed(self._runs):
            if run.schedule.timesteps is scheduler.timesteps and run.scheduler() is scheduler:
                place = place_of(scheduler, t)
                return (None, -1) if place is None else (run, place)
        return None, -1

    def _remember(self, run: Run) -> None:
        scheduler = run.scheduler()
        with self._lock:
            others = [r for r in self._runs if r.scheduler() not in (None, scheduler)]
            self._runs = (*others[1 - RUNS :], run)

    def _caller(self, model: nn.Module) -> Caller:
        caller = calling_pipeline(model)
        if caller is not None:
            return caller
        pipe = self._pipe() if self._pipe else None
        if pipe is None:
            raise StitchError(
                "this stitched model does not know its pipeline: call it from one, or ask stitched(pipe) first, whose "
                "scheduler your own loop then uses"
            )
        return Caller(pipe)

    def _begin(self, t: Any, caller: Caller) -> tuple[Run, int]:
        pipe, scheduler = caller.pipe, caller.pipe.scheduler
        timesteps, place = _schedule_and_place(t, caller)
        if place is None or not place < len(timesteps):
            if getattr(scheduler, "num_inference_steps", 0) is None:
                raise StitchError(
                    REPLACED if self._runs else "set the scheduler's timesteps first: scheduler.set_timesteps(…)"
                )
            raise StitchError(
                f"the timestep {t!r} is not among those of the pipeline's {type(scheduler).__name__}, or which step it "
                "belongs to cannot be told: a loop of one's own uses pipe.scheduler and passes its timesteps"
            )
        begin, end = _extent(caller, timesteps, place)
        schedule = schedule_of(scheduler, begin, end, timesteps)
        plan = self.choice.plan_for(schedule, int(scheduler.config.get("num_train_timesteps", 1000)))
        members = tuple(self.names.index(name) for name in plan.assignment)
        self.follow(pipe)
        run = Run(weakref.ref(scheduler), schedule, plan, members, weakref.ref(pipe), place)
        self._remember(run)
        logger.info("run of %d solver steps: %s", plan.steps, plan)
        return run, place


def _schedule_and_place(t: Any, caller: Caller) -> tuple[Tensor, int | None]:
    """The timesteps that a run goes through, and the place there of a call.

    They are the scheduler's; or the caller's own, where it goes through others (having set the scheduler's anew since).
    """
    timesteps: Tensor = caller.pipe.scheduler.timesteps
    own = caller.timesteps
    for schedule in (timesteps, own):
        if schedule is None or (schedule is own and not _is_schedule(caller)):
            continue
        for shown in (t, caller.t):
            place = view_of(schedule, shown)
            if place is not None:
                return schedule, place
    if getattr(caller.pipe.scheduler, "num_inference_steps", 0) is None:
        return timesteps, None  # never set: the index would be a guess
    return timesteps, place_of(caller.pipe.scheduler, t)


def _is_schedule(caller: Caller) -> bool:
    """Whether the caller's `timesteps` are those of its loop; DiTPipeline calls the one timestep of a batch so."""
    own = caller.timesteps
    if own is None or own.ndim != 1 or (own.stride(0) == 0 and len(own) > 1):
        return False
    return len(own) > 1 or getattr(caller.pipe, "_num_timesteps", None) == 1


def _extent(caller: Caller, timesteps: Tensor, place: int) -> tuple[int, int | None]:
    """(begin, end) in `timesteps` of a run whose first call is at this place.

    Pipelines cut their own `timesteps` to the steps that they take, for a strength, a `denoising_start` or `_end`.
    """
    own = caller.timesteps
    if own is not None and _is_schedule(caller):
        begin = view_of(timesteps, own)
        if begin is not None and begin <= place < begin + len(own):
            return begin, begin + len(own)
    begin = getattr(caller.pipe.scheduler, "begin_index", None)
    begin = place if begin is None else min(int(begin), place)
    cut = getattr(caller.pipe, "denoising_end", None)
    if not isinstance(cut, float) or not 0 < cut < 1:
        return begin, None
    T = int(caller.pipe.scheduler.config.num_train_timesteps)
    last = round(T - cut * T)  # as SDXL's pipelines count
    return begin, max(begin + sum(t >= last for t in timesteps[begin:].tolist()), place + 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def calling_pipeline(model: nn.Module) -> Caller | None:
    """The diffusers pipeline, among the callers of this function, that has `model` as a component.

    Pipelines share components (`from_pipe`), so the one that was stitched need not be the one that calls; and a loaded
    one was never told to its components.
    """
    frame, depth = sys._getframe(1), 0
    while frame is not None and depth < DEEPEST:
        code = frame.f_code
        if code.co_flags & inspect.CO_OPTIMIZED and ("self" in code.co_varnames or "self" in code.co_cellvars):
            values = frame.f_locals
            owner, timesteps, t = (values.get(name) for name in ("self", "timesteps", "t"))
            if sys.version_info < (3, 13):
                values.clear()  # a copy, kept with the frame: it would hold the tensors of this step till the end
            if isinstance(owner, DiffusionPipeline) and any(
                part is model or getattr(part, "_orig_mod", None) is model for part in vars(owner).values()
            ):
                return Caller(
                    owner, timesteps if isinstance(timesteps, Tensor) else None, t if isinstance(t, Tensor) else None
                )
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return None
