"""Pictures of samples, as PNG bytes."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from ..errors import HemstitchError, MissingExtraError


def to_uint8(images: Tensor) -> Tensor:
    """Images in -1..1 to 0..255, rounded and clipped."""
    return (images.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def png(image_CHW: Tensor, scale: int = 1) -> bytes:
    """One grey or RGB image in -1..1, each pixel a square of `scale`, as PNG."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "report") from None
    if image_CHW.shape[0] not in (1, 3):
        raise HemstitchError(f"a picture has 1 or 3 channels; these samples have {image_CHW.shape[0]} (latents?)")
    pixels = to_uint8(image_CHW).repeat_interleave(scale, 1).repeat_interleave(scale, 2).cpu()
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def grid(images: Tensor, columns: int, gap: int = 1, fill: float = -1.0) -> Tensor:
    """(N, C, S, S) to one (C, H, W) image, row by row, `gap` pixels of `fill` between."""
    N, C, H, W = images.shape
    rows = -(-N // columns)
    sheet = torch.full((C, rows * (H + gap) - gap, columns * (W + gap) - gap), fill)
    for i, image in enumerate(images):
        top, left = (i // columns) * (H + gap), (i % columns) * (W + gap)
        sheet[:, top : top + H, left : left + W] = image.cpu()
    return sheet
