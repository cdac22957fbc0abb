"""hemstitch's own files: safetensors whose metadata says which network, process and space they belong to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from ..denoiser import Spec
from ..errors import CheckpointError, HemstitchError
from ..files import read_json, save_tensors, write_atomic
from ..marked import MARKER, complete, sound, verify
from ..models.config import NetConfig
from ..process import Process
from ..recipe import from_dict
from .io import State
from .stored import Stored, Told

KEY = "hemstitch"
FORMAT = 1

Weights = Literal["ema", "model"]


@dataclass(frozen=True)
class Samples:
    """What the network's configuration does not say of its samples: see `Spec`."""

    space: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_UNKNOWN = Samples()


@dataclass(frozen=True)
class Header:
    """The metadata of a native file."""

    format: int
    net: NetConfig
    process: Process
    spec: Samples

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, config: NetConfig, process: Process, samples: Samples) -> Header:
        return cls(FORMAT, config, process, samples)

    @classmethod
    def from_json(cls, text: str, source: object) -> Header:
        """Unknown keys, wrong types and other formats are refused."""
        try:
            data = read_json(text, "the description")
            if data.get("format") != FORMAT:
                found = data.get("format")
                raise HemstitchError(f"this hemstitch reads format {FORMAT}, not {found!r}: a newer one may read it")
            return cast(Header, from_dict(cls, data, KEY))
        except HemstitchError as error:
            raise CheckpointError(f"{source}: {error}") from None

    def stored(self, state: State, told: Told, source: object) -> Stored:
        told.check(self.net, source)
        if told.family == "sit" and told.process is None and not self.process.reverse_time:
            raise CheckpointError(f"{source} says {self.process}, which is not SiT's: leave family= out")
        return Stored(self.net, self.process, self.spec.space, state, self.spec.mean, self.spec.std)


def samples_of(spec: Spec) -> Samples:
    return Samples(spec.space, spec.mean, spec.std)


def metadata(config: NetConfig, process: Process, samples: Samples) -> dict[str, str]:
    """What a native file says of itself."""
    return {KEY: Header.of(config, process, samples).to_json()}


def save_net(
    path: Path, net_state: Mapping[str, Tensor], config: NetConfig, process: Process, samples: Samples = _UNKNOWN
) -> None:
    """Write a state dict as a native file, whole or not at all.

    Raises OSError or SafetensorError when it cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in net_state.items()}
    header = metadata(config, process, samples)
    write_atomic(path, lambda aside: save_tensors(aside, tensors, header))


def in_run(folder: Path, weights: Weights) -> Path:
    """The file of weights in a run folder's newest complete checkpoint."""
    name = f"{weights}.safetensors"
    candidates = complete(folder / "checkpoints")
    if not candidates:
        raise CheckpointError(
            f"{folder / 'checkpoints'} holds no complete checkpoint yet: train until the first is saved"
        )
    for candidate in reversed(candidates):
        wrong = sound(candidate, [name])
        if wrong is None:
            return candidate / name
        warnings.warn(f"passing over a checkpoint: {wrong}", stacklevel=2)
    raise CheckpointError(f"every checkpoint in {folder / 'checkpoints'} is damaged; of the oldest: {wrong}")


def in_checkpoint(folder: Path, weights: Weights) -> Path:
    """The file of weights in a checkpoint folder."""
    if not (folder / MARKER).exists():
        raise CheckpointError(
            f"{folder} has no {MARKER} marker, so its writing was cut short: load the run folder, whose "
            "newest complete checkpoint is used, or name a .safetensors file in it"
        )
    verify(folder, [f"{weights}.safetensors"])
    return folder / f"{weights}.safetensors"
