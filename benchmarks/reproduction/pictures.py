"""Pictures of the document, from results alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, BROWN, GREEN, GREY, INK = "#1f4e8c", "#b3541e", "#0b6e4f", "#7a7a7a", "#222222"
FAMILY = {
    "dit": ("DiT", GREY, "s", "--"),
    "dtr": ("DTR", BROWN, "^", "-."),
    "switch_dit": ("Switch-DiT", BLUE, "o", "-"),
}


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    plt.close(figure)
    return out.getvalue()


def _dress(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def families(summary: Mapping[str, Any], what: str) -> bytes:
    """Distance along training, by iterations and by time, every seed a thin line; beside it precision and recall."""
    cost = summary["seconds_a_step_to_dit"]
    figure, (by_step, by_time, near) = plt.subplots(1, 3, figsize=(11, 4), dpi=150, layout="constrained")
    for family, (name, color, marker, line) in FAMILY.items():
        over = summary["over_seeds"]["distance"][family]
        marks = sorted(over, key=int)
        x = [int(mark) for mark in marks]
        means = [over[mark]["mean"] for mark in marks]
        look = {"color": color, "marker": marker, "linestyle": line, "markersize": 5, "linewidth": 1.5}
        by_step.plot(x, means, label=name, **look)
        by_time.plot([step * cost[family] for step in x], means, label=name, **look)
        for seed in range(len(over[marks[0]]["values"])):
            by_step.plot(x, [over[mark]["values"][seed] for mark in marks], color=color, linewidth=0.5, alpha=0.6)
        pr = [(summary["over_seeds"][f][family][marks[-1]]) for f in ("recall", "precision")]
        near.errorbar(
            pr[0]["mean"],
            pr[1]["mean"],
            xerr=pr[0]["half_width"],
            yerr=pr[1]["half_width"],
            fmt=marker,
            color=color,
            markersize=6,
            label=name,
            capsize=2,
        )
    y = "Fréchet distance (lower is better)"
    for axes in (by_step, by_time):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    _dress(by_step, f"{what}: at equal iterations", "iterations", y)
    _dress(by_time, "at equal time", "time, in iterations of the DiT", y)
    _dress(near, "at the end, 95 % over seeds", "recall", "precision")
    by_step.legend(frameon=False, fontsize=8)
    return _png(figure)


def fraction_curve(
    shares: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    fewer: Sequence[tuple[float, Mapping[str, Any], str]],
    title: str,
    more: Sequence[tuple[float, Mapping[str, Any], str]] = (),
) -> bytes:
    """Distance against the time of the large member alone: fractions, the large member in fewer steps, other plans."""
    figure, axes = plt.subplots(figsize=(8, 4.6), dpi=150, layout="constrained")

    def line(points: Sequence[tuple[float, Mapping[str, Any], str]], label: str, **look: Any) -> None:
        points = sorted(points, key=lambda p: p[0])
        axes.errorbar(
            [p[0] for p in points],
            [p[1]["distance"]["value"] for p in points],
            yerr=[1.96 * p[1]["distance"]["error"] for p in points],
            label=label,
            capsize=2,
            linewidth=1.4,
            **look,
        )
        for share, row, text in points:
            axes.annotate(
                text,
                (share, row["distance"]["value"]),
                textcoords="offset points",
                xytext=(4, 6),
                fontsize=7,
                color=look["color"],
            )

    line(list(zip(shares, rows, labels, strict=True)), "small on the first share of the steps", color=BLUE, marker="o")
    if fewer:
        line(
            fewer,
            "the large member alone, fewer steps",
            color=BROWN,
            marker="s",
            linestyle="--",
            markerfacecolor="white",
        )
    if more:
        line(more, "other plans", color=GREEN, marker="*", linestyle="none", markersize=9)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    _dress(axes, title, "time, of the large member alone at all steps", "Fréchet distance (lower is better)")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _stitched(summary: Mapping[str, Any]) -> bytes:
    speed = summary["time"]["speed"]
    rows = summary["fractions"]["plans"]
    fewer = [
        (1 / speed[name.rpartition(" ")[2]]["times"], row, name.partition(",")[0])
        for name, row in summary["fewer steps"]["plans"].items()
    ]
    shares = [1 / speed[r]["times"] for r in rows]
    title = "Fashion-MNIST: a small DiT first, 50 DDIM steps, guidance 1.5"
    return fraction_curve(shares, list(rows.values()), list(rows), fewer, title)


PICTURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], bytes]]] = {
    "reproduction_families.png": ("switch", lambda summary: families(summary, "Fashion-MNIST")),
    "reproduction_fractions.png": ("stitching", _stitched),
}
