"""Samples into a folder: sample i depends on (seed, i) and its label, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from .data.dataset import restored
from .denoiser import Denoiser
from .errors import HemstitchError
from .evaluate import pictures
from .files import save_tensors, write_atomic, write_bytes
from .sampling import Look, generate


def write_samples(
    model: Denoiser,
    out: Path,
    *,
    count: int,
    labels: list[int] | None,
    seed: int,
    batch: int,
    decode: Callable[[Tensor], Tensor] | None = None,
    **look: Unpack[Look],
) -> Iterator[int]:
    """Write 000000.png … (latents: 000000.safetensors …) and grid.png, yielding how many are done.

    labels repeat as needed. decode: of the samples, (B, C, S, S), into images. Without it pixel models have 1 or 3
    channels; anything else is kept as latents, normalised as the model has them, a tensor "x0" each.
    """
    if out.is_dir() and any(p.stem.isdigit() for p in out.iterdir()):
        raise HemstitchError(f"{out} holds samples already: choose another --out, or remove them")
    is_picture = decode is not None or model.spec.channels in (1, 3)
    shown: list[Tensor] = []
    for start in range(0, count, batch):
        index = range(start, min(count, start + batch))
        chosen = [labels[i % len(labels)] for i in index] if labels else None
        images = generate(model, chosen, seeds=[(seed, i) for i in index], **look)
        if decode is not None:
            images = decode(images)
        elif is_picture:
            images = restored(images, model.spec.mean, model.spec.std)
        images = images.cpu()
        try:
            for i, image in zip(index, images, strict=True):
                if is_picture:
                    write_bytes(out / f"{i:06d}.png", pictures.png(image))
                else:
                    tensors = {"x0": image.contiguous()}
                    write_atomic(out / f"{i:06d}.safetensors", partial(save_tensors, tensors=tensors))
        except OSError as error:
            raise HemstitchError(f"cannot write samples to {out} ({error})") from error
        shown += list(images[: 100 - len(shown)]) if is_picture else []
        yield index.stop
    if shown:
        columns = len(labels) if labels and len(labels) <= 20 else 10
        sheet = pictures.png(
            pictures.grid(torch.stack(shown), min(columns, len(shown))), scale=max(1, 64 // shown[0].shape[-1])
        )
        write_bytes(out / "grid.png", sheet)
