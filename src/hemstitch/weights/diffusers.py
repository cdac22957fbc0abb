"""diffusers' DiT folders, read and written without diffusers.

There every block carries its own copy of the timestep and label embedders (equal copies: it is one
conditioning), query, key and value are separate maps, positions are computed and not stored, and the timestep
frequencies are spaced otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..denoiser import NetDenoiser
from ..errors import CheckpointError, HemstitchError
from ..files import save_tensors
from ..models import DiT
from ..models.config import NetConfig
from ..models.layers import sincos_positions
from ..process import PredictionType, Process, Schedule
from .io import State, read_json_file, read_safetensors, read_text, read_torch, write_folder
from .native import Header, samples_of
from .released import classes, default_process, unwrapped
from .stored import SIT, Stored, Told, few

WEIGHTS = "diffusion_pytorch_model"
HEADER = "hemstitch.json"

# released name: diffusers names, whose tensors are stacked
TOP: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
    "final_layer.linear": ("proj_out_2",),
}
BLOCK: dict[str, tuple[str, ...]] = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
EMBEDDERS = {  # in every block
    "t_embedder.mlp.0.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "norm1.emb.class_embedder.embedding_table.weight",
}

# What diffusers' class assumes where a config is silent; Transformer2DModel, its old name, assumes otherwise.
DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
REQUIRED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}

SCHEDULES: dict[str, Schedule] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTIONS: dict[str, PredictionType] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def stored(folder: Path, told: Told) -> Stored:
    """What a pipeline folder or its transformer folder holds."""
    if (folder / "model_index.json").exists():
        if not (folder / "transformer" / "config.json").exists():
            name = read_json_file(folder / "model_index.json").get("_class_name")
            raise CheckpointError(
                f"{folder} is a {name} without a transformer/ folder: only DiT networks load here. "
                "Other diffusers pipelines are stitched whole, with hemstitch.bridge.stitch"
            )
        folder = folder / "transformer"
    source = folder / "config.json"
    given = read_json_file(source)
    if (folder / HEADER).exists():
        header = Header.from_json(read_text(folder / HEADER), folder / HEADER)
        return header.stored(to_released(_tensors(folder), header.net, folder), told, folder)
    config = config_of(given, told, source)
    state = to_released(_tensors(folder), config, folder)
    process = told.process or (SIT if told.family == "sit" else _process(folder, config))
    return Stored(config, process, "", state)


def config_of(given: dict[str, Any], told: Told, source: object) -> NetConfig:
    """The network of a config.json."""
    name = given.get("_class_name")
    if name not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise CheckpointError(f"{source} is of a {name}: of diffusers' networks, DiTTransformer2DModel loads here")
    if name == "DiTTransformer2DModel":
        given = {**DEFAULTS, **REQUIRED, **given}
    for key, value in REQUIRED.items():
        if given.get(key) != value:
            raise CheckpointError(f"{source}: a DiT has {key}={value!r}, this network {given.get(key)!r}")
    if given.get("interpolation_scale") not in (None, 1):
        raise CheckpointError(f"{source}: stretched positions (interpolation_scale) are not DiT's")
    size = {key: _whole(given, key, source) for key in DEFAULTS}
    channels = size["in_channels"]
    outputs = channels if given.get("out_channels") is None else _whole(given, "out_channels", source)
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(f"{source}: out_channels is in_channels or twice that, not {outputs}")
    num_classes, null_label = classes(size["num_embeds_ada_norm"] + 1, told, source)
    try:
        config = NetConfig(
            family="dit",
            input_size=size["sample_size"],
            channels=channels,
            patch=size["patch_size"],
            width=size["num_attention_heads"] * size["attention_head_dim"],
            depth=size["num_layers"],
            heads=size["num_attention_heads"],
            num_classes=num_classes,
            null_label=null_label,
            learned_variance=outputs == 2 * channels,
            timesteps=told.process.timesteps if told.process else 1000,
            frequency_shift=1,
            mlp_norm_eps=_number(given, "norm_eps", 1e-5, source),
        )
    except HemstitchError as error:
        raise CheckpointError(f"{source}: {error}") from None
    told.check(config, source)
    return config


def process_of(scheduler: dict[str, Any], learned_variance: bool, source: object) -> Process:
    """The process of a scheduler_config.json."""
    schedule = SCHEDULES.get(scheduler.get("beta_schedule", ""))
    prediction = PREDICTIONS.get(scheduler.get("prediction_type", "epsilon"))
    keys = ("beta_schedule", "prediction_type", "trained_betas", "rescale_betas_zero_snr")
    said = ", ".join(f"{key}={scheduler[key]!r}" for key in keys if key in scheduler)
    if (
        schedule is None
        or prediction is None
        or any(scheduler.get(k) for k in ("trained_betas", "rescale_betas_zero_snr"))
    ):
        raise CheckpointError(
            f"{source}: no Process is that of a {scheduler.get('_class_name')} with {said}: pass process="
        )
    try:
        process = Process(
            schedule,
            prediction,
            learned_variance=learned_variance and scheduler.get("variance_type") in (None, "learned_range"),
            timesteps=_whole(scheduler, "num_train_timesteps", source, 1000),
        )
        if schedule == "cosine":
            return process
        ends = _number(scheduler, "beta_start", 1e-4, source), _number(scheduler, "beta_end", 0.02, source)
        exact = replace(process, betas=ends)
    except CheckpointError:
        raise
    except HemstitchError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return process if process.same_noise(exact) else exact


def to_released(theirs: State, config: NetConfig, source: object) -> State:
    """Tensors by released name, from tensors by diffusers' names."""
    depth = len({name.split(".")[1] for name in theirs if name.startswith("transformer_blocks.")})
    if depth != config.depth:
        raise CheckpointError(f"{source} holds {depth} blocks and describes a network of depth {config.depth}")
    names = dict(_names(config.depth))
    blocks = [f"transformer_blocks.{i}." for i in range(config.depth)]
    copies = {ours: [b + name for b in blocks] for ours, name in EMBEDDERS.items()}
    wanted = [name for group in (*names.values(), *copies.values()) for name in group]
    known = {*wanted, "pos_embed.pos_embed"}  # some versions store the positions
    missing = [name for name in wanted if name not in theirs]
    unexpected = [name for name in theirs if name not in known]
    if missing or unexpected:
        wrong = {"missing": missing, "unexpected": unexpected}
        found = "; ".join(f"{what} {few(keys)}" for what, keys in wrong.items() if keys)
        raise CheckpointError(f"the weights in {source} are not those of its config: {found}")
    for group in copies.values():
        differing = [name for name in group[1:] if not torch.equal(theirs[name], theirs[group[0]])]
        if differing:
            raise CheckpointError(
                f"{source}: the blocks' embedders differ ({few(differing)}); a DiT has one for all blocks"
            )
    state = {ours: _stacked(theirs, group, source) for ours, group in names.items()}
    state |= {ours: theirs[group[0]] for ours, group in copies.items()}
    state["pos_embed"] = _positions(config)
    held = theirs.get("pos_embed.pos_embed", state["pos_embed"])
    if held.shape != state["pos_embed"].shape or not _near(held, state["pos_embed"]):
        raise CheckpointError(f"{source}: pos_embed.pos_embed is not the fixed position table of a DiT")
    return state


