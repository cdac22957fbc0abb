"""The quickstart's report: one HTML file that opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from .curve import Point

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8; --paper: #ffffff; --accent: #1f4e8c; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; } .soft { color: var(--soft); font-size: .92rem; }
img { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
tr.base td { font-weight: 600; }
.plans { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1.4rem; }
figure { margin: 0; } figcaption { font-size: .9rem; margin-bottom: .3rem; }
.plans img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
pre { font-size: .82rem; line-height: 1.45; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def data_of(png: bytes) -> str:
    """A PNG as an address that a page holds in itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def summary(points: Sequence[Point]) -> str:
    """What the measured points say, in two or three sentences."""
    stitched = [p for p in points if p.fraction is not None]
    base = next(p for p in stitched if p.fraction == 0)
    good = max((p for p in stitched if not _worse(p, base)), key=lambda p: p.fraction or 0)
    collapsed = max(stitched, key=lambda p: p.fraction or 0)
    said = (
        f"The large model alone takes {base.ms_per_image:.2f} ms per image at a distance of {base.distance:.2f} "
        f"(± {1.96 * base.distance_error:.2f}). "
    )
    if good.fraction:
        said += (
            f"With the small model on the first {good.fraction:.0%} of the steps the distance is "
            f"{good.distance:.2f}, no worse beyond the error, at {good.ms_per_image:.2f} ms: "
            f"{good.speedup:.2f} times faster. "
        )
        alone = [p for p in points if p.fraction is None]
        if alone:
            rival = min(alone, key=lambda p: abs(p.ms_per_image - good.ms_per_image))
            said += (
                f"In about that time ({rival.ms_per_image:.2f} ms) the large model alone manages {rival.steps} steps, "
                f"at a distance of {rival.distance:.2f}. "
            )
    else:
        said += "In this run no share of the small model came without a loss. "
    return said + f"The small model alone ends at {collapsed.distance:.2f}."


def _worse(p: Point, base: Point) -> bool:
    """Whether a point is worse than the baseline by more than two standard errors of the (paired) difference."""
    return p.distance - base.distance > 2 * p.gap_error


def html(
    points: Sequence[Point],
    curve_png: bytes,
    samples: Mapping[str, bytes],
    members: Mapping[str, str],
    provenance: Mapping[str, str],
    made: str,
    columns: str,
) -> str:
    """The page. samples: a PNG grid per plan, from the same seeds. members: name to description. made: a sentence on
    how the models came about. columns: what the grids' columns are."""
    rows = "".join(_row(p) for p in points)
    figures = "".join(
        f"<figure><figcaption>{escape(_named(p))} <span class=soft>distance {p.distance:.2f}, {p.speedup:.2f}×</span>"
        f'</figcaption><img alt="samples of {escape(p.plan)}" src="{data_of(samples[p.plan])}"></figure>'
        for p in points
        if p.plan in samples
    )
    nets = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in members.items())
    source = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in provenance.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>hemstitch quickstart</title><style>{STYLE}</style></head><body>
<h1>Two models, one trajectory</h1>
<p class="soft">hemstitch quickstart: a small DiT takes the first, noisy steps, a larger one the rest.
{escape(made)}</p>
<p>{escape(summary(points))}</p>
<img alt="Fréchet distance against time per image for stitched plans and for the large model at fewer steps"
 src="{data_of(curve_png)}">
<h2>Every plan</h2>
<div class="scroll"><table><thead><tr><th>plan</th><th>steps</th><th>Fréchet distance</th><th>class<br>accuracy</th>
<th>ms per<br>image</th><th>speed-up<br>measured</th><th>speed-up<br>ideal</th></tr></thead>
<tbody>{rows}</tbody></table></div>
<p class="soft">Distance and accuracy are measured in the feature space of a small classifier trained on the same
data, ± 1.96 standard errors by bootstrap. Ideal is the sum of each model's own time per step, as if stitching cost
nothing.</p>
<h2>The same seeds under every plan</h2>
<p class="soft">Columns are {escape(columns)}. Early steps settle the layout: plans with the same start share it.</p>
<div class="plans">{figures}</div>
<h2>The models</h2><dl>{nets}</dl>
<h2>Provenance</h2><dl>{source}</dl>
</body></html>
"""


def _named(point: Point) -> str:
    return point.plan if point.fraction is None else f"{point.plan} (fraction {point.fraction:g})"


def _row(p: Point) -> str:
    mark = ' class="base"' if p.fraction == 0 else ""
    return (
        f"<tr{mark}><td>{escape(_named(p))}</td><td>{p.steps}</td>"
        f"<td>{p.distance:.2f} ± {1.96 * p.distance_error:.2f}</td><td>{_percent(p.accuracy)}</td>"
        f"<td>{p.ms_per_image:.3f}</td><td>{p.speedup:.2f}×</td><td>{p.speedup_ideal:.2f}×</td></tr>"
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def table(points: Sequence[Point]) -> str:
    """The same table for a terminal."""
    return "\n".join([TABLE_HEAD, *map(table_row, points)])


TABLE_HEAD = (
    f"{'plan':<26} {'steps':>5} {'guidance':>8} {'distance':>9} {'±':>5} {'accuracy':>8} {'±':>6} {'ms/image':>9} "
    f"{'speed-up':>8} {'ideal':>6}"
)


def table_row(p: Point) -> str:
    half = _percent(None if p.accuracy_error is None else 1.96 * p.accuracy_error)
    return (
        f"{p.plan:<26} {p.steps:>5} {p.guidance:>8g} {p.distance:>9.2f} {1.96 * p.distance_error:>5.2f} "
        f"{_percent(p.accuracy):>8} {half:>6} {p.ms_per_image:>9.3f} {p.speedup:>7.2f}× {p.speedup_ideal:>5.2f}×"
    )
