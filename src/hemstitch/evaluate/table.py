"""An evaluation as a table for a terminal."""

from __future__ import annotations

import math

from .evaluation import Report, Row
from .metrics import title
from .score import Score


def table(report: Report) -> str:
    """Figures with their 95 % intervals, what may be said of differences, and what they were measured with."""
    figures = list(report.rows[0].scores)
    titles = [title(name, report.extractors[name].name) for name in figures]
    arrows = ["↓" if report.better[name] == "lower" else "↑" for name in figures]
    head = ["", *(f"{t} {a}" for t, a in zip(titles, arrows, strict=True))]
    body = [[row.name, *(cell(row.scores[name]) for name in figures)] for row in report.rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *body]
    ]
    lines.append("± half of the 95 % interval")
    lines += [said for row in report.rows[1:] for said in differences(report, row)]
    return "\n".join([*lines, *origin(report)])


def cell(score: Score) -> str:
    """A value and its interval, to the digits that the interval leaves standing."""
    half = score.half_width
    digits = 4 if not math.isfinite(half) or half <= 0 else max(0, min(8, 1 - math.floor(math.log10(half))))
    return f"{score.value:.{digits}f} ± {half:.{digits}f}"


def differences(report: Report, row: Row) -> list[str]:
    """A line for what differs from the first set, and one for what does not."""
    against, first = report.against_first(row), report.rows[0].name
    names = {name: title(name, report.extractors[name].name) for name in against}
    same = [names[name] for name, compared in against.items() if compared.said == "no difference"]
    lines = []
    for better in (True, False):
        found = [
            f"{names[name]} ({compared.gap:+.3g} ± {compared.half_width:.2g})"
            for name, compared in against.items()
            if compared.said in ("lower", "higher") and (compared.said == report.better[name]) is better
        ]
        if found:
            lines.append(f"{row.name} is {'better' if better else 'worse'} than {first} in {', '.join(found)}")
    unequal = [names[name] for name, compared in against.items() if compared.said == "no verdict"]
    if unequal:
        lines.append(
            f"{row.name} and {first}: no verdict on {', '.join(unequal)}, which depend on how many images there are"
        )
    if same:
        lines.append(f"{row.name} and {first}: no difference in {', '.join(same)}")
    return lines


def origin(report: Report) -> list[str]:
    """What was measured, against what, with what."""
    counts = ", ".join(f"{row.name} {' + '.join(map(str, row.counts))}" for row in report.rows)
    lines = [f"images: {counts}"]
    if report.reference is not None:
        told = report.reference
        size = f"{told['images']} images" if told["images"] else "statistics"
        hashes = ", ".join(f"{h} under {name}" for name, h in told["hash"].items())
        lines.append(f"reference: {told['name']}, {size}, {hashes}")
    makers = list(dict.fromkeys(map(str, report.extractors.values())))
    return [*lines, f"extractors: {'; '.join(makers)}"]
