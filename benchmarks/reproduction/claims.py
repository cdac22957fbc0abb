"""What the papers claim beside what came out here: a row each, from results alone, with a verdict by rule.

"reproduced": an interval (95 %) says what the paper says. "not reproduced": it says the contrary. "undecided at this
scale": it says neither. Of claims that something costs nothing, `MARGIN` is how much is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

from . import tables
from .fields import distance_of
from .stitching import beside
from .tables import Summary, gap, over, signed, verdict

YES, NO, OPEN, PART = "reproduced", "not reproduced", "undecided at this scale", "in part"
OURS = {YES: "yes", NO: "no", OPEN: "undecided"}  # of what no paper claims
MARGIN = 0.03  # of a distance: T-Stitch reads FIDs of 9.20 and 8.95 as equally good
Read = Mapping[str, Summary]


class Claim(NamedTuple):
    """parts: whose results it needs. paper: its figures, of ImageNet 256 unless said. here: (figures, verdict)."""

    says: str
    paper: str
    parts: tuple[str, ...]
    here: Callable[[Read], tuple[str, str]]


def table(read: Read) -> str:
    rows = []
    for claim in CLAIMS:
        if set(claim.parts) <= set(read):
            figures, said = claim.here(read)
            said = said if claim.paper else OURS.get(said, said)
            rows.append([claim.says, claim.paper, figures, f"**{said}**" if said else ""])
    return tables.table(["claim", "in the paper", "here", "verdict"], rows)


# Rules


def below(said: str) -> str:
    """Of a difference that is claimed to be below zero."""
    return {"better": YES, "lower": YES, "worse": NO, "higher": NO}.get(said, OPEN)


def at_no_loss(row: Summary, whole: float) -> str:
    """Of a gap to a distance, claimed to be none: at most a margin, whatever the interval leaves open."""
    low, high, margin = row["gap"] - row["half_width"], row["gap"] + row["half_width"], MARGIN * whole
    return YES if high <= margin else NO if low > margin else OPEN


def loss(row: Summary, whole: float) -> str:
    return f"{signed(100 * row['gap'] / whole, 100 * row['half_width'] / whole)} %"


def no_loss(result: Summary, r: str) -> tuple[str, str]:
    row, whole = result["plans"][r]["to_largest"], result["plans"]["0"]["distance"]["value"]
    return loss(row, whole), at_no_loss(row, whole)


# Switch-DiT


def families(pair: str) -> Callable[[Read], tuple[str, str]]:
    def here(read: Read) -> tuple[str, str]:
        by_mark = read["switch"]["at_equal_iterations"][pair]
        end = by_mark[max(by_mark, key=int)]
        return f"{over(end['gap'])} (× {over(end['ratio'])})", below(verdict(end["gap"]))

    return here


def at_equal_time(read: Read) -> tuple[str, str]:
    row = read["switch"]["at_equal_time"]["switch_dit against dit"]
    return f"{over(row['gap'])} (× {over(row['ratio'])})", below(verdict(row["gap"]))


def sooner(read: Read) -> tuple[str, str]:
    row = read["switch"]["iterations_to_reach"]["switch_dit to dit"]
    if row["mean"] is None:
        return f"not in every seed: {', '.join('never' if v is None else f'{v:,.0f}' for v in row['values'])}", NO
    low, high = row["mean"] - row["half_width"], row["mean"] + row["half_width"]
    return f"{100 * row['mean']:.0f} ± {100 * row['half_width']:.0f} %", YES if high < 1 else NO if low > 1 else OPEN


def in_seventy(read: Read) -> tuple[str, str]:
    figures, _ = sooner(read)
    row = read["switch"]["iterations_to_reach"]["switch_dit to dit"]
    if row["mean"] is None:
        return figures, NO
    low, high = row["mean"] - row["half_width"], row["mean"] + row["half_width"]
    return figures, YES if high <= 0.7 else NO if low > 0.7 else OPEN


def colour(pair: str) -> Callable[[Read], tuple[str, str]]:
    def here(read: Read) -> tuple[str, str]:
        by_mark = read["colour"]["at_equal_iterations"][pair]
        end = by_mark[max(by_mark, key=int)]
        return f"{over(end['gap'])} (× {over(end['ratio'])})", below(verdict(end["gap"]))

    return here


def ablated(variant: str) -> Callable[[Read], tuple[str, str]]:
    """The base is better than a variant: the variant's gap to it is above zero."""

    def here(read: Read) -> tuple[str, str]:
        one = read["ablations"]["variants"][variant]
        distance = one["steps"][max(one["steps"], key=int)]["distance"]
        row = {"gap": distance["gap"]} | distance["paired" if one["same_start"] else "welch"]
        said = {"higher": YES, "lower": NO}.get(row["said"], OPEN)
        return f"without it {signed(row['gap'], row['half_width'])}", said

    return here


