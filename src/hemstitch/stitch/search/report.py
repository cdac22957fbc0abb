"""A search as a page: what was found, what it was judged beside, and the evidence. One HTML file that opens offline.

Shape suffixes: O options, S steps.
"""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...errors import MissingExtraError
from ...evaluate.report import STYLE, data_of
from .found import Ahead, Found, Point
from .picture import Dot, frontier_png, plans_png
from .picture import Kind as Look

_LOOK: dict[str, Look] = {
    "largest": "largest",
    "alone": "cheapest",
    "fraction": "fraction",
    "fewer steps": "fewer steps",
    "probe": "other",
    "found": "other",
}


def pictures(found: Found) -> dict[str, bytes]:
    """The PNGs of a search, by file name."""
    chosen = [result.found for result in found.results]
    base = base_of(found)
    dots = [_dot(point, "found" if point in chosen else _LOOK[point.kind], base) for point in found.points]
    budgets = [result.budget for result in found.results]
    names = list(dict.fromkeys(entry.member for entry in found.costs.entries))
    title = f"{', '.join(names)}: the largest member's distance, {base:.3g}, plus each plan's gap to it"
    frontier = [(ahead.share, base + ahead.expected_gap) for ahead in found.frontier]
    return {
        "frontier.png": frontier_png(dots, frontier, budgets, title, found.unit),
        "plans.png": plans_png([(_label(found, point), point.plan) for point in _shown(found)], names),
        "evidence.png": evidence_png(found),
    }


def _dot(point: Point, look: Look, base: float) -> Dot:
    """At the largest member's distance plus the gap: distances of unequal numbers of samples do not compare."""
    measured = point.judged or point.chosen_by
    label = f"{point.plan.steps} steps" if look == "fewer steps" else str(point.plan) if look == "found" else ""
    if look == "fraction":
        label = f"{point.plan.counts[point.plan.assignment[0]] / point.plan.steps:.2g}"
    return Dot(look, label, point.share, base + measured.gap, measured.gap_half_width)


def base_of(found: Found) -> float:
    """The largest member's distance on the samples that plans were judged by."""
    largest = next(point for point in found.points if point.kind == "largest")
    return (largest.judged or largest.chosen_by).distance


def _shown(found: Found) -> list[Point]:
    """The finalists and the ten plans expected to be best, by share."""
    finalists = [point for point in found.points if point.judged is not None]
    others = sorted((p for p in found.points if p.judged is None), key=lambda p: p.expected_gap)[:10]
    return sorted([*finalists, *others], key=lambda p: p.share)


def _label(found: Found, point: Point) -> str:
    mark = " (found)" if point in [result.found for result in found.results] else ""
    return f"{point.share:.2f}: {(point.judged or point.chosen_by).gap:+.3g}{mark}"


