"""Checkpoints: a folder that is complete or does not count.

A checkpoint is written aside, synced, renamed to `step_NNNNNNNN` and only then marked with a COMPLETE file that lists
its files' sizes and hashes. Older ones go after that. Whatever is killed in between leaves the newest complete one
whole. Weights and optimizer are safetensors, the rest JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import HemstitchError
from ..files import read_json_file, save_tensors, sync, write_text
from ..marked import MARKER, complete, name_of, sha256, step_folders, step_of
from ..models import DiT
from ..process import Process
from ..weights import save_net


def save(
    folder: Path,
    step: int,
    net: DiT,
    ema: DiT,
    optimizer: torch.optim.Optimizer,
    process: Process,
    space: str,
    keep: int,
) -> Path:
    """Write the checkpoint of a step under `folder`, then remove older ones but for the newest `keep` - 1.

    Returns its path.
    """
    final = folder / name_of(step)
    aside = folder / f".{name_of(step)}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        aside.mkdir()
        save_net(aside / "model.safetensors", net.state_dict(), net.config, process, space)
        save_net(aside / "ema.safetensors", ema.state_dict(), ema.config, process, space)
        save_tensors(aside / "optimizer.safetensors", _optimizer_tensors(net, optimizer))
        (aside / "state.json").write_text(json.dumps({"step": step}))
        files = sorted(aside.iterdir())
        for file in files:
            sync(file)
        contents = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}
        if final.exists():  # this very step, found damaged or unmarked when the run was resumed
            os.replace(final, folder / f".{final.name}.{os.getpid()}.old.tmp")
        os.replace(aside, final)
        sync(folder)
        write_text(final / MARKER, json.dumps(contents))
        older = [c for c in complete(folder) if step_of(c) < step]
        for old in older[: len(older) - (keep - 1)]:
            (old / MARKER).unlink()
            shutil.rmtree(old)
    except OSError as error:  # no space, no permission
        raise HemstitchError(
            f"the checkpoint {final} could not be written ({error}); the one before it is untouched. "
            "Make room or choose another --out, and resume"
        ) from error
    finally:
        _clear(folder)
    return final


def restore(checkpoint: Path, net: DiT, ema: DiT, optimizer: torch.optim.Optimizer) -> int:
    """Load a verified checkpoint into a freshly built run. Returns its step."""
    net.load_state_dict(load_file(checkpoint / "model.safetensors"))
    ema.load_state_dict(load_file(checkpoint / "ema.safetensors"))
    _restore_optimizer(net, optimizer, load_file(checkpoint / "optimizer.safetensors"))
    return int(read_json_file(checkpoint / "state.json")["step"])


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
    """Through the optimizer's own loading, which puts each tensor where this device's step wants it."""
    state: dict[int, dict[str, Tensor]] = {}
    for i, name in enumerate(_trainable(net)):
        state[i] = {k.rpartition("/")[2]: v for k, v in tensors.items() if k.rpartition("/")[0] == name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _clear(folder: Path) -> None:
    """Remove what a killed or failed write left: folders aside, and step folders that never got their mark."""
    unmarked = [p for p in step_folders(folder) if not (p / MARKER).exists()]
    for leftover in (*folder.glob(".step_*.tmp"), *unmarked):
        shutil.rmtree(leftover, ignore_errors=True)
