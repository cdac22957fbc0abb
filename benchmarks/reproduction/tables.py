"""Tables of the document, from results alone. A verdict is what an interval says, never more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

from scipy.stats import t as student

from hemstitch.evaluate.score import NORMAL_95

from .families import FIGURES
from .intervals import GROUPS
from .stitching import AROUND, CLOSE

Summary = Mapping[str, Any]
GROUPED_95 = float(student.ppf(0.975, GROUPS - 1))  # of a mean over groups of samples
FAMILY = {"dit": "DiT", "dtr": "DTR", "switch_dit": "Switch-DiT"}
SAID = {"lower": "better", "higher": "worse", "no difference": "undecided"}
PARTS = {
    "choose": "what was chosen",
    "switch": "A, families",
    "stitching": "B, transformers",
    "unets": "B, U-Nets",
    "intervals": "B, intervals and curves",
    "beyond": "C, together and beyond",
    "ablations": "D, ablations",
    "colour": "E, colour",
    "attempts": "F, Switch-DiT's lead",
    "early": "G, early steps",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Nothing of no rows."""
    if not (rows := list(rows)):
        return ""
    lines = [f"| {' | '.join(head)} |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# Figures


def pm(value: float, half: float | None) -> str:
    """A value and half of its 95 % interval, to the digit that the interval leaves."""
    if half is None:
        return f"{value:.3g}"
    places = _places(half)
    return f"{value:.{places}f} ± {half:.{places}f}"


def _places(half: float) -> int:
    """Two digits of it, and none after the point from ten on."""
    return next((places for places in range(5) if half >= 0.95 * 10.0 ** (1 - places)), 5) if half else 3


def of(score: Summary) -> str:
    """A score of one set of samples."""
    return pm(score["value"], NORMAL_95 * score["error"])


def over(interval: Summary) -> str:
    """A mean over training seeds."""
    return pm(interval["mean"], interval["half_width"])


def signed(value: float, half: float) -> str:
    places = _places(half)
    return f"{round(value, places) + 0.0:+.{places}f} ± {half:.{places}f}"  # no "-0"


def gap(row: Summary) -> str:
    """A difference of distances, with what its interval says."""
    if is_same(row):
        return "the same"
    return f"{signed(row['gap'], row['half_width'])}, {SAID[row['said']]}"


def relative(row: Summary, mixed: Summary, whole: Summary) -> tuple[float, float]:
    """A gap in per cent of the distance that it is to, and half of its 95 % interval, to which that distance is
    uncertain too (delta method).

    row: `mixed` less `whole`, scores of the same samples.
    """
    value, gap = whole["value"], row["gap"]
    of_gap, of_whole, both = variances(row, mixed, whole)
    variance = of_gap / value**2 + gap**2 * of_whole / value**4 - 2 * gap * both / value**3
    return 100 * gap / value, 100 * NORMAL_95 * max(0.0, variance) ** 0.5


def variances(row: Summary, mixed: Summary, whole: Summary) -> tuple[float, float, float]:
    """Of a gap and of the distance that it is to, and their covariance."""
    of_gap, of_whole = (row["half_width"] / NORMAL_95) ** 2, whole["error"] ** 2
    return of_gap, of_whole, (mixed["error"] ** 2 - of_gap - of_whole) / 2


def is_same(row: Summary) -> bool:
    """Whether a difference is one of a thing to itself."""
    return not (row["gap"] or row["half_width"])


# What is measured by, and how hyper-parameters were chosen


def judge(read: Mapping[str, Summary]) -> str:
    """The classifiers whose features distances are of, and what images that networks learned from come to."""
    rows = []
    for part in ("switch", "ablations", "colour"):
        if part in read:
            field = read[part]["results"]["field"] if part == "ablations" else read[part]["field"]
            right = f"{100 * field['classifier_accuracy']:.1f} % of {field['held_out']:,}"
            real = [of(field["training_images"][figure]) for figure in FIGURES]
            rows.append([PARTS[part], field["reference"], right, *real])
    head = ["part", "reference", "classifier right", "training images: distance", "precision", "recall"]
    return table([*head, "class accuracy"], rows)


def choose(summary: Summary) -> str:
    rows = []
    for name, looks in grouped(summary["judged"]).items():
        schedule, prediction, batch, rate = name.removeprefix("choose-").split("-", 3)
        for look, row in looks.items():
            rows.append([f"{schedule}, {prediction}, {rate}", batch, look, of(row["distance"]), of(row["accuracy"])])
    return table(["schedule, prediction, rate", "batch", "sampler, steps", "distance", "class accuracy"], rows)


def grouped(results: Summary) -> dict[str, dict[str, Any]]:
    """Results by the part of their name before the last /, then by the rest."""
    found: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        head, _, tail = name.rpartition("/")
        found.setdefault(head, {})[tail] = result
    return found


# A, and E's part of it


def family_curve(summary: Summary) -> str:
    distance = summary["over_seeds"]["distance"]
    marks = sorted(distance["dit"], key=int)
    rows = [[name, *(over(distance[family][mark]) for mark in marks)] for family, name in FAMILY.items()]
    for pair, by_mark in summary["at_equal_iterations"].items():
        rows.append(
            [named(pair), *(f"× {over(by_mark[mark]['ratio'])}, {SAID[by_mark[mark]['said']]}" for mark in marks)]
        )
    return table(["distance after iterations", *(f"{int(mark):,}" for mark in marks)], rows)


def family_figures(summary: Summary) -> str:
    """Of the last judged checkpoint."""
    ends = {
        figure: {family: marks[max(marks, key=int)] for family, marks in by_family.items()}
        for figure, by_family in summary["over_seeds"].items()
    }
    rows = []
    for family, name in FAMILY.items():
        cells = [over(ends[figure][family]) for figure in ("precision", "recall", "accuracy")]
        copied = summary["copies"].get(family) if "copies" in summary else None
        rows.append([name, *cells, *([of(copied["near_copies"]), of(copied["nearer_learned"])] if copied else [])])
    head = ["", "precision", "recall", "class accuracy"]
    return table([*head, *(["near copies", "nearer to a picture learned"] if "copies" in summary else [])], rows)


def family_end(summary: Summary) -> str:
    rows = []
    for family, name in FAMILY.items():
        cells = [over(summary["end"][figure][family]) for figure in FIGURES]
        trained = next(v for k, v in summary["trained"].items() if k.startswith(f"{family}-"))
        cost = summary["seconds_a_step_to_dit"][family]
        rows.append([name, f"{trained['parameters'] / 1e6:.2f} M", f"{cost:.2f}", *cells])
    head = ["", "parameters", "time per step, to DiT's", "distance", "precision", "recall", "class accuracy"]
    return table(head, rows)


def family_guided(summary: Summary) -> str:
    rows = []
    for family, name in FAMILY.items():
        figures = [over(summary["guided_end"][figure][family]) for figure in FIGURES]
        rows.append([name, *figures, *[""] * 2])
    for pair, row in summary["under_guidance"].items():
        rows.append(
            [named(pair), f"{gap(row)}", "", "", "", f"× {over(row['ratio'])}", f"± {row['welch']['half_width']:.2g}"]
        )
    return table(["", "distance", "precision", "recall", "class accuracy", "ratio", "as independent runs"], rows)


def family_claims(summary: Summary) -> str:
    rows = []
    for pair, end in summary["at_the_end"].items():
        apart = f"± {end['welch']['half_width']:.2g}, {SAID[end['welch']['said']]}"
        others = [gap(summary[which][pair]) for which in ("at_equal_time", "sooner")]
        rows.append([named(pair), gap(end), apart, *others, reached(summary["share_to_reach"][pair])])
    head = ["", "at equal iterations", "as independent runs", "at equal time", "first after 70 % less other at the end"]
    return table([*head, "share of iterations to the other's end (by seed)"], rows)


def reached(shares: Summary) -> str:
    """Shares of iterations by seed, and their interval if there is one."""
    by_seed = ", ".join("never" if share is None else f"{100 * share:.0f} %" for share in shares["values"])
    if shares["mean"] is None:
        return by_seed
    return f"{100 * shares['mean']:.0f} ± {100 * shares['half_width']:.0f} % ({by_seed})"


def named(pair: str) -> str:
    for family, name in sorted(FAMILY.items(), key=lambda item: -len(item[0])):
        pair = pair.replace(family, name)
    return pair


def attempts(read: Mapping[str, Summary]) -> str:
    """Beside part A."""
    rows = []

    def add(name: str, mark: str, distances: Summary, row: Summary, sooner: Summary | None) -> None:
        each = [over(distances[family]) if family in distances else "" for family in FAMILY]
        early = "" if sooner is None else gap(sooner)
        rows.append([name, f"{int(mark):,}", *each, gap(row), f"× {over(row['ratio'])}", early])

    pair = "switch_dit to dit"
    if "switch" in read:
        ours = read["switch"]
        marks = sorted(ours["over_seeds"]["distance"]["dit"], key=int)
        for mark in marks:
            distances = {family: ours["over_seeds"]["distance"][family][mark] for family in FAMILY}
            early = ours["sooner"][pair] if mark == marks[-1] else None
            add("part A", mark, distances, ours["at_equal_iterations"][pair][mark], early)
    for attempt in read["attempts"]["attempts"].values():
        for mark, found in attempt["marks"].items():
            early = attempt.get("sooner", {}).get(pair) if mark == max(attempt["marks"], key=int) else None
            add(attempt["differs"], mark, found["distance"], found["gaps"][pair], early)
    head = ["", "iterations", *FAMILY.values(), "Switch-DiT to DiT", "ratio"]
    return table([*head, "Switch-DiT after 70 % less DiT at the end"], rows)


def early(read: Mapping[str, Summary]) -> str:
    """Beside part B's own at as many steps."""
    rows = []

    def add(name: str, one: Summary, whole: Summary, mixed: Summary, row: Summary, fewer: Summary) -> None:
        less = f"{signed(*relative(row, mixed, whole))} %"
        cells = [f"{one['log_snr_at_seam']:.1f}", of(whole), of(mixed), gap(row), less, f"{one['times_as_fast']:.2f}×"]
        there = gap(one["to_fewer_there"]) if "to_fewer_there" in one else ""
        rows.append([name, *cells, f"{one['fewer_steps']} steps: {gap(fewer)}", there])

    judged = read["early"]["judged"]
    if "stitching" in read:
        own = next(one for one in judged.values() if not one["published"] and one["small"] == "small")
        there = read["stitching"][f"steps/{read['early']['sampling']['steps']}"]
        closer, fewer = there["closer"], there["to_fewer_steps"]["0.4"]
        add("as in part B", own, closer["whole"], closer["mixed"], closer, fewer)
    for one in judged.values():
        whole, mixed = (one["plans"][r]["distance"] for r in ("0", "0.4"))
        add(one["differs"], one, whole, mixed, one["to_largest"], one["to_fewer"])
    head = ["", "log-SNR at the seam", "r = 0", "r = 0.4", "difference", "of r = 0", "speed"]
    return table([*head, "r = 0.4 less fewer steps at the same levels", "r = 0.4 less fewer steps at part B's"], rows)


def errors(summary: Summary) -> str:
    """How much larger smaller members' errors are, by noise level."""
    kinds, rows, head = summary["errors"], [], ["t / T"]
    for name, kind in (("transformers", "transformer"), ("unets", "U-Net")):
        smaller = next(iter(kinds[name]["levels"].values()))["to_large"]
        head += [f"{kind}s: log-SNR", f"error of the large {kind}", *(f"{one}, to it" for one in smaller)]
    for t in kinds["transformers"]["levels"]:
        row = [t]
        for one in (kinds[name]["levels"][t] for name in ("transformers", "unets")):
            row += [f"{one['log_snr']:.1f}", f"{one['error']['large']:.4f}"]
            row += [pm(of["value"], of["half_width"]) for of in one["to_large"].values()]
        rows.append(row)
    return table(head, rows)


def rounded(summary: Summary) -> str:
    """Seed 0 as it was and in float32, beside what other seeds come to."""
    rows = []
    for family, other in summary["rounded"].items():
        mark = f"{other['steps']}"
        one = summary["judged"][f"{family}-0/{mark}"]
        values = summary["over_seeds"]["distance"][family][mark]["values"]
        others = ", ".join(f"{value:.2f}" for value in values[1:])
        rows.append([FAMILY[family], f"{int(mark):,}", of(one["distance"]), of(other["distance"]), others])
    return table(["", "iterations", "seed 0", "seed 0, float32", "other seeds"], rows)


# B


def fractions(summary: Summary) -> str:
    """Every fraction, and beside it the large member alone in as many steps as take that time."""
    speed, seconds = summary["time"]["speed"], summary["time"]["seconds_per_image"]
    shorter = {key.rpartition(" ")[2]: (key, plan) for key, plan in summary["fewer steps"]["plans"].items()}
    rows = []
    for r, row in summary["fractions"]["plans"].items():
        cells = [r, of(row["distance"]), gap(row["to_largest"]), of(row["precision"]), of(row["recall"])]
        cells += [f"{1000 * median(seconds[r]):.1f}", f"{speed[r]['times']:.2f}×", f"{speed[r]['of_ideal']:.2f}"]
        if r in shorter:
            key, plan = shorter[r]
            beside = gap(summary["fractions to fewer steps"][r])
            cells += [key.partition(" ")[0], f"{speed[key]['times']:.2f}×", of(plan["distance"]), beside]
        else:
            cells += [""] * 4
        rows.append(cells)
    if closer := summary["fractions"].get("closer"):
        rows.append([f"0, {closer['samples']:,} samples", of(closer["whole"]), *[""] * 10])
        rows.append([f"{AROUND:g}, of as many", of(closer["mixed"]), gap(closer), *[""] * 9])
    head = ["r", "distance", "to r = 0", "precision", "recall", "ms an image", "speed", "of the ideal"]
    return table([*head, "large alone: steps", "speed", "distance", "the fraction to it"], rows)


def plans(of_part: Callable[[Summary], Summary], label: str = "plan") -> Callable[[Summary], str]:
    def make(summary: Summary) -> str:
        rows = [
            [key, of(row["distance"]), gap(row["to_largest"]), of(row["precision"]), of(row["recall"])]
            for key, row in of_part(summary)["plans"].items()
        ]
        return table([label, "distance", "to the large member alone", "precision", "recall"], rows)

    return make


def mixes(summary: Summary) -> str:
    rows = [
        [
            key,
            f"{row['times']:.2f}×",
            of(row["distance"]),
            gap(row["to_largest"]),
            gap(row["to_middle"]),
            f"{row['fewer']}: {gap(row['to_fewer_steps'])}" if "fewer" in row else "",
            of(row["precision"]),
            of(row["recall"]),
        ]
        for key, row in summary["three members"]["plans"].items()
    ]
    head = ["small : middle : large", "speed", "distance", "to the large member alone", "to the middle one alone"]
    return table([*head, "to the large one in fewer steps, at least as fast", "precision", "recall"], rows)


def around(group: str, label: str) -> Callable[[Summary], str]:
    """Distances by fraction, a row for each setting; a star where one is worse than the large member's."""

    def make(summary: Summary) -> str:
        found = {name.partition("/")[2]: result for name, result in summary.items() if name.startswith(f"{group}/")}
        columns = sorted({r for result in found.values() for r in result["plans"] if "," not in r}, key=float)
        rows = []
        for name, result in sorted(found.items(), key=lambda item: in_order(item[0])):
            cells = [name]
            for r in columns:
                row = result["plans"][r]
                cells.append(of(row["distance"]) + (" *" if row["to_largest"]["said"] == "higher" else ""))
            cells.append(gap(result["closer"]))
            (beside,) = result["to_fewer_steps"].values()
            cells += [f"{beside['fewer'].partition(',')[0]}: {of(result['plans'][beside['fewer']]['distance'])}"]
            rows.append([*cells, gap(beside)])
        head = [label, *(f"r = {r}" for r in columns), f"r = 0.4 to r = 0, {CLOSE:,} samples"]
        head += ["large alone in fewer steps", "r = 0.4 to it"]
        return table(head, rows)

    return make


def in_order(text: str) -> tuple[float, str]:
    digits = text.rpartition(" ")[2]
    return (float(digits) if digits.replace(".", "").isdigit() else 0.0, text)


def tuning(summary: Summary) -> str:
    """T-Stitch's Table 6."""
    rows = []
    for row in summary["table"].values():
        cells = [over(row[way]["distance"]) for way in ("as trained", "own times", "all times")]
        gaps = [gap(row["gaps"][which]) for which in ("own times less as trained", "own times less all times")]
        rows.append([row["plan"], *cells, *gaps])
    head = ["plan", "as trained", "tuned on own times", "on all times", "own to as trained", "own to all"]
    return table(head, rows)


# C


def large_members(summary: Summary) -> str:
    dit, switch = (summary["large members"][family] for family in ("dit", "switch_dit"))
    rows = [[r, over(dit[r]), over(switch[r]), gap(row)] for r, row in summary["switch to dit"].items()]
    return table(["r", "DiT as the large member", "Switch-DiT", "Switch-DiT to DiT"], rows)


def found(summary: Summary) -> str:
    rows = []
    for key, row in summary["found"]["plans"].items():
        if not key.startswith("found "):
            continue
        budget = f"{100 * float(key.removeprefix('found ')):.0f} %"
        cells = [budget, _said(row["plan"]), f"{100 * row['share']:.0f} %", of(row["again"]["distance"])]
        for kind in ("to_best_fraction", "to_best_steps"):
            rival = row.get(kind)
            cells.append("none fits" if rival is None else f"{rival['best']}: {gap(rival)}")
        rows.append(cells)
    head = ["budget", "plan found", "time", "distance", "to the best fraction", "to the large member in fewer steps"]
    return table(head, rows)


def _said(plan: Summary) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in plan["assignment"])


