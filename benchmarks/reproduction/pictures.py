"""Pictures of the document, from results alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hemstitch.evaluate.score import NORMAL_95

from .tables import FAMILY, GROUPED_95, named

BLUE, BROWN, GREEN, GREY = "#1f4e8c", "#b3541e", "#0b6e4f", "#7a7a7a"
LOOK = {"dit": (GREY, "s", "--"), "dtr": (BROWN, "^", "-."), "switch_dit": (BLUE, "o", "-")}
PARTS = {"low": (BLUE, "-"), "middle": (GREEN, "-."), "high": (BROWN, "--")}
DISTANCE = "Fréchet distance (lower is better)"
FIGURES = {"accuracy": "class accuracy", "precision": "precision", "recall": "recall"}
Summary = Mapping[str, Any]


class Point(NamedTuple):
    """x: time, as a share. row: a result with a distance."""

    x: float
    row: Summary
    label: str


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    plt.close(figure)
    return out.getvalue()


def _dress(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _logarithmic(axes: Any) -> None:
    """A log axis with numbers at 1, 2 and 5 of each decade, or at all where that leaves too few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def families(summary: Summary, what: str) -> bytes:
    """Along training, means over seeds with 95 % intervals: distance, by iterations (every seed a thin line) and by
    time; its ratio to the DiT's, pairs by seed; other figures."""
    cost = summary["seconds_a_step_to_dit"]
    figure, grid = plt.subplots(2, 3, figsize=(10.8, 6.6), dpi=150, layout="constrained")
    axes = dict(zip(("step", "time", "ratio", *FIGURES), grid.flat, strict=True))
    for family, name in FAMILY.items():
        color, marker, line = LOOK[family]
        look = {"color": color, "marker": marker, "linestyle": line, "markersize": 4, "linewidth": 1.3, "capsize": 2}

        def drawn(on: Any, of: Summary, scale: float = 1.0, name: str = name, look: Any = look) -> None:
            marks = sorted(of, key=int)
            means, halves = ([of[mark][key] for mark in marks] for key in ("mean", "half_width"))
            on.errorbar([int(mark) * scale for mark in marks], means, yerr=halves, label=name, **look)

        over = summary["over_seeds"]["distance"][family]
        drawn(axes["step"], over)
        drawn(axes["time"], over, cost[family])
        if pair := summary["at_equal_iterations"].get(f"{family} to dit"):
            drawn(axes["ratio"], {mark: row["ratio"] for mark, row in pair.items()}, name=named(f"{family} to dit"))
        marks = sorted(over, key=int)
        for seed in range(len(over[marks[0]]["values"])):
            values = [over[mark]["values"][seed] for mark in marks]
            axes["step"].plot([int(mark) for mark in marks], values, color=color, linewidth=0.5, alpha=0.6)
        for key in FIGURES:
            drawn(axes[key], summary["over_seeds"][key][family])
    for key in ("step", "time"):
        _logarithmic(axes[key])
    axes["ratio"].axhline(1, color=GREY, linewidth=0.8)
    _dress(axes["step"], f"{what}: distance (thin: each seed)", "iterations", DISTANCE)
    _dress(axes["time"], "distance at equal time", "time, in iterations of the DiT", DISTANCE)
    _dress(axes["ratio"], "distance, to the DiT's", "iterations", "ratio, by seed (below 1: better)")
    for key, label in FIGURES.items():
        _dress(axes[key], label, "iterations", f"{label} (higher is better)")
    for key in ("step", "ratio"):
        axes[key].legend(frameon=False, fontsize=9)
    return _png(figure)


def fraction_curve(small_first: Sequence[Point], fewer: Sequence[Point], more: Sequence[Point], title: str) -> bytes:
    """Distance against the time of the large member alone: fractions, the large member in fewer steps, other plans."""
    figure, axes = plt.subplots(figsize=(8, 4.6), dpi=150, layout="constrained")

    def line(points: Sequence[Point], label: str, at: tuple[int, int], **look: Any) -> None:
        points = sorted(points, key=lambda point: point.x)
        values = [point.row["distance"]["value"] for point in points]
        errors = [NORMAL_95 * point.row["distance"]["error"] for point in points]
        axes.errorbar([p.x for p in points], values, errors, label=label, capsize=2, linewidth=1.4, **look)
        for point, value in zip(points, values, strict=True):
            place = {"textcoords": "offset points", "xytext": at, "ha": "left" if at[0] > 0 else "right"}
            axes.annotate(point.label, (point.x, value), fontsize=8, color=look["color"], **place)

    line(small_first, "small member first, on the labelled share", (4, 6), color=BLUE, marker="o")
    if fewer:
        dashed = {"color": BROWN, "marker": "s", "linestyle": "--", "markerfacecolor": "white"}
        line(fewer, "large member alone, fewer steps", (-4, -12), **dashed)
    if more:
        star = {"marker": "*", "linestyle": "none", "markersize": 11, "markerfacecolor": "none"}
        line(more, "found by search", (5, -13), color=GREEN, **star)
    values = [point.row["distance"]["value"] for point in (*small_first, *fewer, *more)]
    if max(values) > 4 * min(values):
        _logarithmic(axes)
    else:
        axes.set_ylim(bottom=0)
    _dress(
        axes,
        title,
        "time, as a share of the large member's alone at all steps (bars: 95 %, of each plan by itself)",
        DISTANCE,
    )
    figure.legend(frameon=False, fontsize=9, ncols=len(axes.containers), loc="outside lower center")
    return _png(figure)


