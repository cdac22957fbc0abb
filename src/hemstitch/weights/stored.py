"""What a file of weights says, what its reader is told beside it, and the network made of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..denoiser import NetDenoiser, Spec
from ..errors import CheckpointError, HemstitchError
from ..models import DiT, NetConfig, build
from ..process import Process
from .io import State

FAMILIES = ("dit", "dtr", "switch_dit", "sit")
SIT = Process("flow", "flow", reverse_time=True)


@dataclass(frozen=True)
class Told:
    """What the caller of `load` says; None where the file decides."""

    family: str | None = None
    num_heads: int | None = None
    top_k: int | None = None
    input_size: int | None = None
    num_classes: int | None = None
    process: Process | None = None

    def __post_init__(self) -> None:
        if self.family is not None and self.family not in FAMILIES:
            raise HemstitchError(f"family is one of {', '.join(FAMILIES)}, not {self.family!r}")

    def check(self, config: NetConfig, source: object) -> None:
        """Refuse what contradicts a file that describes its network itself."""
        said = {
            "family": config.family,
            "num_heads": config.heads,
            "top_k": config.top_k,
            "input_size": config.input_size,
            "num_classes": config.num_classes,
        }
        for name, value in said.items():
            told = getattr(self, name)
            if told not in (None, value) and (told, value) != ("sit", "dit"):
                raise CheckpointError(f"{source} says {name}={value!r}, not {told!r}: leave {name}= out")


@dataclass(frozen=True)
class Stored:
    """A network as a file holds it: tensors under the released names, and what they are weights of."""

    config: NetConfig
    process: Process
    space: str
    state: State
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def denoiser(self, process: Process | None, source: object) -> NetDenoiser:
        """The network, in eval mode and float32, under `process` or its own."""
        process = process or self.process
        if process.learned_variance and not self.config.learned_variance:
            raise CheckpointError(
                f"{source} outputs {self.config.channels} channels, so no variance: pass a process without "
                "learned_variance"
            )
        net = network(self.config, self.state, source).eval()
        return NetDenoiser(net, process, spec_of(self.config, self.space, self.mean, self.std))


def spec_of(config: NetConfig, space: str = "", mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> Spec:
    """The samples and labels of a network."""
    return Spec(
        channels=config.channels,
        size=config.input_size,
        num_classes=config.num_classes,
        null_label=config.null_label and config.num_classes > 0,
        space=space,
        mean=mean,
        std=std,
    )


def network(config: NetConfig, state: Mapping[str, Tensor], source: object) -> DiT:
    """The network of a configuration with a copy of these weights. Nothing large is built before they fit."""
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if depth != config.depth:
        raise CheckpointError(f"{source} holds {depth} blocks and describes a network of depth {config.depth}")
    try:
        with torch.device("meta"):
            expected = build(config).state_dict()
        _check(expected, state, source)
        with _Unfilled():
            net = build(config)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, OverflowError) as error:  # sizes that no tensor can have
        raise CheckpointError(f"{source} describes a network that cannot be built: {error}") from error
    net.load_state_dict(state)
    return net


def few(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many more."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: object) -> None:
    wrong = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "misshapen": [
            f"{key} {tuple(state[key].shape)} for {tuple(like.shape)}"
            for key, like in expected.items()
            if key in state and state[key].shape != like.shape
        ],
        "not dense floats": [key for key, value in state.items() if not _dense_float(value)],
    }
    found = [f"{what} {few(keys)}" for what, keys in wrong.items() if keys]
    if found:
        raise CheckpointError(f"the weights in {source} are not those of the network they describe: {'; '.join(found)}")


def _dense_float(value: Tensor) -> bool:
    return value.is_floating_point() and value.layout is torch.strided and not value.is_meta


class _Unfilled(TorchFunctionMode):
    """Modules are made without drawing their random weights: every one of them is about to be overwritten.

    That draws nothing from the caller's random generator and takes a tenth of the time.
    """

    FILLS = ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in self.FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