def per_sample(summary: Summary) -> str:
    rows = []
    for r, row in summary["per sample"]["fractions"].items():
        less = signed(row["gap"], row["gap_half_width"])
        said = "undecided" if abs(row["gap"]) <= row["gap_half_width"] else "better" if row["gap"] < 0 else "worse"
        plan = json.loads(row["plan"])
        signal = f"{plan['signal']} {plan['side']}"
        cells = [f"{row['fixed_distance']:.2f}", f"{row['distance']:.2f}", f"{less}, {said}", f"{row['cost']:.2f}"]
        rows.append([r, signal, *cells])
    return table(["r", "by", "one seam", "a seam each", "difference", "time, to one seam's"], rows)


def guides(summary: Summary) -> str:
    models, time = summary["guided"]["models"], summary["guided"]["time"]
    rows = []
    for name, row in models.items():
        kind = name.partition(",")[0]
        cost = f"{time[kind]:.2f}" if kind in time else "1.00"
        figures = [of(row[figure]) for figure in FIGURES]
        rows.append([name, cost, *figures])
    return table(["guide, scale", "time of a step", "distance", "precision", "recall", "class accuracy"], rows)


# D


def ablations(summary: Summary) -> str:
    rows = []
    for variant in summary["variants"].values():
        end = variant["steps"][max(variant["steps"], key=int)]
        distance = end["distance"]
        cells = [variant["differs"], over(distance)]
        cells.append(gap(distance["to_base"]) if "to_base" in distance else "")
        cells += [over(end[figure]) for figure in ("precision", "recall", "accuracy")]
        use = variant["experts"]["trained"] if "experts" in variant else None
        cells += ["", ""] if use is None else [f"{mean(use['divergence']):.3f}", _used(use)]
        rows.append(cells)
    head = ["differs in", "distance", "to the base", "precision", "recall", "class accuracy"]
    return table([*head, "divergence from the prior", "experts never used"], rows)


