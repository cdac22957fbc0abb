"""StitchedModel: several networks in the place of a pipeline's one.

A pipeline touches its denoiser in many ways: it reads its configuration, dtype and device, swaps its attention
processors, loads adapters into it, moves it between devices, saves it. The wrapper answers all of them as the
pipeline's own denoiser would, and hands what changes a network on to every member. Which member runs a call is read
from its timestep (`route.py`).
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn

from ..errors import StitchError
from . import residuals, saved
from .adapted import Adapted
from .convert import Adapter, process_of
from .members import Lazy
from .route import Route, Run
from .shelf import Shelf

KEEP = ("both", "active")
TIMES = ("timestep", "timesteps", "timestep_ratio", "t")
RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
)
# What hooks and adapters leave on the module they are put on: what a member has of these is not the wrapper's.
PRIVATE = (
    "_diffusers_hook",
    "_hf_hook",
    "_is_cached",
    "_old_forward",
    "_orig_mod",
    "_tome_info",
    "hf_device_map",
    "hf_quantizer",
    "peft_config",
)


class StitchedModel(Adapted, ModelMixin):  # type: ignore[misc]
    """Members under a route, as one diffusers model. Made by `hemstitch.bridge.stitch`, for each class of networks a
    subclass of it and of that class.

    members: name -> network, in the order of their steps, the pipeline's own last; one not loaded yet is a `Lazy`.
    route: which member a call goes to; `route.choice` may be replaced between calls, `route.last` is the plan of
    the last run.
    """

    __module__ = "hemstitch.bridge"  # what a saved pipeline names, and an import that is enough
    member_class: Any

    def __init__(
        self,
        members: Mapping[str, nn.Module | Lazy],
        route: Route,
        *,
        keep: str = "both",
        dropped: Sequence[str] = (),
        adapters: Mapping[str, Adapter] | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        super(ModelMixin, self).__init__()  # the parents' own constructors would build a network
        self._gradient_checkpointing_func = None
        if keep not in KEEP:
            raise StitchError(f"keep is one of {', '.join(KEEP)}, not {keep!r}")
        self._names = list(members)
        self._own = len(members) - 1
        unknown = [name for name in [*dropped, *(adapters or {})] if name not in members]
        if unknown or len(members) < 2:
            raise StitchError(f"the members are {', '.join(members)}; got {', '.join(unknown) or 'no others'}")
        self._lazy: dict[int, Lazy] = {}
        for i, member in enumerate(members.values()):
            if isinstance(member, Lazy):
                self._lazy[i] = member
            else:
                self.add_module(f"member{i}", member)
        if self._own in self._lazy:
            raise StitchError("the pipeline's own denoiser is a network, not a Lazy one")
        self.route = route
        self.keep = keep
        self.dropped = list(dropped)
        self._dropped = frozenset(self._names.index(name) for name in dropped)
        self.adapters = dict(adapters or {})
        self._adapters = {self._names.index(name): adapter for name, adapter in self.adapters.items()}
        self._shelf = shelf or Shelf(self._member(self._own))
        self._held: set[int] = set()  # lazy members that were changed since, and are not released
        self._chosen: frozenset[int] | None = None
        self._context: tuple[str, dict[str, Any]] | None = None
        self._run: Run | None = None
        self._at: int | None = None
        self.caching: dict[str, dict[int, Callable[[int, int], None]]] = {}  # library -> member -> its reset
        self.fits: dict[str, dict[str, str]] = {}
        self._arguments = arguments_of(self.member_class)
        self._time = time_of(self.member_class)

    @property
    def members(self) -> dict[str, Any]:
        return {name: self._modules.get(f"member{i}") or self._lazy[i] for i, name in enumerate(self._names)}

    @property
    def own(self) -> Any:
        """The pipeline's own denoiser, the last member."""
        return self._member(self._own)

    def _member(self, i: int) -> Any:
        """Member i, loaded if it was not."""
        member: Any = self._modules.get(f"member{i}")
        if member is None:
            member = self._lazy[i].load()
            own = self._modules[f"member{self._own}"]
            member = member.to(dtype=own.dtype) if member.dtype != own.dtype else member
            self.add_module(f"member{i}", member)
            if not self._apart:
                member.to(self.device)
        return member

    # -- a call ------------------------------------------------------------------------------------------------------

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of the member that the call's timestep belongs to; arguments and answer are the members' own."""
        i, run = self._choose(args, kwargs)
        member = self._modules[f"member{i}"]
        if i in self._dropped:
            kwargs = {k: None if k in RESIDUALS else v for k, v in kwargs.items()}
        with self._in_context(member):
            adapter = self._adapters.get(i)
            if adapter is None:
                return member(*args, **kwargs)
            named = dict(zip(self._arguments, args, strict=False)) | kwargs
            placed = self._arguments[: len(args)]

            def ask(**named: Any) -> Any:  # what came by place goes by place: tomesd and DeepCache rely on it
                return member(*[named.pop(name) for name in placed], **named)

            ours = process_of(run.scheduler()) if adapter.theirs else None
            return adapter(ask, named, self._arguments[0], self._time, ours)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, Run]:
        """The index of the member that this call goes to, loaded and in its place, and the run."""
        i, run = self.route.at(self._timestep(args, kwargs), self)
        if i != self._at or run is not self._run:
            self._enter(i, run)
            if i not in self._dropped:
                residuals.refuse_cut(self._names[i], self._member(i), kwargs)
        return i, run

    def _timestep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._time in kwargs:
            return kwargs[self._time]
        place = self._arguments.index(self._time)
        if len(args) <= place:
            raise StitchError(f"a stitched {self.member_class.__name__} is routed by its `{self._time}`: pass it")
        return args[place]

    def _enter(self, i: int, run: Run) -> None:
        """Make member i the one that runs: at the first call of a run, and at each seam."""
        if self._apart:
            for j in list(self._lazy):
                if j != i and j not in self._held and f"member{j}" in self._modules:
                    self._shelf.forget(self._modules[f"member{j}"])
                    del self._modules[f"member{j}"]
                    gc.collect()
        member = self._member(i)
        if self._apart:
            self._shelf.bring(member)
        _reset_caches(member)
        for resets in self.caching.values():
            if i in resets:
                calls = range(run.schedule.begin, run.schedule.end)
                resets[i](i, sum(run.members[run.schedule.step_of(place)] == i for place in calls))
        self._run, self._at = run, i

    def _in_context(self, member: Any) -> Any:
        if self._context is None or not hasattr(member, "cache_context"):
            return nullcontext()
        name, more = self._context
        return member.cache_context(name, **more)

    @contextmanager
    def cache_context(self, name: str, **more: Any) -> Iterator[None]:
        """The cache context of the calls within; entered on the member that runs."""
        before, self._context = self._context, (name, more)
        try:
            yield
        finally:
            self._context = before

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        for i in self._loaded:
            _reset_caches(self._member(i))

    # -- what it answers as the pipeline's own denoiser ------------------------------------------------------------

    @property
    def _internal_dict(self) -> Any:
        return self._modules[f"member{self._own}"].config

    @_internal_dict.setter
    def _internal_dict(self, config: Any) -> None:
        self._modules[f"member{self._own}"]._internal_dict = config

    @property
    def dtype(self) -> torch.dtype:
        own = self.own
        first = next(own.parameters(), None)
        if first is None or own._keep_in_fp32_modules or not first.is_floating_point() or _hooked(own):
            return own.dtype
        return first.dtype

    @property
    def device(self) -> torch.device:
        """Where the member that runs computes."""
        if self._apart:
            return self._shelf.device
        first = next(self.own.parameters(), None)
        return self.own.device if first is None or _hooked(self.own) else first.device

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules")
        if modules and name in modules:
            return modules[name]
        own = modules.get(f"member{self.__dict__.get('_own')}") if modules else None
        if own is None or name in PRIVATE or name.startswith("__"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute {name!r}")
        return getattr(own, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """An attribute of the members' networks (encoder_hid_proj, …) is set on them; anything else here."""
        own = self.__dict__.get("_modules", {}).get(f"member{self.__dict__.get('_own')}")
        if name == "forward":
            _refuse_cache_of_all(value)
        if own is None or name in self.__dict__ or hasattr(type(self), name) or name in PRIVATE or name == "forward":
            return super().__setattr__(name, value)
        if name.startswith("member") or not hasattr(own, name):
            return super().__setattr__(name, value)
        for i in self._targets:
            setattr(self._member(i), name, value)
        return None

    # -- where it lies -----------------------------------------------------------------------------------------------

    @property
    def _apart(self) -> bool:
        """Whether only the member that runs lies on the device: keep="active", and model CPU offload."""
        return self.keep == "active" or "_hf_hook" in self.__dict__

    def to(self, *args: Any, **kwargs: Any) -> StitchedModel:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)  # as nn.Module.to does
        if device is not None and self._apart:
            for i in self._loaded:
                if dtype is not None:
                    self._member(i).to(dtype=dtype)
                self._member(i).to("cpu")
            self._shelf.place(device)
            if device.type == "cpu":
                self._at = None  # a pipeline that off-loads it is done: the next call is another run's first
            first = 0 if self._at is None else self._at
            if f"member{first}" in self._modules:
                self._shelf.bring(self._member(first))
            return self
        for i in self._loaded:
            self._member(i).to(*args, **kwargs)
        if device is not None:
            self._shelf.place(device)
        return self

    def cuda(self, *args: Any, **kwargs: Any) -> StitchedModel:
        return self.to(torch.device("cuda", *args))

    def cpu(self) -> StitchedModel:
        return self.to("cpu")

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters of all members; first those of the member that runs, by which hooks tell where a model is."""
        members = [self._modules[f"member{i}"] for i in self._loaded]
        members.sort(key=lambda member: member is not self._shelf.present)
        for member in members:
            yield from member.parameters(recurse)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each member in place (`nn.Module.compile`); routing stays outside."""
        for i in self._targets:
            self._member(i).compile(*args, **kwargs)

    # -- what changes every member -----------------------------------------------------------------------------------

    @property
    def _loaded(self) -> list[int]:
        return [i for i in range(len(self._names)) if f"member{i}" in self._modules]

    @property
    def _targets(self) -> list[int]:
        """The members that a change is made to; those not loaded are, and stay from then on."""
        targets = [i for i in range(len(self._names)) if self._chosen is None or i in self._chosen]
        self._held.update(i for i in targets if i in self._lazy)
        return targets

    @contextmanager
    def only(self, *names: str) -> Iterator[StitchedModel]:
        """What is loaded into, set on or taken from the model within this block is so for these members only."""
        unknown = [name for name in names if name not in self._names]
        if unknown or not names:
            raise StitchError(f"the members are {', '.join(self._names)}; got {', '.join(unknown) or 'none'}")
        before, self._chosen = self._chosen, frozenset(self._names.index(name) for name in names)
        try:
            yield self
        finally:
            self._chosen = before

    def each(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of every member (or of those chosen by `only`); the last one's result."""
        result = None
        for i in self._targets:
            try:
                result = getattr(self._member(i), method)(*args, **kwargs)
            except Exception as error:
                done = [self._names[j] for j in self._targets if j < i]
                error.add_note(
                    f"raised by the member {self._names[i]!r} of a stitched model; with stitched(pipe).only(…) a "
                    "change is made to chosen members" + (f"; it was made already to {', '.join(done)}" if done else "")
                )
                raise
        return result

    def set_attn_processor(self, processor: Any, **more: Any) -> None:
        """One attention processor for all, or a mapping of names: a member takes those it has."""
        for i in self._targets:
            member = self._member(i)
            if isinstance(processor, Mapping):
                member.set_attn_processor({k: processor.get(k, v) for k, v in member.attn_processors.items()}, **more)
            else:
                member.set_attn_processor(processor, **more)

    # -- saved and loaded --------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **more: Any,
    ) -> None:
        """Each member as diffusers saves it, in `member.0`, `member.1`, …, and config.json with the route."""
        classes = []
        for i in range(len(self._names)):
            there = f"member{i}" in self._modules
            classes.append(
                saved.save_member(
                    Path(save_directory),
                    i,
                    self._member(i),
                    is_main_process=is_main_process,
                    safe_serialization=safe_serialization,
                    variant=variant,
                    max_shard_size=max_shard_size,
                )
            )
            if not there and i not in self._held:
                del self._modules[f"member{i}"]
        if is_main_process:
            saved.write_route(Path(save_directory), self._names, classes, self)

    @classmethod
    def from_pretrained(cls, path: Any, **more: Any) -> StitchedModel:
        """A saved stitched model. It finds its pipeline when that first calls it."""
        from .classes import stitched_class

        if more.pop("device_map", None) is not None:
            cls.load_config()
        members, route, kept = saved.read(Path(path) / (more.pop("subfolder", None) or ""), **more)
        own: Any = list(members.values())[-1]
        return stitched_class(type(own))(members, route, **kept)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        raise StitchError(
            "a stitched model is not spread by device_map: load without it, then pipe.to(…) or "
            "pipe.enable_model_cpu_offload()"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> StitchedModel:
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        for key, value in self.__dict__.items():
            copy.__dict__[key] = None if key in ("_run", "_at") else deepcopy(value, memo)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.member_class,), {**self.__dict__, "_run": None, "_at": None}


