"""What one solver evaluation of each member costs on this machine, measured; multiply-adds only beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...denoiser import Denoiser, Guided
from ...description import describe
from ...errors import HemstitchError, StitchError
from ...files import read_json_file, write_text
from ...identity import identity
from ...provenance import provenance
from ...samplers import Sampler, sampler_of
from ..plan import Plan
from ..stitched import Stitched
from .timing import Round, Walk, timed

SECONDS = 5.0  # that a measurement takes in all, unless its fewest rounds take longer


@dataclass(frozen=True)
class Cost:
    """One member, with or without guidance.

    ms: median milliseconds of one solver evaluation of the whole batch: the network's calls and the sampler's
    arithmetic. spread: half the interquartile range, ms. macs: multiply-adds of the batch, the null label's included
    (None where `describe` cannot count). memory: bytes; on a GPU parameters and the peak of an evaluation above them,
    on a CPU parameters only (0 where the denoiser shows no network).
    """

    member: str
    guided: bool
    ms: float
    spread: float
    macs: int | None
    memory: int


@dataclass(frozen=True)
class Costs:
    """What was measured, and on what. measured: when (UTC). sampler: its name, or how it prints."""

    device: str
    dtype: str
    threads: int
    batch: int
    sampler: str
    entries: tuple[Cost, ...]
    measured: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(self.entries))
        if not self.entries:
            raise HemstitchError("costs are of at least one member")
        if len({(c.member, c.guided) for c in self.entries}) < len(self.entries):
            raise HemstitchError("costs have one entry per member and guidance mode; these repeat one")

    def entry(self, member: str, guided: bool = False) -> Cost:
        """The measurement of a member. Raises HemstitchError, naming what there is, if there is none."""
        for cost in self.entries:
            if (cost.member, cost.guided) == (member, guided):
                return cost
        there = ", ".join(_called(c.member, c.guided) for c in self.entries)
        raise HemstitchError(
            f"{_called(member, guided)} was not measured; measured were {there}: call measure_costs with it among "
            f"members= and {guided} among guided="
        )

    def ms(self, member: str, guided: bool = False) -> float:
        """Median milliseconds of one solver evaluation of the batch."""
        return self.entry(member, guided).ms

    def of(self, plan: Plan, guided: bool | Sequence[bool], evaluations: int) -> float:
        """Milliseconds of the batch for a whole plan.

        guided: for all steps, or one per step (of its first evaluation). evaluations: the sampler's per step; its last
        step, to the clean level, takes one (see `samplers.Heun`).
        """
        modes = [guided] * plan.steps if isinstance(guided, bool) else list(guided)
        if len(modes) != plan.steps:
            raise HemstitchError(f"guided is one bool, or one per step: {len(modes)} for a plan of {plan.steps} steps")
        if evaluations < 1:
            raise HemstitchError(f"a sampler takes at least 1 evaluation per step, not {evaluations}")
        times = [evaluations] * (plan.steps - 1) + [1]
        steps = zip(plan.assignment, modes, times, strict=True)
        return sum(taken * self.ms(name, mode) for name, mode, taken in steps)

    def to_data(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "entries": [asdict(cost) for cost in self.entries]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Costs:
        """The inverse of `to_data`. Raises HemstitchError for unknown or missing keys, and for values that are none."""
        _check_keys(data, cls, "costs")
        _check(data, ("device", "dtype", "sampler", "measured"), lambda v: isinstance(v, str), "a text")
        _check(data, ("threads", "batch"), lambda v: type(v) is int and v > 0, "a whole number above 0")
        _check(data, ("entries",), lambda v: isinstance(v, list), "a list")
        return cls(**{**data, "entries": tuple(_cost(entry) for entry in data["entries"])})

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self._on_cpu else ""
        dearest = max(c.ms for c in self.entries)
        largest = max((c.macs for c in self.entries if c.macs is not None), default=None)
        rows = [("member", "guided", "ms", "±", "of the dearest", "multiply-adds", "of the most", "memory")]
        for c in self.entries:
            rows.append(
                (
                    c.member,
                    "yes" if c.guided else "no",
                    f"{c.ms:.4g}",
                    f"{c.spread:.2g}",
                    _share(c.ms, dearest),
                    "not counted" if c.macs is None else _scaled(c.macs, 1000, ("", " k", " M", " G", " T")),
                    _share(c.macs, largest),
                    _scaled(c.memory, 1024, (" B", " KiB", " MiB", " GiB")),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        memory = "parameters" if self._on_cpu else "parameters and the peak of an evaluation"
        return "\n".join(
            [
                f"one evaluation of {self.batch} samples, {self.sampler}, {self.dtype}, {self.device}{threads}, "
                f"{self.measured}",
                *lines,
                f"ms: median ± half the interquartile range. Multiply-adds are counted, not timed. Memory: {memory}",
            ]
        )

    @property
    def _on_cpu(self) -> bool:
        return self.device.startswith("CPU")  # as `provenance` calls it


def measure_costs(
    members: Mapping[str, Denoiser],
    *,
    batch: int,
    guided: Sequence[bool],
    sampler: str | Sampler = "ddim",
    guidance: float = 1.5,
    guidance_channels: int | None = None,
    seconds: float | None = None,
    cache: Path | None = None,
    progress: Callable[[Round], None] | None = None,
) -> Costs:
    """Time one solver evaluation of every member in every mode, as sampling does it.

    Members and modes take turns in an order that changes each round, so that a slow spell of the machine falls on all,
    until the standard error of every median is below 2 % or `seconds` (5) are over, and for 9 rounds at least. An
    evaluation quicker than 0.25 s follows an untimed one of its own: in a plan a member mostly follows itself, and
    finds its weights in the caches.

    guided: the modes to measure, of False and True. cache: a folder; what was measured there for the same device,
    dtype, threads, batch, sampler, weights and modes is returned. progress: called after each round. Raises
    HemstitchError for members that are stitched or guided themselves, or cannot be guided, and StitchError for members
    on different devices.
    """
    device = _check_arguments(members, batch, guided, guidance, seconds)
    modes = [mode for mode in (False, True) if mode in guided]
    origin = provenance(device, _dtype(members, device))
    solver = sampler_of(sampler)
    blank = Costs(
        origin["device"],
        origin["dtype"],
        int(origin["threads"]),
        batch,
        sampler if isinstance(sampler, str) else repr(sampler),
        tuple(
            Cost(name, mode, 0.0, 0.0, _macs(member, batch, mode), _parameter_bytes(member))
            for mode in modes
            for name, member in members.items()
        ),
        origin["date"],
    )
    key: dict[str, Any] = {}
    if cache is not None:
        key = {
            **{name: getattr(blank, name) for name in ("device", "dtype", "threads", "batch", "sampler")},
            "members": {name: identity(member) for name, member in members.items()},
            "guided": modes,
            "guidance_channels": guidance_channels,
            "matmul": torch.get_float32_matmul_precision(),
            "torch": origin["torch"],
            "hemstitch": origin["hemstitch"],
        }
        kept = _kept(_path(cache, key), key, blank)
        if kept is not None:
            return kept
        _writing(cache, lambda: cache.mkdir(parents=True, exist_ok=True))
    walks = [
        Walk.of(members[c.member], batch, solver, guidance if c.guided else 1.0, guidance_channels)
        for c in blank.entries
    ]
    times = timed(walks, SECONDS if seconds is None else seconds, progress)
    entries = tuple(
        replace(c, ms=1e3 * t.median, spread=1e3 * t.spread, memory=c.memory + t.peak)
        for c, t in zip(blank.entries, times, strict=True)
    )
    measured = replace(blank, entries=entries)
    if cache is not None:
        text = json.dumps({"key": key, "costs": measured.to_data()}, indent=1)
        _writing(cache, lambda: write_text(_path(cache, key), text))
    return measured


def _check_arguments(
    members: Mapping[str, Denoiser], batch: int, guided: Sequence[bool], guidance: float, seconds: float | None
) -> torch.device:
    """The device of all members."""
    if not members or not guided:
        raise HemstitchError("measure at least one member (members=) in at least one mode (guided=[False], [True], …)")
    if batch < 1:
        raise HemstitchError(f"a batch is of at least 1 sample, not {batch}")
    if any(guided) and guidance == 1:
        raise HemstitchError("guidance 1 asks the network once, as without: give another scale, or guided=[False]")
    if seconds is not None and not (isfinite(seconds) and seconds >= 0):
        raise HemstitchError(f"seconds is how long to measure, 0 for the fewest rounds; not {seconds}")
    for name, member in members.items():
        if isinstance(member, Stitched):
            raise HemstitchError(f"{name} is a stitch, whose cost hangs on its plan: measure its members")
        if isinstance(member, Guided):
            raise HemstitchError(f"{name} is guided already: give the model itself, and guided=[True]")
    devices = {str(member.device): member.device for member in members.values()}
    if len(devices) > 1:
        raise StitchError(f"members lie on different devices ({', '.join(sorted(devices))}): move them to one")
    return next(iter(devices.values()))


def _net(member: Denoiser) -> nn.Module | None:
    net = getattr(member, "net", None)
    return net if isinstance(net, nn.Module) else None


def _dtype(members: Mapping[str, Denoiser], device: torch.device) -> str:
    """Of the members' floating-point weights, and of autocast where it is on."""
    nets = [net for member in members.values() if (net := _net(member)) is not None]
    found = {str(p.dtype).removeprefix("torch.") for net in nets for p in net.parameters() if p.is_floating_point()}
    said = "+".join(sorted(found)) or "float32"
    if torch.is_autocast_enabled(device.type):
        said += f" under autocast to {str(torch.get_autocast_dtype(device.type)).removeprefix('torch.')}"
    return said