def _used(use: Summary) -> str:
    return f"{mean(use['never']):.1f} of {use['experts'][0]}"


# What it took


def took(read: Mapping[str, Summary]) -> str:
    """Of each part, how many results and how long one core worked on them, as the clock had it; trainings in several
    sittings by their steps' median time. A + marks a commit with changes that were not committed."""
    rows = []
    for part, summary in read.items():
        results = {str(sorted(one.items(), key=str)): one for one in _results(summary)}.values()
        seconds = [_seconds(one) for one in results]
        commits = {c for one in results for c in [one["provenance"]["commit"], *one.get("sittings", {}).values()]}
        made_by = ", ".join(sorted(commit.replace(" with changes", "+") for commit in commits))
        rows.append([PARTS[part], f"{len(seconds)}", f"{sum(seconds) / 3600:.1f}", made_by])
    return table(["part", "results", "hours", "made by commits"], rows)


def _seconds(one: Summary) -> float:
    """Of a training that was stopped and went on, its steps' median time; what it took, of all else."""
    if one["took"].get("sittings", 1) > 1 and isinstance(one.get("steps"), int) and "milliseconds_a_step" in one:
        return float(one["steps"] * one["milliseconds_a_step"] / 1000)
    return float(one["took"]["seconds"])


def state(parts: Mapping[str, tuple[int, int]]) -> str:
    """How many results there are by now, of how many."""
    return table(
        ["part", "results there", "of"], [[PARTS[p], f"{done}", f"{every}"] for p, (done, every) in parts.items()]
    )