def _refuse_cache_of_all(forward: Any) -> None:
    library = getattr(inspect.unwrap(forward), "__module__", "").split(".")[0]
    if library in ("DeepCache", "cache_dit"):
        instead = "enable_deepcache" if library == "DeepCache" else "enable_cache_dit"
        undo = "" if library == "DeepCache" else ", after cache_dit.disable_cache(pipe)"
        raise StitchError(
            f"{library} would keep one cache for all members, which is wrong behind a seam: "
            f"hemstitch.bridge.{instead}(pipe, …) takes its arguments and gives each member one{undo}"
        )


def _unpickled(member_class: Any) -> StitchedModel:
    """The class of a stitched model is made for its members': a pickle names theirs."""
    from .classes import stitched_class

    cls = stitched_class(member_class)
    return cls.__new__(cls)


def arguments_of(member_class: Any) -> list[str]:
    """The names of what a network is called with."""
    return list(inspect.signature(member_class.forward).parameters)[1:]


def time_of(member_class: Any) -> str:
    """What a network calls its time; StitchError for one that takes none."""
    names = arguments_of(member_class)
    for name in TIMES:
        if name in names:
            return name
    raise StitchError(
        f"{member_class.__name__} takes {', '.join(names)}: none is known to be the time, by which calls are routed "
        f"(known are {', '.join(TIMES)})"
    )


def _hooked(model: nn.Module) -> bool:
    """Whether diffusers has put hooks on a module of this model; ten times as fast as asking `modules()`."""
    ahead: list[nn.Module | None] = [model]
    for module in ahead:
        if module is not None:
            if "_diffusers_hook" in module.__dict__:
                return True
            ahead += module._modules.values()
    return False


def _reset_caches(member: Any) -> None:
    """Forget what diffusers' caching hooks kept of earlier steps, of another member's steps among them."""
    from diffusers.hooks import HookRegistry

    if _hooked(member):
        HookRegistry.check_if_exists_or_initialize(member).reset_stateful_hooks(recurse=True)