def from_released(state: State, depth: int) -> State:
    """Tensors by diffusers' names, each with memory of its own."""
    theirs: State = {}
    for ours, group in _names(depth):
        parts = state[ours].detach().cpu().chunk(len(group))
        theirs |= {
            name: part.clone(memory_format=torch.contiguous_format) for name, part in zip(group, parts, strict=True)
        }
    for i in range(depth):
        for ours, name in EMBEDDERS.items():
            theirs[f"transformer_blocks.{i}.{name}"] = state[ours].detach().cpu().clone()
    return theirs


def write(path: Path, denoiser: NetDenoiser, net: DiT) -> list[str]:
    """Write a transformer folder; notes on how diffusers will run the network differently."""
    config = net.config
    if config.family != "dit":
        raise HemstitchError(
            f"diffusers has no {config.family} network, no routers before its blocks: write format 'native' "
            "or 'released'"
        )
    if config.hidden != 4 * config.width:
        raise HemstitchError(
            f"diffusers' DiT has mlp_ratio 4, this network {config.mlp_ratio:g}: write format 'native'"
        )
    positions = net.pos_embed.detach().cpu()
    if not _near(positions, _positions(config)):
        raise HemstitchError(
            "diffusers' DiT computes its positions, and pos_embed holds others here: write format 'native'"
        )
    tensors = from_released(net.state_dict(), config.depth)

    def fill(folder: Path) -> None:
        save_tensors(folder / f"{WEIGHTS}.safetensors", tensors, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_config_json(config), indent=2), encoding="utf-8")
        header = Header.of(config, denoiser.process, samples_of(denoiser.spec))
        (folder / HEADER).write_text(header.to_json(), encoding="utf-8")

    write_folder(path, fill)
    notes = _notes(config, denoiser.process)
    if not torch.equal(positions, _positions(config)):
        notes.append("the positions are computed anew, and differ from the stored ones by rounding")
    return notes


