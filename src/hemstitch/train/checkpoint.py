"""Checkpoints: a folder that is complete or does not count.

A checkpoint is written aside, synced, renamed to `step_NNNNNNNN` and only then marked with a COMPLETE file that lists
its files' sizes and hashes. Older ones go after that. Whatever is killed in between leaves the newest complete one
whole. Weights and optimizer are safetensors, the rest JSON; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError, HemstitchError
from ..files import read_json, save_tensors, sync, write_text
from ..models import DiT
from ..process import Process
from ..weights import save_net

MARKER = "COMPLETE"


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def save(
    folder: Path,
    step: int,
    net: DiT,
    ema: DiT,
    optimizer: torch.optim.Optimizer,
    process: Process,
    space: str,
    recipe_hash: str,
    keep: int,
) -> Path:
    """Write the checkpoint of a step under `folder`, then remove all but the newest `keep`. Returns its path."""
    final = folder / name_of(step)
    aside = folder / f".{name_of(step)}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        aside.mkdir()
        save_net(aside / "model.safetensors", net.state_dict(), net.config, process, space)
        save_net(aside / "ema.safetensors", ema.state_dict(), ema.config, process, space)
        save_tensors(aside / "optimizer.safetensors", _optimizer_tensors(net, optimizer))
        (aside / "state.json").write_text(json.dumps({"step": step, "recipe": recipe_hash}))
        files = sorted(aside.iterdir())
        for file in files:
            sync(file)
        contents = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files}
        if final.exists():  # an unmarked leftover, or this very step again
            shutil.rmtree(final)
        os.replace(aside, final)
        sync(folder)
        write_text(final / MARKER, json.dumps(contents))
    except (OSError, SafetensorError) as error:  # no space, no permission
        raise HemstitchError(
            f"the checkpoint {final} could not be written ({error}); the one before it is untouched. "
            "Make room or choose another --out, and resume"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in complete(folder)[:-keep]:
        (old / MARKER).unlink()
        shutil.rmtree(old)
    return final


def complete(folder: Path) -> list[Path]:
    """The marked checkpoints under a folder, oldest first."""
    return sorted(p.parent for p in folder.glob(f"step_*/{MARKER}"))


def verify(checkpoint: Path) -> None:
    """Raise CheckpointError, naming the file, unless every listed file is there with its size and hash."""
    contents = read_json((checkpoint / MARKER).read_text(), f"{checkpoint / MARKER}")
    for name, expected in contents.items():
        file = checkpoint / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file} is damaged: {file.stat().st_size} bytes of {expected['bytes']}")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is damaged: its contents have changed since it was written")


def restore(checkpoint: Path, net: DiT, ema: DiT, optimizer: torch.optim.Optimizer) -> int:
    """Load a verified checkpoint into a freshly built run. Returns its step."""
    net.load_state_dict(load_file(checkpoint / "model.safetensors"))
    ema.load_state_dict(load_file(checkpoint / "ema.safetensors"))
    _restore_optimizer(net, optimizer, load_file(checkpoint / "optimizer.safetensors"))
    state = read_json((checkpoint / "state.json").read_text(), f"{checkpoint / 'state.json'}")
    return int(state["step"])


def _trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def _optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: Mapping[Any, Mapping[str, Tensor]] = optimizer.state
    return {
        f"{name}/{key}": value.detach().contiguous()
        for name, parameter in _trainable(net).items()
        for key, value in state.get(parameter, {}).items()
    }


def _restore_optimizer(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in _trainable(net).items():
        mine = {k.rpartition("/")[2]: v for k, v in tensors.items() if k.rpartition("/")[0] == name}
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device) for key, value in mine.items()
        }


def _clear(folder: Path) -> None:
    """Remove what a killed write left aside."""
    for leftover in folder.glob(".step_*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