# T-Stitch


def early_steps(part: str) -> Callable[[Read], tuple[str, str]]:
    def here(read: Read) -> tuple[str, str]:
        figures, said = no_loss(read[part]["fractions"], "0.4")
        return f"{figures} of {read[part]['fractions']['plans']['0']['distance']['value']:.2f}", said

    return here


def speed(read: Read) -> tuple[str, str]:
    of = read["stitching"]["time"]["speed"]["0.4"]
    return f"{of['times']:.2f}×, {100 * of['of_ideal']:.0f} % of the ideal", ""


def fewer_steps(part: str) -> Callable[[Read], tuple[str, str]]:
    """Stitching is better than the large member alone in fewer steps, at equal time: at how many of the fractions."""

    def here(read: Read) -> tuple[str, str]:
        rows = read[part]["fractions to fewer steps"]
        said = [row["said"] for row in rows.values()]
        lower, higher = said.count("lower"), said.count("higher")
        at = rows["0.4"]
        figures = f"r = .4: {gap(at)}; of {len(said)} fractions better at {lower}, worse at {higher}"
        return figures, YES if lower == len(said) else NO if higher == len(said) else PART

    return here


def first(read: Read) -> tuple[str, str]:
    """Each order is better than those after it; the random one is drawn several times."""
    plans = read["stitching"]["orders"]["plans"]
    kinds = ("small_to_large", "decreasing", "interleaved", "large_to_small")
    group = [[row for key, row in plans.items() if key.startswith(kind)] for kind in kinds]
    means = [sum(row["distance"]["value"] for row in rows) / len(rows) for rows in group]
    pairs = [(a, b) for left, right in pairwise(group) for a in left for b in right]
    said = {beside(distance_of(a), distance_of(b))["said"] for a, b in pairs}
    figures = ", ".join(f"{value:.2f}" for value in means)
    return figures, YES if said == {"lower"} else NO if "higher" in said else OPEN


def three(read: Read) -> tuple[str, str]:
    plans = read["stitching"]["three members"]["plans"]
    whole = plans["large"]["distance"]["value"]
    fit = {key: row for key, row in plans.items() if ":" in key}
    verdicts = {key: at_no_loss(row["to_largest"], whole) for key, row in fit.items()}
    best = min(fit, key=lambda key: fit[key]["distance"]["value"])
    figures = f"{best}: {loss(fit[best]['to_largest'], whole)} of {whole:.2f}"
    return figures, YES if YES in verdicts.values() else OPEN if OPEN in verdicts.values() else NO


def settings(group: str) -> Callable[[Read], tuple[str, str]]:
    def here(read: Read) -> tuple[str, str]:
        found = {n.partition("/")[2]: one for n, one in read["stitching"].items() if n.startswith(f"{group}/")}
        each = {name: no_loss(found[name], "0.4") for name in sorted(found, key=tables.in_order)}
        figures = "; ".join(f"{name}: {figure}" for name, (figure, _) in each.items())
        values = {said for _, said in each.values()}
        return figures, YES if values == {YES} else NO if values == {NO} else OPEN if NO not in values else PART

    return here


def tuned(read: Read) -> tuple[str, str]:
    row = read["intervals"]["table"]["three"]
    gaps = row["gaps"]
    figures = (
        f"as trained {over(row['as trained']['distance'])}; own times {gap(gaps['own times less as trained'])}; "
        f"against all times {gap(gaps['own times less all times'])}"
    )
    said = {below(gaps[which]["said"]) for which in ("own times less as trained", "own times less all times")}
    return figures, YES if said == {YES} else NO if NO in said else OPEN


