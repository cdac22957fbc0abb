"""Recipe: everything that defines a training run, as frozen dataclasses. JSON in and out, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from .errors import HemstitchError
from .files import read_json
from .models.config import NetConfig
from .process import Process
from .train.times import Times
from .train.weighting import WEIGHTINGS


@dataclass(frozen=True)
class DataRecipe:
    """kind: a name of `data.DATASETS`. path: where the files are. size: side that images are resized to (folders)."""

    kind: str = "digits"
    path: str = ""
    size: int = 0


@dataclass(frozen=True)
class TrainRecipe:
    """What is learned:

    steps: optimizer steps. batch: global batch. learning_rate, weight_decay: of AdamW, constant. clip: largest gradient
    norm, 0 is none. ema: decay per step of the averaged weights. label_dropout: share of labels replaced by the null
    label. flip: mirror half of the images, where the data allow it. prior_weight: of Switch-DiT's prior loss.
    weighting: a name of `train.weighting.WEIGHTINGS`; min_snr_gamma, p2_k, p2_gamma are theirs. times: "uniform" or
    "lognormal" (time_mean, time_std: of log(σ/α)). intervals: [low, high) of times to train on, empty for all. init:
    weights to begin from, as `load` reads them.
    precision: "auto" is bf16 on a GPU, fp32 elsewhere; norms, gates and losses are fp32 in any. seed: of everything.
    snapshot_every: steps between snapshots of two power-function averages, from which an average of any length is made
    afterwards; 0 is none.

    How it is computed, which a resumed run may change:

    accumulate: parts that a batch is computed in. parallel: "ddp" or "fsdp" (sharded weights), over several processes.
    compile: the blocks. recompute: a block's activations, in backward, instead of keeping them. workers: threads that
    make batches ahead, 0 is a choice by the machine. checkpoint_every, log_every, sample_every: in steps (0 samples
    never). keep: how many checkpoints stay.
    """

    steps: int = 400_000
    batch: int = 256
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.9999
    label_dropout: float = 0.1
    flip: bool = True
    prior_weight: float = 1.0
    weighting: str = "constant"
    min_snr_gamma: float = 5.0
    p2_k: float = 1.0
    p2_gamma: float = 1.0
    times: Literal["uniform", "lognormal"] = "uniform"
    time_mean: float = -1.2
    time_std: float = 1.2
    intervals: tuple[tuple[float, float], ...] = ()
    init: str = ""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = 0
    snapshot_every: int = 0
    accumulate: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    recompute: bool = False
    workers: int = 0
    checkpoint_every: int = 5_000
    log_every: int = 50
    sample_every: int = 5_000
    keep: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "checkpoint_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise HemstitchError(f"train.{name} is at least 1, not {getattr(self, name)}")
        for name in ("snapshot_every", "sample_every", "workers", "seed"):
            if getattr(self, name) < 0:
                raise HemstitchError(f"train.{name} is at least 0, not {getattr(self, name)}")
        for name, top in (("ema", 1.0), ("label_dropout", 1.0)):
            if not 0 <= getattr(self, name) < top:
                raise HemstitchError(f"train.{name} lies in 0..1 (below 1), not {getattr(self, name)}")
        if self.weighting not in WEIGHTINGS:
            raise HemstitchError(f"train.weighting is one of {', '.join(WEIGHTINGS)}, not {self.weighting!r}")
        if self.batch % self.accumulate:
            raise HemstitchError(f"train.accumulate divides train.batch; {self.accumulate} and {self.batch}")
        finite = [f.name for f in fields(self) if isinstance(getattr(self, f.name), float)]
        if not all(math.isfinite(getattr(self, name)) for name in finite):
            raise HemstitchError(f"train's numbers are finite: {', '.join(finite)}")
        for name in ("learning_rate", "min_snr_gamma", "time_std"):
            if getattr(self, name) <= 0:
                raise HemstitchError(f"train.{name} is above 0, not {getattr(self, name)}")
        for name in ("clip", "weight_decay", "prior_weight", "p2_k", "p2_gamma"):
            if getattr(self, name) < 0:
                raise HemstitchError(f"train.{name} is at least 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Recipe:
    """A training run. The data decide net.channels, net.input_size and net.num_classes (see `fitted`)."""

    name: str
    net: NetConfig = field(default_factory=NetConfig)
    process: Process = field(default_factory=Process)
    data: DataRecipe = field(default_factory=DataRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)

    def __post_init__(self) -> None:
        if self.net.learned_variance != self.process.learned_variance:
            raise HemstitchError(
                "net.learned_variance and process.learned_variance agree: both true (2C outputs) or both false"
            )
        if self.net.timesteps != self.process.timesteps:
            raise HemstitchError(
                f"net.timesteps ({self.net.timesteps}) and process.timesteps ({self.process.timesteps}) agree"
            )
        if self.process.reverse_time and self.net.family != "dit":
            raise HemstitchError(
                f"a {self.net.family} routes by timesteps, and under process.reverse_time the network is told 0..1: "
                "use the flow process without it"
            )
        _ = self.times  # its intervals are checked

    @property
    def times(self) -> Times:
        """How training times are drawn."""
        train = self.train
        return Times(self.process, train.times, train.time_mean, train.time_std, train.intervals)

    def fitted(self, channels: int, size: int, classes: int) -> Recipe:
        """This recipe for data of that shape; the null label is there if labels are dropped."""
        null_label = classes > 0 and self.train.label_dropout > 0
        net = replace(self.net, channels=channels, input_size=size, num_classes=classes, null_label=null_label)
        return replace(self, net=net)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        return cls.from_data(read_json(text, "a recipe"))

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Recipe:
        """From a JSON object already read."""
        return cast(Recipe, from_dict(cls, data, "recipe"))

    @property
    def hash(self) -> str:
        """Twelve hex digits of what defines the result; how long, how often saved and how computed is left out."""
        data = asdict(self)
        for name in UNBINDING:
            data["train"].pop(name)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]

    def overridden(self, changes: Mapping[str, str]) -> Recipe:
        """With values by dotted name, as text: {"data.path": "imagenet", "train.steps": "1000"}.

        A name without a dot is one of train's ("steps") or of the recipe's own.
        """
        data = asdict(self)
        for name, text in changes.items():
            group, _, key = name.replace("-", "_").rpartition(".")
            group = group or ("train" if key in _names(TrainRecipe) else "")
            target = data if not group else data.get(group)
            if not isinstance(target, dict) or key not in target or isinstance(target[key], dict):
                raise HemstitchError(f"a recipe has no {name!r}; it has {', '.join(_dotted(data))}")
            target[key] = text if isinstance(target[key], str) else _parse(text)
        return cast(Recipe, from_dict(Recipe, data, "recipe"))

    def summary(self) -> str:
        """Every value by its dotted name, in one line."""
        return ", ".join(f"{name} {value}" for name, value in _dotted(asdict(self)).items())

    def dotted(self) -> dict[str, Any]:
        """Every value by its dotted name; lists as text."""
        flat = _dotted(asdict(self))
        return {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in flat.items()}

    def difference(self, other: Recipe) -> list[str]:
        """Dotted names that differ, but for those that do not change the result."""
        ours, theirs = _dotted(asdict(self)), _dotted(asdict(other))
        return [k for k in ours if ours[k] != theirs[k] and k.removeprefix("train.") not in UNBINDING]


# Fields of `train` that say how long, how often and how it is computed, not what: a run may be resumed under others.
UNBINDING = (
    "steps",
    "checkpoint_every",
    "log_every",
    "sample_every",
    "keep",
    "accumulate",
    "parallel",
    "compile",
    "recompute",
    "workers",
)


def from_dict(cls: type, data: Mapping[str, Any], where: str) -> Any:
    """A frozen dataclass from a JSON object: unknown keys and wrong types are refused, missing ones take defaults."""
    hints = get_type_hints(cls)
    unknown = [key for key in data if key not in _names(cls)]
    if unknown:
        raise HemstitchError(f"{where} has no {', '.join(unknown)}; it has {', '.join(_names(cls))}")
    values = {}
    for key, value in data.items():
        hint = hints[key]
        inner = f"{where}.{key}"
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise HemstitchError(f"{inner} is an object, not {value!r}")
            values[key] = from_dict(cast(type, hint), value, inner)
        else:
            values[key] = _typed(hint, value, inner)
    try:
        return cls(**values)
    except TypeError as error:
        raise HemstitchError(f"{where} is incomplete: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise HemstitchError(f"{where} is one of {', '.join(map(str, get_args(hint)))}, not {value!r}")
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _typed(next(a for a in get_args(hint) if a is not type(None)), value, where)
    if origin is tuple and get_args(hint)[-1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise HemstitchError(f"{where} is a list, not {value!r}")
        return tuple(_typed(get_args(hint)[0], v, where) for v in value)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(hint)):
            raise HemstitchError(f"{where} is a list of {len(get_args(hint))} values, not {value!r}")
        return tuple(_typed(a, v, where) for a, v in zip(get_args(hint), value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise HemstitchError(f"{where} is a {hint.__name__}, not {value!r}")
    return value


def _parse(text: str) -> Any:
    """A command-line value: JSON if it is JSON (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


def _dotted(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
