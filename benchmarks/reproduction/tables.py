"""Tables of the document, from results alone. A verdict is what an interval says, never more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Summary = Mapping[str, Any]
FAMILY = {"dit": "DiT", "dtr": "DTR", "switch_dit": "Switch-DiT"}
NORMAL_95 = 1.96


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def pm(value: float, half: float | None) -> str:
    """A value and half of its 95 % interval, to the digit that the interval leaves."""
    if half is None:
        return f"{value:.3g}"
    places = 0 if half >= 9.5 else 1 if half >= 0.95 else 2 if half >= 0.095 else 3
    return f"{value:.{places}f} ± {half:.{places}f}"


def of(score: Summary) -> str:
    """A score of one set of samples."""
    return pm(score["value"], NORMAL_95 * score["error"])


def over(interval: Summary) -> str:
    """A mean over training seeds."""
    return pm(interval["mean"], interval["half_width"])


def gap(row: Summary) -> str:
    """A paired difference, with what it says."""
    mark = {"lower": "better", "higher": "worse", "no difference": "undecided"}.get(row["said"], row["said"])
    return f"{row['gap']:+.2f} ± {row['half_width']:.2f}, {mark}"


def choose(summary: Summary) -> str:
    rows = []
    for name, looks in grouped(summary["judged"]).items():
        schedule, prediction, batch, rate = name.removeprefix("choose-").split("-", 3)
        for look, row in looks.items():
            rows.append([f"{schedule}, {prediction}, {rate}", batch, look, of(row["distance"]), of(row["accuracy"])])
    return table(["schedule, prediction, rate", "batch", "sampler", "distance", "class accuracy"], rows)


def grouped(results: Summary) -> dict[str, dict[str, Any]]:
    """Results by the part of their name before the last /, then by the rest."""
    found: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        head, _, tail = name.rpartition("/")
        found.setdefault(head, {})[tail] = result
    return found


def switch_curve(summary: Summary) -> str:
    distance = summary["over_seeds"]["distance"]
    marks = sorted(distance["dit"], key=int)
    rows = [[FAMILY[f], *(over(distance[f][mark]) for mark in marks)] for f in FAMILY]
    for pair, by_mark in summary["at_equal_iterations"].items():
        rows.append([_named(pair), *(f"× {over(by_mark[mark]['ratio'])}" for mark in marks)])
    return table(["distance after", *(f"{int(mark):,}" for mark in marks)], rows)


def switch_end(summary: Summary) -> str:
    rows = []
    for family, name in FAMILY.items():
        ends = summary["at_the_end"]
        cells = [over(ends[figure][family]) for figure in ("distance", "precision", "recall", "accuracy")]
        trained = next(v for k, v in summary["trained"].items() if k.startswith(family))
        cost = summary["seconds_a_step_to_dit"][family]
        rows.append([name, f"{trained['parameters'] / 1e6:.2f} M", f"{cost:.2f}", *cells])
    head = ["", "parameters", "time per step, to DiT's", "distance", "precision", "recall", "class accuracy"]
    return table(head, rows)


def switch_claims(summary: Summary) -> str:
    rows = []
    for pair in summary["at_equal_time"]:
        mark = max(summary["at_equal_iterations"][pair], key=int)
        iterations, time = summary["at_equal_iterations"][pair][mark], summary["at_equal_time"][pair]
        reach = summary["iterations_to_reach"][pair.replace(" against ", " to ")]
        share = over(reach) if reach["mean"] is not None else "not in every seed"
        rows.append(
            [_named(pair), *(f"{over(one['gap'])}: {verdict(one['gap'])}" for one in (iterations, time)), share]
        )
    head = ["", "gap at equal iterations", "gap at equal time", "share of iterations to the other's final distance"]
    return table(head, rows)


def verdict(gap_over_seeds: Summary) -> str:
    """What an interval over seeds says of a gap that is better below zero."""
    half = gap_over_seeds["half_width"]
    if half is None:
        return "one seed"
    if abs(gap_over_seeds["mean"]) <= half:
        return "undecided"
    return "better" if gap_over_seeds["mean"] < 0 else "worse"


def _named(pair: str) -> str:
    for family, name in sorted(FAMILY.items(), key=lambda item: -len(item[0])):
        pair = pair.replace(family, name)
    return pair


def fractions(summary: Summary) -> str:
    speed = summary["time"]["speed"]
    shorter = {row.rpartition(" ")[2]: plan for row, plan in summary["fewer steps"]["plans"].items()}
    rows = []
    for r, row in summary["fractions"]["plans"].items():
        alone = shorter.get(r)
        rows.append(
            [
                r,
                of(row["distance"]),
                gap(row["to_largest"]),
                of(row["precision"]),
                of(row["recall"]),
                f"{speed[r]['times']:.2f}×",
                f"{speed[r]['of_ideal']:.2f}",
                "" if alone is None else f"{of(alone['distance'])}",
            ]
        )
    head = ["r", "distance", "to r = 0", "precision", "recall", "speed", "of the ideal", "large alone, equal time"]
    return table(head, rows)


def plans(of_part: Callable[[Summary], Summary], label: str = "plan") -> Callable[[Summary], str]:
    def make(summary: Summary) -> str:
        rows = [
            [key, of(row["distance"]), gap(row["to_largest"]), of(row["precision"]), of(row["recall"])]
            for key, row in of_part(summary)["plans"].items()
        ]
        return table([label, "distance", "to the large member alone", "precision", "recall"], rows)

    return make


def around(group: str, label: str) -> Callable[[Summary], str]:
    """Distances by fraction, a row for each setting."""

    def make(summary: Summary) -> str:
        found = {name.partition("/")[2]: result for name, result in summary.items() if name.startswith(f"{group}/")}
        columns = sorted({r for result in found.values() for r in result["plans"]}, key=float)
        rows = [
            [
                name,
                *(
                    (of(row["distance"]) + (" *" if row["to_largest"]["said"] == "higher" else ""))
                    if (row := result["plans"].get(r))
                    else ""
                    for r in columns
                ),
            ]
            for name, result in sorted(found.items(), key=lambda item: _number(item[0]))
        ]
        return table([label, *(f"r = {r}" for r in columns)], rows)

    return make


def _number(text: str) -> tuple[float, str]:
    digits = text.rpartition(" ")[2]
    return (float(digits) if digits.replace(".", "").isdigit() else 0.0, text)


TABLES: dict[str, tuple[str, Callable[[Summary], str]]] = {
    "choose": ("choose", choose),
    "switch curve": ("switch", switch_curve),
    "switch end": ("switch", switch_end),
    "switch claims": ("switch", switch_claims),
    "fractions": ("stitching", fractions),
    "orders": ("stitching", plans(lambda s: s["orders"], "order")),
    "three members": ("stitching", plans(lambda s: s["three members"], "small : middle : large")),
    "steps": ("stitching", around("steps", "steps")),
    "samplers": ("stitching", around("samplers", "sampler, steps")),
    "guidance": ("stitching", around("guidance", "guidance")),
}
