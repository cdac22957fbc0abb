"""stitch: several denoisers in a diffusers pipeline, in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import StitchError
from ..process import Process
from ..stitch.plan import Plan
from .classes import stitched_class
from .compat import Findings, compare_denoisers
from .convert import CONVERTED, Adapter, process_of
from .members import Lazy, config_of, matched, plain
from .residuals import misfit
from .route import Choice, Route
from .shelf import Shelf
from .wrapper import KEEP, StitchedModel, time_of

logger = logging.getLogger(__name__)

COMPONENTS = ("unet", "transformer")
NAMES = {2: ("small", "large"), 3: ("small", "medium", "large")}


def stitch(
    pipe: Any,
    *members: nn.Module | Lazy,
    fraction: float | Sequence[float] | Mapping[str, float] | None = None,
    plan: Plan | None = None,
    rule: str = "step",
    keep: str = "both",
    component: str | None = None,
    names: Sequence[str] | None = None,
    controlnets: Mapping[str, nn.Module] | None = None,
    residuals: Mapping[str, str] | None = None,
    processes: Mapping[str, Any] | None = None,
) -> Any:
    """Put several denoisers in the place of a diffusers pipeline's one, each for its share of the steps (T-Stitch).

    pipe: any diffusers pipeline with a scheduler; it is changed and returned, and called as before.
    members: the other denoisers in the order of their steps, noisiest first: networks of the class of the pipeline's
        own (a `UNet2DConditionModel`, …) or `Lazy` ones. The pipeline's own is the last member and finishes the image.
    fraction: the share of solver steps of the one other member; or a share for each; or {name: share} of all.
    plan: instead, a `hemstitch.Plan` over the names, for runs of exactly `plan.steps` solver steps.
    rule: how fractions become steps. "step": the first ⌊f·K⌋ of the run's K solver steps, however many calls of the
        network each makes; "timestep": while 1 - t/T <= f; "completed", "started": the released code's other two.
    keep: "both": all members lie on the pipeline's device; "active": only the one that runs, the others on the CPU,
        and a Lazy one nowhere.
    component: the attribute of the denoiser, where it is not `unet` or `transformer`. Of a pipeline with two
        transformers (Wan 2.2) by default both are stitched, and the other members go before them; `transformer` or
        `transformer_2` stitches one, and fractions still are of the whole run's steps.
    names: of all members, the pipeline's own last. For two: small, large; for three: small, medium, large.
    controlnets, residuals: where the pipeline's ControlNet or adapter does not fit a member: a ControlNet for it by
        name, or {name: "drop"} to run it without.
    processes: {name: Process or its diffusers scheduler} of members with another prediction type or noise schedule than
        the pipeline's; their answers are converted.

    Raises StitchError for what cannot denoise one trajectory, each point with its fix; `hemstitch.bridge.check` says it
    beforehand.
    """
    slot = _denoiser_of(pipe, component)
    own = _own(getattr(pipe, slot))
    _refuse_placed(pipe, slot, own)
    names = _names(names, len(members) + 1)
    choice = Choice.of(names, fraction, plan, rule)
    if keep not in KEEP:
        raise StitchError(f"keep is one of {', '.join(KEEP)}, not {keep!r}")
    by_name = dict(zip(names, members, strict=False))
    for argument, given in (("controlnets", controlnets), ("residuals", residuals), ("processes", processes)):
        _known(argument, given, by_name)
    for name, member in by_name.items():
        _check(name, member, own, pipe.scheduler)
    if len({id(plain(member)) for member in members}) < len(members):
        raise StitchError("one network stands for two members: give it once, and a plan in which it runs twice")
    adapters = _adapters(pipe.scheduler, own, {**by_name, names[-1]: own}, processes or {})
    dropped = _dropped(pipe, own, by_name, controlnets or {}, residuals or {})

    if processes and getattr(pipe, "config", {}).get("expand_timesteps"):
        raise StitchError("processes= is for networks with one time a picture; this pipeline gives every patch its own")
    _refuse_other_controlnets(pipe, controlnets or {})
    move = keep == "both"
    ready = {name: m if isinstance(m, Lazy) else matched(name, m, own, move) for name, m in by_name.items()}
    nets = {name: matched(name, net, own, move) for name, net in (controlnets or {}).items()}

    # all is known to be well: from here on the pipeline changes
    unstitch(pipe, component)
    route = Route(names, choice)
    route.follow(pipe)
    shelf = Shelf(own)
    both = component is None and getattr(pipe, f"{slot}_2", None) is not None  # Wan 2.2
    slots = [slot, f"{slot}_2"] if both else [slot]
    for where in slots:
        theirs = getattr(pipe, where)
        here = {**ready, names[-1]: theirs}
        made = stitched_class(type(theirs))(here, route, keep=keep, dropped=dropped, adapters=adapters, shelf=shelf)
        setattr(pipe, where, made)
        if keep == "active":
            shelf.leave_only(own, [m for m in here.values() if isinstance(m, nn.Module)])
    if nets:
        net = pipe.controlnet
        pipe.controlnet = stitched_class(type(net))(
            {**dict.fromkeys(by_name, net), **nets, names[-1]: net}, route, keep=keep
        )
    return pipe


def unstitch(pipe: Any, component: str | None = None) -> Any:
    """Give a pipeline its own denoiser back (and its own ControlNet). One that is not stitched stays as it is.

    component: only that of this attribute.
    """
    found = [
        (name, plain(part))
        for name, part in _parts(pipe).items()
        if isinstance(plain(part), StitchedModel)
        and (component in (None, name) or (name == "controlnet" and component in COMPONENTS))
    ]
    if any("_hf_hook" in model.__dict__ for _, model in found):
        raise StitchError(
            "the pipeline is off-loaded by hooks: pipe.remove_all_hooks() first, and off-load it again after"
        )
    for name, model in found:
        own = model.own
        if model.keep == "active":
            own.to(model.device)
        setattr(pipe, name, own)
    return pipe


def stitched(pipe: Any) -> StitchedModel:
    """The stitched denoiser of a pipeline, whatever its attribute is called.

    In a loop of one's own its calls are then those of this pipeline's scheduler.
    """
    for model in stitched_parts(pipe):
        model.route.follow(pipe)
        return model
    raise StitchError(f"this {type(pipe).__name__} is not stitched: stitch(pipe, small, fraction=0.4)")


class replan:  # noqa: N801  (used as a function, and as a context manager, like torch.set_grad_enabled)
    """Change a stitched pipeline's fraction or plan: from its next call on, or within a `with` block only.

    `replan(pipe, fraction=0.2)`; `with replan(pipe, plan=plan): pipe(…)`. Arguments as those of `stitch`; without a
    rule the fraction is read by the one before. A run under way ends as it began.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        fraction: float | Sequence[float] | Mapping[str, float] | None = None,
        plan: Plan | None = None,
        rule: str | None = None,
    ) -> None:
        routes = [model.route for model in stitched_parts(pipe)] or [stitched(pipe).route]
        self._before = [(route, route.choice) for route in routes]
        for route, choice in [(route, self._choice(route, fraction, plan, rule)) for route in routes]:
            route.choice = choice

    @staticmethod
    def _choice(route: Route, fraction: Any, plan: Plan | None, rule: str | None) -> Choice:
        kept = "step" if plan is not None else route.choice.rule
        return Choice.of(route.names, fraction, plan, rule or kept)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        for route, choice in self._before:
            route.choice = choice