def stitched(title: str) -> Callable[[Summary], bytes]:
    """Of a part that has `fractions`, `fewer steps` and their `time`."""

    def draw(summary: Summary) -> bytes:
        speed = summary["time"]["speed"]

        def points(of: str, label: Callable[[str], str]) -> list[Point]:
            rows = summary[of]["plans"]
            return [Point(1 / speed[key]["times"], row, label(key)) for key, row in rows.items()]

        fewer = points("fewer steps", lambda key: key.partition(",")[0])
        return fraction_curve(points("fractions", str), fewer, [], title)

    return draw


def found(summary: Summary) -> bytes:
    """Plans that a search found among fractions and fewer steps, all at the price that the search went by."""
    groups: dict[str, list[Point]] = {"fraction": [], "steps": [], "found": []}
    for key, row in summary["found"]["plans"].items():
        first, _, rest = key.partition(" ")
        if first == "found":
            groups["found"].append(Point(row["share"], row, f"{100 * float(rest):.0f} %"))
        elif first == "fraction":
            groups["fraction"].append(Point(row["share"], row, rest if len(rest) <= 3 else ""))
        else:
            groups["steps"].append(Point(row["share"], row, f"{first} steps"))
    return fraction_curve(groups["fraction"], groups["steps"], groups["found"], "Fashion-MNIST: plans found by search")


def agreement(summary: Summary) -> bytes:
    """How alike the members' trajectories and answers are, and which frequencies of the image are in place, by step."""
    curves = summary["curves"]
    figure, grid = plt.subplots(2, 2, figsize=(9.6, 6.8), dpi=150, layout="constrained")
    own, noise, image, spectrum = grid.flat
    for name, look in zip(curves["latents"], ((BLUE, "-"), (BROWN, "--")), strict=False):
        _band(own, curves["latents"][name]["mean"], name, *look)
        _band(noise, curves["eps"][name]["cosine"]["mean"], name, *look)
        _band(image, curves["x0"][name]["cosine"]["mean"], name, *look)
    large = list(curves["unsettled"])[-1]
    for (part, share), look in zip(curves["unsettled"][large].items(), PARTS.values(), strict=False):
        _band(spectrum, share, part, *look)
    steps = f"step (of {len(curves['t']['value'])})"
    _dress(own, "each along its own trajectory", steps, "cosine to the large member's $x_t$")
    _dress(noise, "asked about the large member's $x_t$: the noise", steps, "cosine to its ε")
    _dress(image, "asked about the large member's $x_t$: the image", steps, "cosine to its $x_0$")
    _dress(spectrum, f"{large} member: what is left of each frequency", steps, "share still to come")
    for axes in grid.flat:
        axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def _band(axes: Any, curve: Summary, label: str, color: str, line: str) -> None:
    values, errors = curve["value"], curve["error"]
    x = range(len(values))
    axes.plot(x, values, color=color, label=label, linestyle=line, linewidth=1.4)
    low, high = ([v + side * GROUPED_95 * e for v, e in zip(values, errors, strict=True)] for side in (-1, 1))
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def ablations(summary: Summary) -> bytes:
    """The difference of each variant to the base, with its 95 % interval."""
    rows = []
    for variant in summary["variants"].values():
        distance = variant["steps"][max(variant["steps"], key=int)]["distance"]
        if (row := distance.get("to_base")) is not None:
            rows.append((variant["differs"], row["gap"], row["half_width"], row["said"]))
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(rows) + 1.2), dpi=150, layout="constrained")
    for place, (_, gap, half, said) in enumerate(reversed(rows)):
        color = {"lower": GREEN, "higher": BROWN}.get(said, GREY)
        axes.errorbar([gap], [place], xerr=[half], fmt="o", color=color, capsize=2, markersize=4)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [differs for differs, *_ in reversed(rows)])
    _dress(axes, "Digits: distance less the base's, 95 % over seeds", "better   ←   difference   →   worse", "")
    return _png(figure)


PICTURES: dict[str, tuple[str, Callable[[Summary], bytes]]] = {
    "reproduction_families.png": ("switch", lambda summary: families(summary, "Fashion-MNIST")),
    "reproduction_fractions.png": (
        "stitching",
        stitched("Fashion-MNIST: a small DiT first, 50 DDIM steps, guidance 1.5"),
    ),
    "reproduction_unets.png": ("unets", stitched("Fashion-MNIST: a small U-Net first, 50 DDIM steps")),
    "reproduction_agreement.png": ("intervals", agreement),
    "reproduction_found.png": ("beyond", found),
    "reproduction_ablations.png": ("ablations", ablations),
    "reproduction_colour_families.png": ("colour", lambda summary: families(summary, "Emoji")),
    "reproduction_colour_fractions.png": ("colour", stitched("Emoji: a small DiT first, 20 DDIM steps")),
}
