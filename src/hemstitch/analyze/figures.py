"""The figures of an analysis, as PNG.

Shape suffixes: T train timesteps, N blocks, M experts, K steps, R rings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import MissingExtraError
from ..stitch.plan import Plan
from .agreement import Band
from .experts import ExpertUse
from .frequency import BANDS, Spectra
from .study import PLANNED, Study

LINES = (("#1f4e8c", "-"), ("#b3541e", "--"), ("#3a7d44", "-."), ("#7a4fa3", ":"), ("#555555", (0, (1, 1, 4, 1))))
_STEP = "step (0 is noise)"
_TIMESTEP = "timestep (0 is clean)"


def check_there() -> None:
    """Raise a MissingExtraError, before anything is computed, if figures cannot be drawn."""
    _figure(1, 1)


def selection_png(use: ExpertUse, title: str) -> bytes:
    """The experts that each timestep selects, above the prior's window in their order."""
    _, N, M = use.selected.shape
    figure = _figure(7.6, 2 * min(5.0, max(1.6, 0.11 * N * M + 0.4)) + 1)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, map_TNM, name in zip(
        panels, (use.selected, use.prior), (f"selected (top {use.top_k} of {M})", "matched prior"), strict=True
    ):
        axes.imshow(map_TNM.flatten(1).T.numpy(), aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        for block in range(1, N):
            axes.axhline(block * M - 0.5, color="#c44", linewidth=0.8)
        every = max(1, -(-N // 14))
        axes.set_yticks([n * M + (M - 1) / 2 for n in range(0, N, every)], [str(n) for n in range(0, N, every)])
        axes.set_ylabel(f"block, its {M} experts")
        axes.set_title(name, fontsize=9, loc="left")
    panels[1].set_xlabel(_TIMESTEP)
    return _png(figure, title)


def prior_loss_png(use: ExpertUse, title: str) -> bytes:
    figure = _figure(7.6, 2.8)
    axes = figure.subplots()
    axes.plot(use.prior_loss.numpy(), color=LINES[0][0], linewidth=1.6)
    axes.set_xlabel(_TIMESTEP)
    axes.set_ylabel("Jensen-Shannon\ndivergence, nats")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    _dress(axes)
    return _png(figure, title)


def usage_png(use: ExpertUse, title: str) -> bytes:
    """The share of timesteps at which each expert is selected, as numbers."""
    N, M = use.usage.shape
    figure = _figure(min(11, max(5, 0.5 * N + 2)), 0.36 * M + 1.3)
    axes = figure.subplots()
    axes.imshow(use.usage.T.numpy(), cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for n in range(N):
        for m in range(M):
            share = float(use.usage[n, m])
            said = "never" if share == 0 else f"{100 * share:.0f}" if share >= 0.005 else "<1"
            color = "#b00020" if share == 0 else "white" if share > 0.75 else "#1c2430"
            axes.text(n, m, said, ha="center", va="center", fontsize=8 if N <= 14 else 6.5, color=color)
    axes.set_xticks(range(N))
    axes.set_yticks(range(M))
    axes.set_xlabel("block")
    axes.set_ylabel("expert")
    return _png(figure, title)


def affinity_png(use: ExpertUse, title: str) -> bytes:
    """Which timesteps use the same experts: by selection, and by the gates' probabilities."""
    figure = _figure(8.6, 4.1)
    last = float(use.times[-1])
    half = last / max(1, len(use.times) - 1) / 2
    for axes, values, name in zip(
        figure.subplots(1, 2, sharey=True),
        (use.affinity, use.likeness),
        ("share of selected experts in common", "cosine similarity of gate probabilities"),
        strict=True,
    ):
        ends = (-half, last + half)
        picture = axes.imshow(
            values.numpy(), origin="lower", extent=(*ends, *ends), cmap="viridis", vmin=float(values.min()), vmax=1
        )
        figure.colorbar(picture, ax=axes, shrink=0.75)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel(_TIMESTEP)
        if name.startswith("share"):
            axes.set_ylabel(_TIMESTEP)
    return _png(figure, title)


def latents_png(study: Study) -> bytes:
    """T-Stitch's figure 2: x_t of each model sampled alone against the reference's, from the same noise."""
    figure = _figure(7.6, 3.8)
    axes = figure.subplots()
    _bands(axes, study.latents)
    _seams(axes, study)
    axes.set_xlabel(_STEP)
    axes.set_ylabel("cosine similarity of $x_t$")
    axes.margins(x=0.01)
    _dress(axes)
    axes.legend(frameon=False, fontsize=9)
    return _png(figure, f"Latents on their own trajectories, against {study.reference}'s")


def predictions_png(study: Study) -> bytes:
    """What the members say about the same x_t, on the reference's trajectory."""
    figure = _figure(9, 5.6)
    panels = figure.subplots(2, 2, sharex=True)
    for column, (symbol, of) in zip(panels.T, (("$x_0$", study.x0), ("$\\epsilon$", study.eps)), strict=True):
        _bands(column[0], {name: like.cosine for name, like in of.items()})
        _bands(column[1], {name: like.distance for name, like in of.items()})
        column[0].set_title(f"predicted {symbol}", fontsize=9, loc="left")
        column[1].set_xlabel(_STEP)
        column[1].set_ylim(bottom=0)
        for axes in column:
            axes.margins(x=0.01)
            _dress(axes)
    panels[0, 0].set_ylabel("cosine similarity")
    panels[1, 0].set_ylabel("relative L2 distance")
    panels[0, 0].legend(frameon=False, fontsize=9)
    return _png(figure, f"Predictions at the same $x_t$, on {study.reference}'s trajectory, against its own")


def spectrum_png(spectra: Spectra, title: str) -> bytes:
    """Power by radial frequency, of x_t and of the foreseen image, at some of the steps."""
    from matplotlib import colormaps

    figure = _figure(9, 3.9)
    K = len(spectra.x0)
    shown = sorted({i * K // 5 for i in range(5)})
    left, right = figure.subplots(1, 2, sharey=True)
    radius = np.arange(spectra.x.shape[1])
    for axes, power, name in ((left, spectra.x, "$x_t$"), (right, spectra.x0, "$x_0$ as foreseen")):
        for i, k in enumerate(shown):
            color = colormaps["viridis"](0.92 * i / max(1, len(shown) - 1))
            axes.plot(
                radius,
                power[k].numpy(),
                color=color,
                linewidth=1.5,
                marker="o",
                markersize=2.5 if len(radius) <= 48 else 0,
                label=f"{k}",
            )
        axes.plot(radius, spectra.x[-1].numpy(), color="black", linewidth=1.5, linestyle="--", label="finished")
        axes.axvline(spectra.size // 2, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_yscale("log")
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel("frequency, cycles per image (dotted: Nyquist)")
        _dress(axes)
    left.set_ylabel("mean power (white noise: 1)")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(
        handles, labels, title="step", fontsize=8, title_fontsize=8, frameon=False, loc="outside right center"
    )
    return _png(figure, title)


def settling_png(study: Study) -> bytes:
    """What each band of the foreseen image has and lacks of the finished image's power, a column a model."""
    count = len(study.spectra)
    figure = _figure(min(11, 3.4 * count + 1.2), 5.8)
    panels = figure.subplots(2, count, sharex=True, sharey="row", squeeze=False)
    for column, (name, spectra) in zip(panels.T, study.spectra.items(), strict=True):
        for axes, curves in zip(column, (spectra.power, spectra.unsettled), strict=True):
            for (color, style), band in zip(LINES, BANDS, strict=False):
                if band in curves:
                    axes.plot(curves[band].numpy(), color=color, linestyle=style, linewidth=1.6, label=band)
            _dress(axes)
            axes.margins(x=0.01)
        column[0].set_title(name, fontsize=9, loc="left")
        column[0].axhline(1, color="#999999", linewidth=0.8, linestyle=":")
        column[1].set_xlabel(_STEP)
        if name == PLANNED:
            for axes in column:
                _seams(axes, study)
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylabel("power of the foreseen image\n(1: the finished image's)")
    panels[1, 0].set_ylabel("power that it still lacks\n(0: settled)")
    panels[1, 0].set_ylim(-0.03, 1.5)
    panels[1, 0].legend(title="frequencies", frameon=False, fontsize=9, title_fontsize=9, loc="upper right")
    return _png(figure, "Which frequencies of the image are settled when")


def _bands(axes: Any, bands: Mapping[str, Band]) -> None:
    for i, (name, band) in enumerate(bands.items()):
        color, style = LINES[i % len(LINES)]
        steps = np.arange(len(band.mean))
        axes.fill_between(steps, band.low.numpy(), band.high.numpy(), color=color, alpha=0.18, linewidth=0)
        axes.plot(steps, band.mean.numpy(), color=color, linestyle=style, linewidth=1.7, label=name)


def _seams(axes: Any, study: Study) -> None:
    """A thin line where a fixed plan changes its member, if it does so a few times only."""
    if not isinstance(study.plan, Plan):
        return
    seams = [i + 1 for i, (a, b) in enumerate(pairwise(study.plan.assignment)) if a != b]
    for seam in seams if len(seams) <= 8 else []:
        axes.axvline(seam, color="#555555", linewidth=1, linestyle=":")


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _dress(axes: Any) -> None:
    axes.grid(True, which="major", color="#e2e2e2", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Any, title: str) -> bytes:
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