def stitched_parts(pipe: Any) -> Iterator[StitchedModel]:
    for part in _parts(pipe).values():
        if isinstance(plain(part), StitchedModel):
            yield plain(part)


def _parts(pipe: Any) -> dict[str, Any]:
    """The networks of a pipeline by their attributes, its denoiser first."""
    named = {name: part for name, part in getattr(pipe, "__dict__", {}).items() if isinstance(part, nn.Module)}
    return {name: named[name] for name in sorted(named, key=lambda name: name.removesuffix("_2") not in COMPONENTS)}


def _denoiser_of(pipe: Any, component: str | None) -> str:
    parts = _parts(pipe)
    found = [component] if component else [name for name in COMPONENTS if name in parts]
    if not found or found[0] not in parts:
        asked = f"it has no network {component!r}" if component else f"it has none of {', '.join(COMPONENTS)}"
        raise StitchError(
            f"the denoiser of this {type(pipe).__name__} is not known: {asked}; name it with component=, one of "
            f"{', '.join(parts) or '(no networks)'}"
        )
    if getattr(pipe, "scheduler", None) is None:
        raise StitchError(f"this {type(pipe).__name__} has no scheduler, whose timesteps say where the seam lies")
    return found[0]


def _refuse_other_controlnets(pipe: Any, nets: Mapping[str, Any]) -> None:
    for name, net in nets.items():
        own = _own(pipe.controlnet)
        if type(net) is not type(own):
            raise StitchError(
                f"controlnets={{{name!r}: …}} is a {type(net).__name__}; the pipeline's own is a {type(own).__name__}"
            )


def _own(part: Any) -> Any:
    """A pipeline's own denoiser, under what stands in its place."""
    model = plain(part)
    if isinstance(model, StitchedModel):
        return model.own
    _refuse_compiled(part)
    return part


def _refuse_compiled(model: Any) -> None:
    if plain(model) is not model:
        raise StitchError(
            "a module of torch.compile(…) is not stitched: stitch the plain one, then pipe.unet.compile()"
        )


