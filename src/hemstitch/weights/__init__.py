"""Weights: networks read from files, whatever made them, and written again.

`load` reads hemstitch runs and files, released DiT, SiT, DTR and Switch-DiT checkpoints, and diffusers DiT
folders; nothing in a file is ever run. `save` writes hemstitch's own format, `convert` any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from ..denoiser import NetDenoiser
from ..errors import CheckpointError, HemstitchError
from ..models import DiT
from ..process import Process
from . import diffusers, native, released
from .io import read_safetensors, read_torch, writing
from .native import Weights, save_net
from .stored import Stored, Told, spec_of

Format = Literal["native", "released", "diffusers"]

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
READS = (
    "a hemstitch run or checkpoint folder, a .safetensors, a released .pt checkpoint, or a diffusers DiT "
    "folder (model_index.json or config.json)"
)


def load(
    path: str | Path,
    *,
    family: str | None = None,
    num_heads: int | None = None,
    top_k: int | None = None,
    input_size: int | None = None,
    num_classes: int | None = None,
    process: Process | None = None,
    weights: Weights = "ema",
    ema: float | None = None,
) -> NetDenoiser:
    """A network under its process, on the CPU in float32 and eval mode, from any file or folder of weights.

    path: a hemstitch run folder (its newest complete checkpoint) or checkpoint folder, a `.safetensors`, a
        released `.pt`, `.pth` or `.ckpt`, or a diffusers DiT folder (a pipeline's or its transformer's).
    weights: "ema" (the averaged ones, where there are any) or "model".
    ema: of a run folder with snapshots, the average of this length instead, as a share of the run (0.05 is 5 %).
    process: instead of the file's own, or of the one that the family was released with.

    hemstitch's files and diffusers' folders describe themselves. Of a released state dict the sizes are read
    from the tensors, and what those cannot tell is a keyword:

    family: "dtr" or "sit", whose tensors are those of "dit".
    num_heads: needed where the width is not one of S, B, L or XL.
    top_k: experts used, of Switch-DiT with other than 3.
    input_size: where positions are not stored.
    num_classes: as many as the label table has rows, if the last row is not the null label.

    Raises CheckpointError, naming the path, for files that are missing, damaged, hostile or of another
    network, and for keywords that contradict them.
    """
    if weights not in get_args(Weights):
        raise HemstitchError(f"weights is 'ema' or 'model', not {weights!r}")
    path = Path(path)
    told = Told(family, num_heads, top_k, input_size, num_classes, process)
    if ema is not None:
        from . import posthoc

        return posthoc.in_run(path, ema, told).denoiser(process, path)
    return _read(path, told, weights).denoiser(process, path)


def save(denoiser: NetDenoiser, path: str | Path) -> None:
    """Write a network and its process to a `.safetensors`, whole or not at all; `load` gets back the same."""
    path = Path(path)
    net = _net(denoiser)
    if path.suffix != ".safetensors":
        raise HemstitchError(f"hemstitch's own format is a .safetensors; {path} is not named so")
    with writing(path):
        save_net(path, net.state_dict(), net.config, denoiser.process, native.samples_of(denoiser.spec))


def convert(source: str | Path, target: str | Path, format: Format, **keywords: Any) -> list[str]:
    """Write the network at `source` in another format. Returns notes on what that format cannot say.

    format: "native", a `.safetensors` of hemstitch; "released", a plain state dict under the released names
        (`.pt`, `.pth`, `.ckpt`, or a `.safetensors` without description); "diffusers", a folder that
        `DiTTransformer2DModel.from_pretrained` reads.
    keywords: those of `load`.
    target: must not exist, or be empty. Raises HemstitchError for networks that the format has no place for.
    """
    target = Path(target)
    suffixes = {
        "native": (".safetensors",),
        "released": (*TORCH_SUFFIXES[:3], ".safetensors"),
        "diffusers": (),
    }
    if format not in suffixes:
        raise HemstitchError(f"format is one of {', '.join(suffixes)}, not {format!r}")
    if suffixes[format] and target.suffix not in suffixes[format]:
        raise HemstitchError(f"a {format} file is named {' or '.join(suffixes[format])}; {target} is not")
    if not suffixes[format] and target.suffix in (*TORCH_SUFFIXES, ".safetensors"):
        raise HemstitchError(f"a {format} target is a folder; {target} is named as a file")
    if target.exists() and not _empty(target):
        raise HemstitchError(f"{target} is there already: remove it, or convert to another path")
    denoiser = load(source, **keywords)
    net = _net(denoiser)
    with writing(target):
        if format == "native":
            save(denoiser, target)
            return []
        return (released if format == "released" else diffusers).write(target, denoiser, net)


def _read(path: Path, told: Told, weights: Weights) -> Stored:
    if path.is_dir():
        return _read_folder(path, told, weights)
    if not path.exists():
        raise CheckpointError(f"there is no file or folder {path}: give {READS}")
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        if native.KEY in metadata:
            return native.Header.from_json(metadata[native.KEY], path).stored(state, told, path)
        return released.stored(state, told, weights, path)
    if path.suffix in TORCH_SUFFIXES:
        return released.stored(read_torch(path), told, weights, path)
    raise CheckpointError(f"{path} is not named as a file of weights: give {READS}")


def _read_folder(path: Path, told: Told, weights: Weights) -> Stored:
    if (path / "recipe.json").exists() or (path / "checkpoints").is_dir():
        newest = native.in_run(path, weights)
        try:
            return _read(newest, told, weights)
        except CheckpointError:
            if native.in_run(path, weights) == newest:
                raise
            return _read_folder(path, told, weights)  # the run is training, and has just replaced its checkpoint
    if (path / "model.safetensors").exists() or (path / "ema.safetensors").exists():
        return _read(native.in_checkpoint(path, weights), told, weights)
    if (path / "model_index.json").exists() or (path / "config.json").exists():
        return diffusers.stored(path, told)
    raise CheckpointError(f"{path} holds no weights: give {READS}")


def _empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def _net(denoiser: NetDenoiser) -> DiT:
    net = denoiser.net
    if not isinstance(net, DiT):
        raise HemstitchError(
            f"hemstitch writes its own networks; {type(net).__name__} is not one: save it where it is from"
        )
    return net


__all__ = ["convert", "load", "save", "save_net", "spec_of"]
