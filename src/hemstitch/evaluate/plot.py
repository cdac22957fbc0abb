"""Curves as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from ..errors import MissingExtraError
from .curve import Point

_BLUE, _BROWN = "#1f4e8c", "#b3541e"


def curve_png(points: Sequence[Point], title: str, large: str = "large model") -> bytes:
    """Distance against milliseconds per image: stitched plans, and the large model alone at fewer steps, as PNG.

    Bars are 1.96 standard errors. Several guidances are several panels.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    guidances = sorted({p.guidance for p in points})
    n = len(guidances)
    size = (8 if n == 1 else 4.4 * n, 4.8)
    figure, panels = plt.subplots(1, n, figsize=size, dpi=150, layout="constrained", sharey=True, squeeze=False)
    for axes, guidance in zip(panels[0], guidances, strict=True):
        of_this = [p for p in points if p.guidance == guidance]
        _alone(axes, of_this, f"{large} alone, fewer steps")
        _stitched(axes, of_this, "stitched: share of steps by the small model")
        _dress(axes)
        if n > 1:
            axes.set_title(f"guidance {guidance:g}", fontsize=10, loc="left")
    panels[0][0].set_ylabel("Fréchet distance (lower is better, log scale)")
    if n == 1:
        panels[0][0].set_title(title, fontsize=10, loc="left")
        panels[0][0].legend(frameon=False, fontsize=9)
    else:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    plt.close(figure)
    return out.getvalue()


def _alone(axes: Any, points: Sequence[Point], label: str) -> None:
    full = [p for p in points if p.fraction == 0]
    mine = sorted([p for p in points if p.fraction is None and "alone" in p.plan] + full, key=lambda p: -p.steps)
    _line(axes, mine, label, color=_BROWN, marker="s", linestyle="--", markersize=6, markerfacecolor="white")
    for p in mine:
        if p.fraction != 0:
            _note(axes, p, f"{p.steps} steps", _BROWN, (0, -15), "center")


def _stitched(axes: Any, points: Sequence[Point], label: str) -> None:
    mine = sorted((p for p in points if p.fraction is not None), key=lambda p: p.fraction or 0)
    _line(axes, mine, label, color=_BLUE, marker="o", linestyle="-", markersize=6)
    for p in mine:
        _note(axes, p, f"{p.fraction:g}", _BLUE, (5, 6), "left")
    others = [p for p in points if p.fraction is None and "alone" not in p.plan]
    if others:
        _line(axes, others, "other plans", color=_BLUE, marker="D", linestyle="none", markersize=6)
        for p in others:
            _note(axes, p, p.plan, _BLUE, (5, 6), "left")


def _line(axes: Any, points: Sequence[Point], label: str, **style: Any) -> None:
    axes.errorbar(
        [p.ms_per_image for p in points],
        [p.distance for p in points],
        # a log axis has no place for a bar that reaches zero
        yerr=[
            [min(1.96 * p.distance_error, 0.9 * p.distance) for p in points],
            [1.96 * p.distance_error for p in points],
        ],
        label=label,
        linewidth=1.8,
        elinewidth=0.8,
        capsize=2,
        **style,
    )


def _note(axes: Any, p: Point, text: str, color: str, offset: tuple[int, int], align: str) -> None:
    where = (p.ms_per_image, p.distance)
    axes.annotate(text, where, xytext=offset, textcoords="offset points", ha=align, fontsize=8, color=color)


def _dress(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.14)
    axes.set_xlim(left=0)
    axes.set_xlabel("time per image, milliseconds (measured)")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