def _refuse_placed(pipe: Any, slot: str, own: nn.Module) -> None:
    if not hasattr(own, "config"):
        raise StitchError(f"pipe.{slot} is a {type(own).__name__}, not a diffusers model with a configuration")
    if getattr(pipe, "hf_device_map", None):
        raise StitchError(
            "a pipeline spread by device_map is not stitched: load it without device_map, stitch, then pipe.to(…) or "
            "pipe.enable_model_cpu_offload()"
        )
    time_of(type(own))  # refused here rather than at the first step
    if "_hf_hook" in plain(getattr(pipe, slot)).__dict__ or any(
        "_hf_hook" in module.__dict__ for module in own.modules()
    ):
        raise StitchError(
            f"pipe.{slot} is off-loaded by hooks already: pipe.remove_all_hooks(), stitch, then off-load it again"
        )


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if count < 2:
        raise StitchError("a stitch has another denoiser besides the pipeline's own: stitch(pipe, small, fraction=0.4)")
    if names is None:
        if count not in NAMES:
            raise StitchError(f"name the {count} members: names=[…], the pipeline's own last")
        return NAMES[count]
    if len(names) != count or len(set(names)) != count or not all(isinstance(n, str) and n for n in names):
        raise StitchError(f"names are {count} different strings, the pipeline's own last; got {list(names)}")
    return tuple(names)


def _known(argument: str, given: Mapping[str, Any] | None, members: Mapping[str, Any]) -> None:
    unknown = [name for name in given or {} if name not in members]
    if unknown:
        raise StitchError(f"{argument} is for {', '.join(members)}, not for {', '.join(unknown)}")


def _check(name: str, member: Any, own: Any, scheduler: Any) -> None:
    """Refuse what cannot stand in for the pipeline's own denoiser."""
    if not isinstance(member, nn.Module | Lazy) or not hasattr(member, "config"):
        hint = ": pass its unet or transformer" if hasattr(member, "components") else ""
        raise StitchError(f"the member {name!r} is a {type(member).__name__}, not a denoiser{hint}")
    _refuse_compiled(member)
    if member is own:
        raise StitchError(f"the member {name!r} is the pipeline's own denoiser itself")
    if isinstance(member, StitchedModel):
        raise StitchError(f"the member {name!r} is stitched itself: give its members one by one")
    findings = Findings(tuple(compare_denoisers(config_of(member), config_of(own), dict(scheduler.config))))
    if not findings.ok:
        listed = "".join(f"\n  {finding}" for finding in findings.refusals)
        raise StitchError(f"the member {name!r} and the pipeline's denoiser cannot be stitched:{listed}")
    for finding in findings.notes:
        logger.info("the member %r: %s", name, finding)


def _adapters(scheduler: Any, own: Any, members: Mapping[str, Any], processes: Mapping[str, Any]) -> dict[str, Adapter]:
    """For each member that has to be asked in another way than the pipeline asks, how."""
    config = config_of(own)
    kind = str(config["_class_name"])
    channels = int(config.get("in_channels") or 0)
    out = int(config.get("out_channels") or channels)
    if processes:
        process_of(scheduler)  # refused here rather than at the first step
        if not {base.__name__ for base in type(own).__mro__} & set(CONVERTED):
            raise StitchError(f"processes= is for {', '.join(CONVERTED)}, whose times are known; this is a {kind}")
    found: dict[str, Adapter] = {}
    for name, member in members.items():
        theirs = config_of(member)
        process = processes.get(name)
        if process is not None and not isinstance(process, Process):
            if not hasattr(process, "config"):
                raise StitchError(f"a process is a hemstitch.Process or a diffusers scheduler; {name} has {process!r}")
            process = process_of(process)
        classes = theirs.get("num_embeds_ada_norm") if kind.startswith("DiT") else None
        adapter = Adapter(
            channels=min(channels, out),  # inpainting U-Nets take more than the latents, a learned variance adds some
            out=out,
            theirs=process,
            unit_time=kind.startswith("Flux"),
            packed=kind.startswith("Flux"),
            classes=None if classes in (None, 1000) else int(classes),
        )
        if process is not None or adapter.classes or int(theirs.get("out_channels") or channels) != out:
            found[name] = adapter
    return found


def _dropped(
    pipe: Any,
    own: nn.Module,
    members: Mapping[str, Any],
    controlnets: Mapping[str, nn.Module],
    residuals: Mapping[str, str],
) -> list[str]:
    """The members that run without a ControlNet's or adapter's residuals; refused where neither is chosen."""
    source = next((n for n in ("controlnet", "adapter") if getattr(pipe, n, None) is not None), None)
    for name, way in residuals.items():
        if way != "drop":
            raise StitchError(f'residuals say "drop"; {name} has {way!r}')
    if controlnets and source != "controlnet":
        raise StitchError(f"this {type(pipe).__name__} has no ControlNet: controlnets= is for one that has")
    for name, member in members.items():
        if source is None or name in residuals or name in controlnets:
            continue
        why = misfit(member.skeleton() if isinstance(member, Lazy) else member, own, source)
        if why:
            other = ", controlnets={" + repr(name) + ": a ControlNet for it}" if source == "controlnet" else ""
            raise StitchError(
                f"the pipeline's {source} does not fit the member {name!r} ({why}): give "
                f'residuals={{{name!r}: "drop"}}, which runs it without{other and ", or"}{other[1:]}'
            )
    return list(residuals)