def alike(read: Read) -> tuple[str, str]:
    """Members agree at high noise and part later: cosine of their own latents to the large member's, by step."""
    latents = read["intervals"]["curves"]["latents"]["small"]["mean"]["value"]
    first_, last = latents[len(latents) // 5], latents[-1]
    figures = f"small to large, after a fifth of the steps {first_:.3f}, at the end {last:.3f}"
    return figures, YES if first_ > 0.99 and first_ > last else NO


# Beyond


def searched(read: Read) -> tuple[str, str]:
    plans = read["beyond"]["found"]["plans"]
    rows = {key.removeprefix("found "): row for key, row in plans.items() if key.startswith("found ")}
    rows = {key: row["to_best_fraction"] for key, row in rows.items() if "to_best_fraction" in row}
    figures = "; ".join(f"{100 * float(key):.0f} %: {gap(row)}" for key, row in rows.items())
    said = [row["said"] for row in rows.values()]
    return figures, YES if set(said) == {"lower"} else NO if "lower" not in said else PART


def large_member(read: Read) -> tuple[str, str]:
    row = read["beyond"]["switch to dit"]["0.4"]
    return f"r = .4: {gap(row)}", below(row["said"])


def processes(read: Read) -> tuple[str, str]:
    figures, said = no_loss(read["beyond"]["two processes"], "0.4")
    return f"{figures} of {read['beyond']['two processes']['plans']['0']['distance']['value']:.2f}", said


def seams(read: Read) -> tuple[str, str]:
    rows = read["beyond"]["per sample"]["fractions"]
    figures = "; ".join(f"r = {r}: {signed(row['gap'], row['gap_half_width'])}" for r, row in rows.items())
    better = [row["gap"] < -row["gap_half_width"] for row in rows.values()]
    worse = [row["gap"] > row["gap_half_width"] for row in rows.values()]
    return figures, YES if all(better) else PART if any(better) else NO if any(worse) else OPEN


def guide(read: Read) -> tuple[str, str]:
    row = read["beyond"]["guided"]["small_to_null"]
    return f"best of each: {gap(row)}", below(row["said"])


CLAIMS = (
    Claim(
        "Switch-DiT is below DTR at equal iterations",
        "FID of S 33.99 to 37.43, B 16.21 to 16.58",
        ("switch",),
        families("switch_dit against dtr"),
    ),
    Claim(
        "DTR is below DiT at equal iterations",
        "S 37.43 to 44.28, B 16.58 to 27.96",
        ("switch",),
        families("dtr against dit"),
    ),
    Claim(
        "Switch-DiT is below DiT at equal iterations",
        "S 33.99 to 44.28, B 16.21 to 27.96",
        ("switch",),
        families("switch_dit against dit"),
    ),
    Claim("… and at equal training time", "", ("switch",), at_equal_time),
    Claim("Switch-DiT comes to DiT's final distance sooner", "yes, in a figure", ("switch",), sooner),
    Claim("… in at most 70 % of its iterations", "", ("switch",), in_seventy),
    Claim("The same on colour pictures: Switch-DiT below DTR", "", ("colour",), colour("switch_dit against dtr")),
    Claim("… DTR below DiT", "", ("colour",), colour("dtr against dit")),
    Claim("… Switch-DiT below DiT", "", ("colour",), colour("switch_dit against dit")),
    Claim("The prior loss helps", "", ("ablations",), ablated("prior-0")),
    Claim("The skip of what is not routed helps", "", ("ablations",), ablated("skipless")),
    Claim(
        "The small member takes the first 40 % of the steps at no loss",
        "FID 9.20 to 8.95 (DiT-S, XL)",
        ("stitching",),
        early_steps("stitching"),
    ),
    Claim("… which is faster", "16.5 s to 11.0 s, 1.50×", ("stitching",), speed),
    Claim("… with U-Nets", "20.11 to 18.60 (LDM)", ("unets",), early_steps("unets")),
    Claim("… in colour", "", ("colour",), early_steps("colour")),
    Claim("… at any number of steps", "10 to 250 (figures)", ("stitching",), settings("steps")),
    Claim("… with other samplers", "DDPM, DDIM, DPM-Solver++ (figures)", ("stitching",), settings("samplers")),
    Claim("… at any guidance", "1 to 4 (figures)", ("stitching",), settings("guidance")),
    Claim("… with three members, in some mix", "9.21 to 9.19 at 1.7×", ("stitching",), three),
    Claim(
        "Stitching is better than fewer steps of the large member at equal time",
        "",
        ("stitching",),
        fewer_steps("stitching"),
    ),
    Claim("… in colour", "", ("colour",), fewer_steps("colour")),
    Claim(
        "Who goes first: small, then at random, interleaved, large",
        "10.06, 12.94, 19.02, 27.61",
        ("stitching",),
        first,
    ),
    Claim(
        "Tuning each member on its own times helps, and more than on all",
        "16.49 to 13.35; all times 16.04",
        ("intervals",),
        tuned,
    ),
    Claim("Members agree at high noise and part later", "cosine near 1, falling (figure 2)", ("intervals",), alike),
    Claim("A searched plan is ahead of the best fraction", "", ("beyond",), searched),
    Claim("Switch-DiT as the large member is ahead of DiT", "", ("beyond",), large_member),
    Claim("The small member may be of another noise process: 40 % at no loss", "", ("beyond",), processes),
    Claim("A seam for each sample is better than one for all", "", ("beyond",), seams),
    Claim("The small member is a better guide than no label", "", ("beyond",), guide),
)
