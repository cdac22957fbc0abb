"""Pictures of a search: quality against latency, and plans as strips of coloured steps."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ...errors import HemstitchError, MissingExtraError
from ..plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["found", "fraction", "fewer steps", "other", "largest", "cheapest"]

_BLUE, _BROWN, _GREEN, _GREY, _INK = "#1f4e8c", "#b3541e", "#0b6e4f", "#7a7a7a", "#222222"
_LOG_ABOVE = 4.0  # the range of distances, largest over smallest, beyond which their axis is logarithmic


class _Look(NamedTuple):
    """How dots of a kind are drawn, and whether a line joins them and each bears its label."""

    legend: str
    marker: str
    size: float
    color: str
    filled: bool
    line: str
    labelled: bool


_LOOKS: dict[str, _Look] = {
    "other": _Look("other plans", "x", 5, _GREY, True, "none", False),
    "fewer steps": _Look("the largest member alone, fewer steps", "s", 5.5, _BROWN, False, "--", True),
    "fraction": _Look("one seam: share of steps by the small member", "o", 5.5, _BLUE, True, "-", True),
    "found": _Look("found by the search", "*", 13, _GREEN, True, "none", True),
    "cheapest": _Look("the cheapest member alone", "v", 7, _INK, False, "none", False),
    "largest": _Look("the largest member alone", "^", 7, _INK, False, "none", False),
}


@dataclass(frozen=True)
class Dot:
    """A measured plan.

    kind: what it is there for, which decides its look. label: what to write beside it. share: of the latency of the
    largest member alone at all steps. distance: the measured quality, lower is better. half_width: half of its 95 %
    interval, 0 where there is none.
    """

    kind: Kind
    label: str
    share: float
    distance: float
    half_width: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _LOOKS:
            raise HemstitchError(f"a dot's kind is one of {', '.join(_LOOKS)}, not {self.kind!r}")
        if not all(map(math.isfinite, (self.share, self.distance, self.half_width))):
            raise HemstitchError(f"a dot has finite numbers: {self}")
        if self.share < 0 or self.half_width < 0:
            raise HemstitchError(f"a dot's share and half_width are at least 0: {self}")


def frontier_png(
    points: Sequence[Dot],
    frontier: Sequence[tuple[float, float]],
    budget: float | Sequence[float],
    title: str,
    unit: str,
) -> bytes:
    """Quality against latency as PNG; see `frontier_figure`."""
    return _png(frontier_figure(points, frontier, budget, title, unit))


def frontier_figure(
    points: Sequence[Dot],
    frontier: Sequence[tuple[float, float]],
    budget: float | Sequence[float],
    title: str,
    unit: str,
) -> Figure:
    """Measured plans over their share of the largest member's latency, the predicted frontier, and the budgets.

    frontier: predicted (share, distance), drawn as a staircase: up to the next share the last distance is the best
    that a budget buys. budget: shares, one or several. unit: what the distances are, for the axis, which is logarithmic
    where all are above 0 and the largest is over four times the smallest. Raises HemstitchError without points.
    """
    if not points:
        raise HemstitchError("a frontier is drawn of at least one measured point")
    budgets = [budget] if isinstance(budget, int | float) else list(budget)
    distances = [d for _, d in frontier] + [p.distance for p in points]
    if not all(map(math.isfinite, [*distances, *(s for s, _ in frontier), *budgets])):
        raise HemstitchError("a frontier's shares and distances, and the budgets, are finite numbers")
    figure = _figure(8, 4.8)
    axes = figure.subplots()
    logarithmic = min(distances) > 0 and max(distances) > _LOG_ABOVE * min(distances)
    _dress(axes, logarithmic)
    if frontier:
        stairs = sorted(frontier)
        end = max(stairs[-1][0], *(p.share for p in points))
        corners = [(s, d) for pair in _stairs(stairs, end) for s, d in pair]
        axes.plot(*zip(*corners, strict=True), color=_INK, linewidth=0.8, label="predicted frontier", zorder=1.5)
    for kind in _LOOKS:
        _dots(axes, [p for p in points if p.kind == kind], logarithmic)
    fewer, whole = ([p for p in points if p.kind == kind] for kind in ("fewer steps", "largest"))
    if fewer and whole:
        ends = max(fewer, key=lambda p: p.share), whole[0]
        axes.plot([p.share for p in ends], [p.distance for p in ends], color=_BROWN, linestyle="--", linewidth=1.4)
    axes.set_ylabel(f"{unit} (lower is better{', log scale' if logarithmic else ''})")
    axes.set_xlabel("latency, as a share of the largest member's alone (measured)")
    axes.set_title(title, fontsize=10, loc="left")
    for at in budgets:
        _budget(axes, at)
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes stay where they are, whatever is written into them
    _label(figure, axes, [p for p in sorted(points, key=_importance) if _LOOKS[p.kind].labelled and p.label], points)
    return figure


def _stairs(steps: Sequence[tuple[float, float]], end: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Each level from its own share to the next one's, the last to the end."""
    rights = [s for s, _ in steps[1:]] + [end]
    return [((s, d), (right, d)) for (s, d), right in zip(steps, rights, strict=True)]