def _parameter_bytes(member: Denoiser) -> int:
    net = _net(member)
    return sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()]) if net is not None else 0


def _macs(member: Denoiser, batch: int, guided: bool) -> int | None:
    try:
        return describe(member).macs * batch * (2 if guided else 1)
    except HemstitchError:
        return None


def _path(cache: Path, key: Mapping[str, Any]) -> Path:
    return cache / f"costs-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]}.json"


def _kept(path: Path, key: Mapping[str, Any], blank: Costs) -> Costs | None:
    """An earlier measurement, if it is whole and of just this."""
    try:
        data = read_json_file(path)
        costs = Costs.from_data(data["costs"])
    except (HemstitchError, KeyError):
        return None
    asked, found = ([(c.member, c.guided) for c in some.entries] for some in (blank, costs))
    same = asked == found and replace(costs, entries=blank.entries, measured=blank.measured) == blank
    return costs if data.get("key") == key and same else None


def _writing(cache: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise HemstitchError(f"{cache} could not be written ({error}): choose another folder for cache=") from error


def _cost(data: Any) -> Cost:
    _check_keys(data, Cost, "a cost")
    _check(data, ("member",), lambda v: isinstance(v, str) and v != "", "a name")
    _check(data, ("guided",), lambda v: isinstance(v, bool), "true or false")
    _check(data, ("ms", "spread"), lambda v: type(v) in (int, float) and isfinite(v) and v >= 0, "a number from 0 up")
    _check(data, ("ms",), lambda v: v > 0, "above 0")
    _check(data, ("memory",), lambda v: type(v) is int and v >= 0, "a whole number from 0 up")
    _check(data, ("macs",), lambda v: v is None or (type(v) is int and v >= 0), "a whole number from 0 up, or null")
    return Cost(**data)


def _check_keys(data: Any, kind: type[Cost | Costs], what: str) -> None:
    names = [f.name for f in fields(kind)]
    if not isinstance(data, Mapping) or set(data) != set(names):
        came = ", ".join(sorted(map(str, data))) if isinstance(data, Mapping) else type(data).__name__
        raise HemstitchError(f"{what} has the keys {', '.join(names)}; got {came or 'none'}")


def _check(data: Mapping[str, Any], names: Sequence[str], right: Callable[[Any], bool], expected: str) -> None:
    for name in names:
        if not right(data[name]):
            raise HemstitchError(f"{name} of costs is {expected}, not {data[name]!r}")


def _called(member: str, guided: bool) -> str:
    return f"{member} {'with' if guided else 'without'} guidance"


def _share(part: float | None, whole: float | None) -> str:
    return "" if part is None or not whole else f"{100 * part / whole:.1f} %"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    """Three digits and a unit, each `base` times the one before."""
    power = 0
    while value >= 0.9995 * base and power + 1 < len(units):
        value, power = value / base, power + 1
    return (f"{value:.0f}" if value >= 100 or power == 0 else f"{value:.3g}") + units[power]