def _results(summary: Any) -> Iterator[Summary]:
    """Everything in a summary that a task made."""
    if isinstance(summary, Mapping):
        if "took" in summary and "provenance" in summary:
            yield summary
        else:
            for value in summary.values():
                yield from _results(value)


# Of a part, which shows others beside it where they are there.
BESIDE: dict[str, Callable[[Mapping[str, Summary]], str]] = {"attempts": attempts, "early": early}
TABLES: dict[str, tuple[str, Callable[[Summary], str]]] = {
    "choose": ("choose", choose),
    "families curve": ("switch", family_curve),
    "families end": ("switch", family_end),
    "families claims": ("switch", family_claims),
    "families guided": ("switch", family_guided),
    "families rounded": ("switch", rounded),
    "fractions": ("stitching", fractions),
    "orders": ("stitching", plans(lambda s: s["orders"], "order")),
    "three members": ("stitching", mixes),
    "steps": ("stitching", around("steps", "steps")),
    "samplers": ("stitching", around("samplers", "sampler, steps")),
    "guidance": ("stitching", around("guidance", "guidance")),
    "unets": ("unets", fractions),
    "tuning": ("intervals", tuning),
    "large members": ("beyond", large_members),
    "found": ("beyond", found),
    "two processes": ("beyond", plans(lambda s: s["two processes"], "r")),
    "per sample": ("beyond", per_sample),
    "guides": ("beyond", guides),
    "ablations": ("ablations", ablations),
    "colour curve": ("colour", family_curve),
    "colour claims": ("colour", family_claims),
    "colour figures": ("colour", family_figures),
    "colour fractions": ("colour", fractions),
    "errors": ("early", errors),
}