def _importance(p: Dot) -> tuple[bool, float]:
    return p.kind != "found", p.share


def _dots(axes: Any, points: Sequence[Dot], logarithmic: bool) -> None:
    if not points:
        return
    look = _LOOKS[points[0].kind]
    mine = sorted(points, key=lambda p: p.share)
    axes.errorbar(
        [p.share for p in mine],
        [p.distance for p in mine],
        # a log axis has no place for a bar that reaches zero
        yerr=[
            [min(p.half_width, 0.9 * p.distance) if logarithmic else p.half_width for p in mine],
            [p.half_width for p in mine],
        ],
        label=look.legend,
        color=look.color,
        marker=look.marker,
        markersize=look.size,
        markerfacecolor=look.color if look.filled else "white",
        linestyle=look.line,
        linewidth=1.4,
        elinewidth=0.8,
        capsize=2,
        zorder=3 if look.labelled else 2.5,
    )


def _budget(axes: Any, at: float) -> None:
    axes.axvline(at, color=_INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"budget {at:g}",
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-2, -3),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=7.5,
        color=_INK,
    )


def _dress(axes: Any, logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.12)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _places() -> list[dict[str, Any]]:
    """Where a label may stand: above right first, then round the dot, then further off."""
    return [
        {
            "xytext": (far * right, far * up),
            "ha": "left" if right > 0 else "right" if right < 0 else "center",
            "va": "bottom" if up > 0 else "top" if up < 0 else "center",
        }
        for far in (1.0, 2.0, 3.2, 4.5)
        for right, up in ((5, 5), (-5, -5), (5, -5), (-5, 5), (0, 8), (0, -8), (8, 0), (-8, 0))
    ]


