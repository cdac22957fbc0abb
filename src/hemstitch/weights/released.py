"""Released checkpoints: DiT, SiT, DTR and Switch-DiT state dicts, whose sizes are read from the tensors.

Shape suffixes: C channels, D width, L tokens, M experts, p patch.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoiser import NetDenoiser
from ..errors import CheckpointError, HemstitchError
from ..files import save_tensors, write_atomic
from ..models import DiT
from ..models.config import SIZES, NetConfig
from ..models.layers import sincos_positions
from ..process import Process
from .io import State
from .stored import SIT, Stored, Told, few

HEADS = {width: heads for width, _, heads in SIZES.values()}
TOP_K = {3: 2}  # the released Switch-DiT: M to k
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def stored(data: Any, told: Told, weights: str, source: object) -> Stored:
    """What a checkpoint holds, already read: a state dict, or one under "ema", "model" or "state_dict"."""
    state = unwrapped(data, weights, source)
    config = config_of(state, told, source)
    if "pos_embed" not in state:
        state["pos_embed"] = sincos_positions(config.width, config.input_size // config.patch)[None]
    process = told.process or (SIT if told.family == "sit" else default_process(config))
    return Stored(config, process, "", state)


def default_process(config: NetConfig) -> Process:
    """What the released DiT, DTR and Switch-DiT were trained under."""
    return Process("linear", "eps", learned_variance=config.learned_variance)


def unwrapped(data: Any, weights: str, source: object) -> State:
    """The state dict in a checkpoint, without what wrappers put before its names."""
    if not isinstance(data, dict):
        raise CheckpointError(f"{source} holds a {type(data).__name__}, not a dictionary of weights")
    nested = [key for key in ("ema", "model", "state_dict") if isinstance(data.get(key), dict)]
    if nested:
        wanted = [key for key in nested if weights == "ema" or key != "ema"]
        if not wanted:
            raise CheckpointError(f"{source} holds averaged weights only: pass weights='ema'")
        data = data[wanted[0]]
    state: State = {}
    for key, value in data.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{source} is no state dict: {key!r} is {type(value).__name__}, not a tensor")
        while key.startswith(WRAPPERS):
            key = key.partition(".")[2]
        if key in state:
            raise CheckpointError(f"{source} holds {key} twice, under different prefixes")
        state[key] = value
    return state


def config_of(state: State, told: Told, source: object) -> NetConfig:
    """The network that these tensors are, with what they cannot tell from `told`."""
    if any(key.startswith("transformer_blocks.") for key in state):
        raise CheckpointError(f"{source} is in diffusers' layout: load its folder, which holds config.json")
    D, C, p, _ = _shape(state, "x_embedder.proj.weight", 4, source)
    hidden, _ = _shape(state, "blocks.0.mlp.fc1.weight", 2, source)
    rows, _ = _shape(state, "y_embedder.embedding_table.weight", 2, source)
    family = _family(state, told, source)
    routing = _routing(state, told, source) if family == "switch_dit" else {}
    if told.top_k is not None and not routing:
        raise CheckpointError(f"{source} has no experts: leave top_k= out")
    num_classes, null_label = classes(rows, told, source)
    try:
        return NetConfig(
            family=family,  # type: ignore[arg-type]
            input_size=_input_size(state, p, told, source),
            channels=C,
            patch=p,
            width=D,
            depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
            heads=_heads(D, told, source),
            num_classes=num_classes,
            null_label=null_label,
            learned_variance=_learned_variance(state, C, p, source),
            mlp_ratio=_ratio(hidden, D),
            timesteps=told.process.timesteps if told.process else 1000,
            **routing,
        )
    except CheckpointError:
        raise
    except HemstitchError as error:
        raise CheckpointError(f"{source}: {error}") from None


def classes(rows: int, told: Told, source: object) -> tuple[int, bool]:
    """(classes, whether there is a null label) of a label table. One row is an unconditional network."""
    if told.num_classes is None:
        return rows - 1, rows > 1
    if told.num_classes not in (rows, rows - 1):
        raise CheckpointError(
            f"{source} has {rows} labels: num_classes={rows - 1} and a null label, or num_classes={rows} "
            f"without, but not {told.num_classes}"
        )
    return told.num_classes, 0 < told.num_classes < rows


def write(path: Path, denoiser: NetDenoiser, net: DiT) -> list[str]:
    """Write a plain state dict, as safetensors or by torch.save; notes on what such a file cannot hold."""
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}

    def by_torch(aside: Path) -> None:
        torch.save(state, aside)

    def by_safetensors(aside: Path) -> None:
        save_tensors(aside, state)

    write_atomic(path, by_safetensors if path.suffix == ".safetensors" else by_torch)
    return _notes(state, denoiser, net.config)


def _notes(state: State, denoiser: NetDenoiser, config: NetConfig) -> list[str]:
    process = denoiser.process
    sit = process == SIT and config.family == "dit"
    needed = {
        "family": "sit" if sit else config.family if config.family == "dtr" else None,
        "num_heads": config.heads if HEADS.get(config.width) != config.heads else None,
        "top_k": config.top_k if config.family == "switch_dit" and TOP_K.get(config.experts) != config.top_k else None,
        "num_classes": config.num_classes if config.num_classes and not config.null_label else None,
        "process": None if sit or process == default_process(config) else process,
    }
    told = Told(**{name: value for name, value in needed.items() if value is not None})  # type: ignore[arg-type]
    again = config_of(state, told, "the file")
    keywords = ", ".join(f"{name}={value!r}" for name, value in needed.items() if value is not None)
    notes = [f"released files do not say it: load this one with {keywords}"] if keywords else []
    for name in (f.name for f in fields(NetConfig)):
        ours, theirs = getattr(config, name), getattr(again, name)
        if ours != theirs and name not in DERIVED and name not in UNUSED[config.family]:
            notes.append(f"released networks have {name}={theirs!r}, this one {ours!r}: outputs differ there")
    if denoiser.spec.space:
        notes.append(f"released files do not name the space of their samples: {denoiser.spec.space!r} is lost")
    return notes


DERIVED = ("mlp_ratio", "null_label")  # from the tensors, perhaps by another name for the same
UNUSED = {
    "dit": ("experts", "top_k", "mask_alpha", "mask_beta", "timesteps"),
    "dtr": ("experts", "top_k"),
    "switch_dit": ("mask_beta",),
}


def _shape(state: State, key: str, ndim: int, source: object) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{source} is no diffusion transformer: it holds no {key}, but {few(state) or 'nothing'}")
    shape = tuple(state[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(f"{source}: {key} has {ndim} dimensions, none of them 0; this one is {shape}")
    return shape


def _family(state: State, told: Told, source: object) -> str:
    routed = any(key.startswith("routers.") for key in state)
    family = "dit" if told.family == "sit" else told.family or ("switch_dit" if routed else "dit")
    if routed != (family == "switch_dit"):
        holds = "expert routers (family 'switch_dit')" if routed else "no expert routers"
        raise CheckpointError(f"{source} holds {holds}, and family={told.family!r} was asked for")
    return family


def _routing(state: State, told: Told, source: object) -> dict[str, int]:
    M, _, _ = _shape(state, "routers.0.experts.w", 3, source)
    top_k = told.top_k or TOP_K.get(M)
    if top_k is None:
        raise CheckpointError(f"{source} has {M} experts, and tensors do not tell how many are used: pass top_k=")
    return {"experts": M, "top_k": top_k}


def _heads(D: int, told: Told, source: object) -> int:
    heads = told.num_heads or HEADS.get(D)
    if heads is None:
        raise CheckpointError(
            f"{source} has width {D}, which is no published size, and tensors do not tell the number of "
            "attention heads: pass num_heads="
        )
    return heads


def _input_size(state: State, patch: int, told: Told, source: object) -> int:
    if "pos_embed" not in state:
        if told.input_size is None:
            raise CheckpointError(
                f"{source} holds no pos_embed, so nothing tells the size of samples: pass input_size="
            )
        return told.input_size
    _, L, _ = _shape(state, "pos_embed", 3, source)
    side = math.isqrt(L)
    if side * side != L:
        raise CheckpointError(f"{source}: pos_embed has {L} tokens, which is no square")
    if told.input_size not in (None, side * patch):
        raise CheckpointError(
            f"{source} has positions for samples of {side * patch}x{side * patch}, not {told.input_size}: "
            "leave input_size= out"
        )
    return side * patch


def _learned_variance(state: State, channels: int, patch: int, source: object) -> bool:
    rows, _ = _shape(state, "final_layer.linear.weight", 2, source)
    outputs = rows / patch**2
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"{source} has {outputs:g} output channels for {channels} inputs; it should have as many or twice"
        )
    return outputs == 2 * channels


def _ratio(hidden: int, width: int) -> float:
    """The mlp_ratio whose ⌊width · ratio⌋ is `hidden`, against rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