def evidence_png(found: Found) -> bytes:
    """By step: what members say otherwise, how much that moves the finished sample, and what was learned."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    evidence = found.evidence
    steps = range(evidence.x0.shape[1])
    figure = Figure(figsize=(10, 6.4), dpi=130, layout="constrained")
    (apart, gain), (effect, learned) = figure.subplots(2, 2)
    panels = (
        (apart, evidence.eps, "Disagreement about the noise, RMS", True),
        (effect, evidence.effect, "Mean square by which the sample would move", True),
        (learned, found.learned.T, "Learned: what the step adds to the distance", False),
    )
    for axes, values_OS, title, logarithmic in panels:
        for option, values_S in zip(evidence.options, values_OS, strict=True):
            if not values_S.any():  # what the largest member does adds nothing
                continue
            name = option.member if len({o.guided for o in evidence.options}) == 1 else _called(option)
            axes.plot(steps, values_S, label=name, linewidth=1.6)
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8)
    gain.plot(steps, evidence.gain, color="#555555", linewidth=1.6)
    gain.set_title("Growth of a change made at this step, to the end", fontsize=10, loc="left")
    gain.set_yscale("log")
    for axes in (apart, gain, effect, learned):
        axes.set_xlabel("step (noisiest first)", fontsize=9)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _called(option: Any) -> str:
    return f"{option.member}, {'guided' if option.guided else 'unguided'}"


def command(found: Found, members: Sequence[str], path: Any) -> str:
    """How to sample with what was found."""
    settings = found.settings
    words = ["hemstitch", "sample", *members, "--plan", str(path), "--sampler", settings["sampler_name"]]
    if settings["guidance"] != 1:
        words += ["--guidance", f"{settings['guidance']:g}"]
        interval = found.guidance_interval or settings["guidance_interval"]
        if interval is not None and interval != "search":
            words += ["--guidance-interval", *(f"{end:.4f}" for end in interval)]
    if settings["guidance_channels"] is not None:
        words += ["--guidance-channels", str(settings["guidance_channels"])]
    if settings["grid"] != "released":
        words += ["--grid", settings["grid"]]
    if settings["eta"]:
        words += ["--eta", f"{settings['eta']:g}"]
    return shlex.join(words)


def spent(found: Found) -> str:
    """What the search cost, and what it left out."""
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in found.notes)
    return (
        f"{len(found.points)} plans tried in {found.seconds:.0f} s, the time of {found.images:.0f} samples of the "
        f"largest member alone.{notes}"
    )


def html(found: Found, drawn: Mapping[str, bytes] | None = None) -> str:
    """The page. drawn: its pictures, if they were made before."""
    images = {name: data_of(png) for name, png in (drawn or pictures(found)).items()}
    verdicts = "".join(f"<p>{escape(part)}</p>" for part in found.verdict.split("\n\n"))
    rows = "".join(_row(found, point) for point in found.points)
    ahead = "".join(
        f"<tr><td>{escape(str(a.plan))}</td><td>{a.share:.3f}</td><td>{a.expected_gap:+.3g}</td></tr>"
        for a in thinned(found.frontier)
    )
    settings = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in found.settings.items())
    source = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in found.provenance.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>hemstitch search</title><style>{STYLE}</style></head><body>
<h1>Which model at which step</h1>
{verdicts}
<p class="soft">{escape(spent(found))}</p>
<img alt="distance against share of the time, of every plan that was tried" src="{images["frontier.png"]}">
<h2>Every plan that was tried</h2>
<div class="scroll"><table><thead><tr><th>plan</th><th>kind</th><th>share of<br>the time</th><th>ms per<br>image</th>
<th>distance</th><th>gap to the<br>largest</th><th>samples</th><th>expected<br>gap</th></tr></thead>
<tbody>{rows}</tbody></table></div>
<p class="soft">Distance: {escape(found.unit)}, ± half of its 95 % interval, lower is better; of finalists (bold) on
samples that chose none of them, of others on those that plans were chosen by, where few samples raise a Fréchet
distance. Expected: from all plans together, as a sum over steps. Time is the sum of the members' own measured cost.</p>
<p class="soft">Plans as strips of steps, noise on the left; their share of the time, and their gap.</p>
<img alt="plans as strips of steps" src="{images["plans.png"]}">
<h2>The frontier</h2>
<p class="soft">The plan expected to be best within each share of the time, of all there are, sampled or not.</p>
<div class="scroll"><table><thead><tr><th>plan</th><th>share of<br>the time</th><th>expected<br>gap</th></tr></thead>
<tbody>{ahead}</tbody></table></div>
<h2>The evidence, step by step</h2>
<p class="soft">On {found.evidence.samples} trajectories of the largest member every other was asked at every step.
Last panel: what all measured plans together say that a step costs; below zero, the other member does better.</p>
<img alt="disagreement, gain, effect and learned terms by step" src="{images["evidence.png"]}">
<h2>What members cost</h2><pre class="scroll">{escape(str(found.costs))}</pre>
<h2>Settings</h2><dl>{settings}</dl>
<h2>Provenance</h2><dl>{source}</dl>
</body></html>
"""


def thinned(frontier: Sequence[Ahead], part: float = 0.05) -> list[Ahead]:
    """The best within every twentieth of the time."""
    best: dict[int, Ahead] = {}
    for ahead in frontier:  # by rising share, each better than those before
        best[math.ceil(ahead.share / part - 1e-9)] = ahead
    return list(best.values())


def _row(found: Found, point: Point) -> str:
    shown = point.judged or point.chosen_by
    mark = ' class="base"' if point.judged else ""
    kind = "found" if point in [r.found for r in found.results] else "proposed" if point.kind == "found" else point.kind
    guided = "" if point.guidance_interval is None else " guided {:.2g}..{:.2g}".format(*point.guidance_interval)
    return (
        f"<tr{mark}><td>{escape(str(point.plan))}{escape(guided)}</td><td>{kind}</td><td>{point.share:.3f}</td>"
        f"<td>{point.ms_per_image:.3f}</td><td>{shown.distance:.3g} ± {shown.half_width:.2g}</td>"
        f"<td>{shown.gap:+.3g} ± {shown.gap_half_width:.2g}</td><td>{shown.samples}</td>"
        f"<td>{point.expected_gap:+.3g}</td></tr>"
    )