def _label(figure: Figure, axes: Any, labelled: Sequence[Dot], points: Sequence[Dot]) -> None:
    """Write labels where they overlap no other label, no dot and no budget's name, near and across few lines.

    One line more is worth 8 points of distance. A label that there is no room for is left out.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    inside = axes.get_window_extent()
    taken = [text.get_window_extent() for text in axes.texts]
    strokes = _strokes(axes)
    for p in points:
        x, y = axes.transData.transform((p.share, p.distance))
        half = (_LOOKS[p.kind].size / 2 + 1) * figure.dpi / 72
        taken.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    for p in labelled:
        found: list[tuple[float, int, Any]] = []
        for order, place in enumerate(_places()):
            text = axes.annotate(
                p.label,
                (p.share, p.distance),
                textcoords="offset points",
                fontsize=8,
                color=_LOOKS[p.kind].color,
                fontweight="bold" if p.kind == "found" else "normal",
                path_effects=[withStroke(linewidth=2.2, foreground="white")],
                zorder=4,
                **place,
            )
            box = text.get_window_extent()
            within = box.x0 >= inside.x0 and box.x1 <= figure.bbox.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if within and not box.count_overlaps(taken):
                crossed = sum(path.intersects_bbox(box, filled=False) for path in strokes)
                found.append((crossed + math.hypot(*place["xytext"]) / 8, order, text))
            else:
                text.remove()
        found.sort(key=lambda one: one[:2])
        for _, _, text in found[1:]:
            text.remove()
        taken += [text.get_window_extent() for _, _, text in found[:1]]


def _strokes(axes: Any) -> list[Any]:
    """The paths of all lines and error bars, in pixels."""
    lines = [(line.get_transform(), line.get_path()) for line in axes.lines if line.get_linestyle() != "None"]
    bars = [(bars.get_transform(), path) for bars in axes.collections for path in bars.get_paths()]
    return [transform.transform_path(path) for transform, path in lines + bars]


def plans_png(plans: Sequence[tuple[str, Plan]], members: Sequence[str]) -> bytes:
    """Plans as strips, as PNG; see `plans_figure`."""
    return _png(plans_figure(plans, members))


def plans_figure(plans: Sequence[tuple[str, Plan]], members: Sequence[str]) -> Figure:
    """Each plan as a strip of its steps, noisiest left, the first plan on top; one colour per member, darker is dearer.

    plans: what to call each, and itself. members: all of them, cheapest first. Strips of different numbers of steps
    have one length, and the number is written after each. Raises HemstitchError without plans, or for a member that a
    plan names and `members` does not.
    """
    if not plans:
        raise HemstitchError("there is no plan to draw: give at least one")
    unknown = sorted({name for _, plan in plans for name in plan.counts} - set(members))
    if unknown:
        raise HemstitchError(f"plans name {', '.join(unknown)}; members, cheapest first, are {', '.join(members)}")
    figure = _figure(8, 1.25 + 0.3 * len(plans))
    axes = figure.subplots()
    colors = _colors(members)
    alike = len({plan.steps for _, plan in plans}) == 1
    for row, (_, plan) in enumerate(plans):
        _strip(axes, row, plan, colors, 1 if alike else 1 / plan.steps)
        if not alike:
            axes.annotate(
                f"{plan.steps} step{'s' * (plan.steps > 1)}",
                (1, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set_ylim(len(plans) - 0.4, -0.6)
    axes.set_yticks(range(len(plans)), [name for name, _ in plans])
    axes.set_xlim(0, plans[0][1].steps if alike else 1)
    axes.set_xlabel("solver steps done (noise on the left)" if alike else "share of the steps done (noise on the left)")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colors[name], edgecolor=_INK, linewidth=0.4, label=name) for name in members]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(members), 6), frameon=False, fontsize=9)
    return figure


def _strip(axes: Any, row: int, plan: Plan, colors: Mapping[str, str], width: float) -> None:
    """One bar per run of a member, and hair lines between steps where there is room for them."""
    start = 0
    for name, group in groupby(plan.assignment):
        length = len(list(group))
        axes.barh(row, length * width, left=start * width, height=0.72, color=colors[name], linewidth=0)
        start += length
    if plan.steps <= 100:
        axes.vlines([i * width for i in range(1, plan.steps)], row - 0.36, row + 0.36, color="white", linewidth=0.4)


def _colors(members: Sequence[str]) -> dict[str, str]:
    """From light to dark in order, which grey keeps, and of hues that the colour-blind tell apart."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    n = len(members)
    return {name: to_hex(colormaps["viridis"](0.9 - 0.75 * i / max(1, n - 1))) for i, name in enumerate(members)}


def _figure(width: float, height: float) -> Figure:
    """Inches, at 150 dots each."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
