"""Pictures of samples and curves, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import HemstitchError, MissingExtraError

if TYPE_CHECKING:
    from .curve import Point


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


def curve_png(points: Sequence[Point], title: str) -> bytes:
    """Distance against milliseconds per image: stitched plans, and the large model alone at fewer steps."""
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(figsize=(8, 4.8), dpi=150, layout="constrained")
    stitched = sorted((p for p in points if p.fraction is not None), key=lambda p: p.fraction or 0)
    full = [p for p in stitched if p.fraction == 0]
    alone = sorted([p for p in points if p.fraction is None] + full, key=lambda p: -p.steps)
    lines: list[tuple[list[Point], str, dict[str, Any], Any]] = [
        (
            alone,
            "large model alone, fewer steps",
            {
                "color": "#b3541e",
                "marker": "s",
                "linestyle": "--",
                "markersize": 6,
                "markerfacecolor": "white",
            },
            lambda p: f"{p.steps} steps",
        ),
        (
            stitched,
            "stitched: share of steps by the small model",
            {"color": "#1f4e8c", "marker": "o", "linestyle": "-", "markersize": 6},
            lambda p: f"{p.fraction:g}",
        ),
    ]
    for chosen, label, style, text in lines:
        axes.plot(
            [p.ms_per_image for p in chosen],
            [p.distance for p in chosen],
            label=label,
            linewidth=1.8,
            **style,
        )
        above = style["marker"] == "o"
        for p in chosen:
            if p.fraction == 0 and not above:
                continue
            axes.annotate(
                text(p),
                (p.ms_per_image, p.distance),
                xytext=(5, 6) if above else (0, -15),
                textcoords="offset points",
                ha="left" if above else "center",
                fontsize=8,
                color=style["color"],
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.14)
    axes.set_xlim(left=0)
    axes.set_xlabel("time per image, milliseconds (measured)")
    axes.set_ylabel("Fréchet distance (lower is better, log scale)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    plt.close(figure)
    return out.getvalue()
