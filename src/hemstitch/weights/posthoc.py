"""An average of the weights of any length, made from a run's snapshots after training (Karras et al. 2024, section 3).

Snapshots are power-function averages of two lengths, stored at intervals; the average asked for is the combination of
them whose profile over training time is nearest.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..train.ema import combination
from .io import State, read_safetensors
from .native import KEY, Header
from .stored import Stored, Told

_NAME = re.compile(r"step_(\d+)_power_(0\.\d+)\.safetensors")


def in_run(run: Path, std: float, told: Told) -> Stored:
    """The network of a run with the average of relative length `std` (0.05 is 5 % of the run) at its last snapshot."""
    found = sorted((run / "snapshots").glob("step_*_power_*.safetensors"))
    stored = [(path, int(m[1]), float(m[2])) for path in found if (m := _NAME.fullmatch(path.name))]
    if not stored:
        raise CheckpointError(f"{run} holds no snapshots to average: train with --snapshot-every STEPS")
    last = max(step for _, step, _ in stored)
    weights = combination([(step, length) for _, step, length in stored], last, std)
    total: State = {}
    header = None
    for (path, _, _), weight in zip(stored, weights.tolist(), strict=True):
        state, metadata = read_safetensors(path)
        if KEY not in metadata:
            raise CheckpointError(f"{path} is not a snapshot of hemstitch's: remove it")
        header = Header.from_json(metadata[KEY], path)
        if total and {k: v.shape for k, v in total.items()} != {k: v.shape for k, v in state.items()}:
            raise CheckpointError(f"{path} is of another network than the snapshots before it: remove it")
        for name, tensor in state.items():
            held = total.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64))
            held.add_(tensor.double(), alpha=weight)
    assert header is not None
    return header.stored({name: tensor.float() for name, tensor in total.items()}, told, run)