def _notes(config: NetConfig, process: Process) -> list[str]:
    notes = []
    if config.frequency_shift != 1:
        notes.append("diffusers spaces timestep frequencies differently (i/127, not i/128): outputs differ slightly")
    if not config.num_classes:
        notes.append("diffusers' DiT asks for labels: give this unconditional network class_labels of zeros")
    elif not config.null_label:
        notes.append("diffusers takes the last label for the null label, and this network has none: do not guide it")
    if process.is_flow:
        notes.append(f"diffusers' DiT pipeline has no such process ({process}): feed the network its time yourself")
    elif process != default_process(config):
        notes.append(f"the folder holds no scheduler: choose one that fits {process}")
    return notes


def _config_json(config: NetConfig) -> dict[str, Any]:
    return {
        "_class_name": "DiTTransformer2DModel",
        **REQUIRED,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "sample_size": config.input_size,
        "patch_size": config.patch,
        "num_embeds_ada_norm": config.labels - 1,
        "norm_eps": config.mlp_norm_eps,
    }


def _names(depth: int) -> Iterator[tuple[str, list[str]]]:
    """(released name, diffusers names) of all but the embedders."""
    for part in ("weight", "bias"):
        for ours, group in TOP.items():
            yield f"{ours}.{part}", [f"{name}.{part}" for name in group]
        for i in range(depth):
            for ours, group in BLOCK.items():
                yield f"blocks.{i}.{ours}.{part}", [f"transformer_blocks.{i}.{name}.{part}" for name in group]


def _stacked(theirs: State, group: list[str], source: object) -> torch.Tensor:
    if len(group) == 1:
        return theirs[group[0]]
    try:
        return torch.cat([theirs[name] for name in group])
    except RuntimeError as error:
        raise CheckpointError(f"{source}: {few(group)} do not stack: {error}") from None


def _tensors(folder: Path) -> State:
    """The weights of a folder: one safetensors file, several under an index, or a .bin."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    whole = folder / f"{WEIGHTS}.safetensors"
    if whole.exists():
        return read_safetensors(whole)[0]
    if index.exists():
        shards = read_json_file(index).get("weight_map")
        files: list[Any] = list(shards.values()) if isinstance(shards, dict) else [None]
        if not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise CheckpointError(f"{index}: weight_map names files beside it, and this one does not")
        return {key: value for file in sorted(set(files)) for key, value in read_safetensors(folder / file)[0].items()}
    if (folder / f"{WEIGHTS}.bin").exists():
        path = folder / f"{WEIGHTS}.bin"
        return unwrapped(read_torch(path), "ema", path)
    raise CheckpointError(f"{folder} holds no {WEIGHTS}.safetensors, no index of shards and no .bin: fetch its weights")


def _process(folder: Path, config: NetConfig) -> Process:
    """Of the scheduler beside a transformer folder, else as DiT was released."""
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    if (folder.parent / "model_index.json").exists() and scheduler.exists():
        return process_of(read_json_file(scheduler), config.learned_variance, scheduler)
    return default_process(config)


def _positions(config: NetConfig) -> torch.Tensor:
    return sincos_positions(config.width, config.input_size // config.patch)[None]


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to the rounding of a table once stored in half precision."""
    return bool((a.float() - b.float()).abs().max() < 1e-2)


def _whole(data: dict[str, Any], key: str, source: object, default: int | None = None) -> int:
    value = data.get(key, default)
    if type(value) is not int:
        raise CheckpointError(f"{source}: {key} is a whole number, not {value!r}")
    return value


def _number(data: dict[str, Any], key: str, default: float, source: object) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{source}: {key} is a number, not {value!r}")
    return float(value)
