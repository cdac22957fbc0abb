"""What the papers claim beside what came out here: a row each, from results alone, with a verdict by rule.

"reproduced": an interval (95 %) says what the paper says. "not reproduced": it says the contrary. "undecided at this
scale": it says neither. "in part": of several settings, some are reproduced. Over training seeds the interval is of
pairs that share a seed; what it would be of independent runs is told beside. Of claims that something costs nothing,
`MARGIN` is how much is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np

from hemstitch.evaluate.score import NORMAL_95, Score

from . import tables
from .fields import distance_of
from .stitching import beside
from .tables import Summary, gap, is_same, over, reached, signed

YES, NO, OPEN, PART = "reproduced", "not reproduced", "undecided at this scale", "in part"
SAME = "the same plans"
OURS = {YES: "yes", NO: "no", OPEN: "undecided"}  # of what no paper claims
MARGIN = 0.05  # of a distance: by as much two trainings of one network may differ
ALIKE = 0.95  # cosine from which on members count as alike
FASTER = 1.7  # as the mix of three members that the paper shows
SAME_TIME = 0.02  # plans whose times differ by no more count as equally fast
IN_ORDER = ("switch_dit", "dtr", "dit")  # by distance, as is claimed
Read = Mapping[str, Summary]
Here = Callable[[Read], tuple[str, str]]


class Claim(NamedTuple):
    """parts: whose results it needs. paper: its figures, of ImageNet 256 unless said. here: (figures, verdict)."""

    says: str
    paper: str
    parts: tuple[str, ...]
    here: Here


def table(read: Read) -> str:
    rows = []
    for claim in CLAIMS:
        if set(claim.parts) <= set(read):
            figures, said = claim.here(read)
            rows.append([claim.says, claim.paper, figures, f"**{said if claim.paper else OURS.get(said, said)}**"])
    return tables.table(["claim", "in the paper", "here", "verdict"], rows)


# Rules


def below(said: str) -> str:
    """Of a difference that is claimed to be below zero."""
    return {"lower": YES, "higher": NO}.get(said, OPEN)


def above(said: str) -> str:
    """Of a difference that is claimed to be above zero."""
    return {"higher": YES, "lower": NO}.get(said, OPEN)


def of_all(verdicts: Iterable[str]) -> str:
    """Of several settings together."""
    found = set(verdicts)
    return YES if found == {YES} else PART if YES in found else NO if NO in found else OPEN


def at_no_loss(of: Loss) -> str:
    """Of a gap to a distance, claimed to be none: at most a margin, whatever the interval leaves open."""
    over = of.row["gap"] - MARGIN * of.whole["value"]
    of_gap, of_whole, both = tables.variances(*of)
    half = NORMAL_95 * max(0.0, of_gap + MARGIN**2 * of_whole - 2 * MARGIN * both) ** 0.5
    return YES if over + half <= 0 else NO if over - half > 0 else OPEN


class Loss(NamedTuple):
    """What a plan costs. row: `mixed` less `whole`, distances of the same samples."""

    row: Summary
    mixed: Summary
    whole: Summary

    @property
    def said(self) -> str:
        return f"{signed(*tables.relative(*self))} %"

    @property
    def of(self) -> str:
        return f"{self.said} of {self.whole['value']:.2f}"


def first_two_fifths(result: Summary) -> Loss:
    """Of r = .4, by the samples that look closer if there are any."""
    if "closer" in result:
        return Loss(result["closer"], result["closer"]["mixed"], result["closer"]["whole"])
    return of_plans(result["plans"], "0.4", "0")


def of_plans(plans: Summary, key: str, largest: str) -> Loss:
    return Loss(plans[key]["to_largest"], plans[key]["distance"], plans[largest]["distance"])


# Switch-DiT


def families(part: str, pair: str, which: str = "at_the_end") -> Here:
    def here(read: Read) -> tuple[str, str]:
        end = read[part][which][pair]
        alone = f"as independent runs ± {end['welch']['half_width']:.2g}"
        return f"{signed(end['gap'], end['half_width'])} (× {over(end['ratio'])}; {alone})", below(end["said"])

    return here


def apart(read: Read) -> tuple[str, str]:
    """Each family's own interval is below those after it, without pairs."""
    ends = read["switch"]["end"]["distance"]
    said = [order(ends[a], ends[b]) for a, b in combinations(IN_ORDER, 2)]
    figures = ", ".join(over(ends[family]) for family in IN_ORDER)
    return f"{figures}: {said.count(YES)} of {len(said)} pairs apart", YES if set(said) == {YES} else NO


def order(a: Summary, b: Summary) -> str:
    """Of two intervals over seeds, claimed to be apart, the first below."""
    if a["mean"] + a["half_width"] < b["mean"] - b["half_width"]:
        return YES
    return NO if b["mean"] + b["half_width"] < a["mean"] - a["half_width"] else OPEN


def sooner(read: Read) -> tuple[str, str]:
    """The share of the iterations after which it is there, if all seeds come there."""
    shares = read["switch"]["share_to_reach"]["switch_dit to dit"]
    if shares["mean"] is None:
        return reached(shares), NO if not any(shares["values"]) else OPEN
    low, high = (shares["mean"] + sign * shares["half_width"] for sign in (-1, 1))
    return reached(shares), YES if high < 1 else NO if low > 1 else OPEN


def in_seventy(read: Read) -> tuple[str, str]:
    row = read["switch"]["sooner"]["switch_dit to dit"]
    return f"then {signed(row['gap'], row['half_width'])}", below(row["said"])


def ablated(variant: str, named: str) -> Here:
    """The base is better than a variant: the variant's gap to it is above zero."""

    def here(read: Read) -> tuple[str, str]:
        one = read["ablations"]["variants"][variant]
        row = one["steps"][max(one["steps"], key=int)]["distance"]["to_base"]
        return f"{named} {signed(row['gap'], row['half_width'])}", above(row["said"])

    return here


def prior(read: Read) -> tuple[str, str]:
    """Part A's Switch-DiT is better than the one without the loss: less it, that one is above zero."""
    marks = read["attempts"]["attempts"]["no prior"]["marks"]
    row = marks[max(marks, key=int)]["to_part_a"]["switch_dit"]
    return f"without less with {signed(row['gap'], row['half_width'])} (× {over(row['ratio'])})", above(row["said"])


def attempted(key: str, pair: str = "switch_dit to dit") -> Here:
    """Of part F, at the end."""

    def here(read: Read) -> tuple[str, str]:
        marks = read["attempts"]["attempts"][key]["marks"]
        row = marks[max(marks, key=int)]["gaps"][pair]
        return f"{signed(row['gap'], row['half_width'])} (× {over(row['ratio'])})", below(row["said"])

    return here


# T-Stitch


def early_steps(part: str) -> Here:
    def here(read: Read) -> tuple[str, str]:
        loss = first_two_fifths(read[part]["fractions"])
        return loss.of, at_no_loss(loss)

    return here


def unets(read: Read) -> tuple[str, str]:
    """With how far apart the members are, which the paper's are less."""
    found = read["unets"]
    larger = found["trained/large"]["parameters"] / found["trained/small"]["parameters"]
    alone = {r: found["fractions"]["plans"][r]["distance"]["value"] for r in ("0", "1")}
    figures, said = early_steps("unets")(read)
    return f"{figures}; the small one of 1/{larger:.0f} of the parameters, {alone['1'] / alone['0']:.1f}× as far", said


def speed(read: Read) -> tuple[str, str]:
    of = read["stitching"]["time"]["speed"]["0.4"]
    figures = (
        f"{of['times']:.2f}× (rounds: {of['least']:.2f} to {of['most']:.2f}), {100 * of['of_ideal']:.0f} % of the ideal"
    )
    return figures, YES if of["least"] > 1 else NO if of["most"] < 1 else OPEN


def fewer_steps(part: str) -> Here:
    """Stitching is better than the large member alone in fewer steps, at equal time: at how many of the fractions."""

    def here(read: Read) -> tuple[str, str]:
        rows = read[part]["fractions to fewer steps"]
        said = [below(row["said"]) for row in rows.values()]
        figures = f"r = .4: {gap(rows['0.4'])}; of {len(said)} better at {said.count(YES)}, worse at {said.count(NO)}"
        return figures, of_all(said)

    return here


def first(read: Read) -> tuple[str, str]:
    """Each order is better than the one after it; the random one is the mean of its draws."""
    plans = read["stitching"]["orders"]["plans"]
    kinds = ("small_to_large", "decreasing", "interleaved", "large_to_small")
    scores = [mean([distance_of(row) for key, row in plans.items() if key.startswith(kind)]) for kind in kinds]
    figures = ", ".join(f"{score.value:.2f}" for score in scores)
    return figures, of_all(below(beside(a, b)["said"]) for a, b in pairwise(scores))


def mean(scores: list[Score]) -> Score:
    """Of plans on the same samples, which still compares as a pair with others."""
    draws = np.mean([score.draws for score in scores], axis=0)
    value = float(np.mean([score.value for score in scores]))
    return Score(value, draws, resampled=scores[0].resampled, biased_by_size=True)


def three(read: Read) -> tuple[str, str]:
    """Of the mixes that are as much faster as the paper's, the slowest: chosen by its time alone."""
    plans = read["stitching"]["three members"]["plans"]
    fast = {key: row for key, row in plans.items() if ":" in key and row["times"] >= FASTER}
    if not fast:
        return f"no mix is {FASTER} times as fast", OPEN
    key = min(fast, key=lambda key: fast[key]["times"])
    loss = of_plans(plans, key, "large")
    return f"{key}, {fast[key]['times']:.1f}×: {loss.of}", at_no_loss(loss)


def to_middle(read: Read) -> tuple[str, str]:
    """Mixes of three that are no faster than the middle member alone are better than it."""
    plans = read["stitching"]["three members"]["plans"]
    slower = {key: row for key, row in plans.items() if ":" in key and row["times"] <= plans["middle"]["times"]}
    figures = "; ".join(f"{key}: {gap(row['to_middle'])}" for key, row in slower.items())
    return figures, of_all(below(row["to_middle"]["said"]) for row in slower.values())


def settings(group: str, more: Mapping[str, str] | None = None, but: tuple[str, ...] = ()) -> Here:
    """more: results of other names that belong to the group, by what they are called in it. but: what does not, by
    how its name begins."""

    def here(read: Read) -> tuple[str, str]:
        stitching = read["stitching"]
        found = {name.partition("/")[2]: one for name, one in stitching.items() if name.startswith(f"{group}/")}
        found |= {called: stitching[name] for called, name in (more or {}).items()}
        named = [name for name in found if not name.startswith(but)]
        each = {name: first_two_fifths(found[name]) for name in sorted(named, key=tables.in_order)}
        return "; ".join(f"{name}: {of.said}" for name, of in each.items()), of_all(map(at_no_loss, each.values()))

    return here


def fewer_around(read: Read) -> tuple[str, str]:
    """r = .4 against fewer steps, at all other settings."""
    found = {name: one for name, one in read["stitching"].items() if "to_fewer_steps" in one}
    but = ("samplers/heun 10", "guidance/1.5")  # which any plan fails with, and which is among the steps already
    each = {name: one["to_fewer_steps"]["0.4"] for name, one in found.items() if name not in but}
    better = [f"{name.replace('/', ' ')}: {gap(row)}" for name, row in each.items() if row["said"] == "lower"]
    worse = sum(row["said"] == "higher" for row in each.values())
    return "; ".join([*better, f"worse at {worse} of {len(each)}"]), of_all(below(row["said"]) for row in each.values())


def early(attempt: str) -> Here:
    def here(read: Read) -> tuple[str, str]:
        one = read["early"]["judged"][attempt]
        loss = Loss(one["to_largest"], one["plans"]["0.4"]["distance"], one["plans"]["0"]["distance"])
        return f"{loss.of}; {one['times_as_fast']:.2f}×", at_no_loss(loss)

    return here


def early_to_fewer(attempt: str) -> Here:
    def here(read: Read) -> tuple[str, str]:
        one = read["early"]["judged"][attempt]
        there, own = one["to_fewer"], one["to_fewer_there"]
        figures = f"{gap(there)} than {one['fewer_steps']} steps there; {gap(own)} than at part B's levels"
        return figures, of_all(below(row["said"]) for row in (there, own))

    return here


def tuned(read: Read) -> tuple[str, str]:
    row = read["intervals"]["table"]["three"]
    better, own = (row["gaps"][which] for which in ("own times less as trained", "own times less all times"))
    figures = f"{over(row['as trained']['distance'])}; {gap(better)}; own times to all {gap(own)}"
    return figures, of_all(below(one["said"]) for one in (better, own))


def alike(curve_of: Callable[[Summary], Summary]) -> Here:
    """The cosine of the small member to the large one is near one after a fifth of the steps, and less at the end."""

    def here(read: Read) -> tuple[str, str]:
        curve = curve_of(read["intervals"]["curves"])
        early, late = (
            (curve["value"][at], tables.GROUPED_95 * curve["error"][at])
            for at in (len(curve["value"]) // 5, len(curve["value"]) - 1)
        )
        change, both = late[0] - early[0], late[1] + early[1]
        parts = YES if change < -both else NO if change > both else OPEN
        near = YES if early[0] - early[1] > ALIKE else NO if early[0] + early[1] < ALIKE else OPEN
        said = NO if NO in (parts, near) else of_all((parts, near))
        return f"{tables.pm(*early)} after a fifth of the steps, {tables.pm(*late)} at the end", said

    return here


def frequencies(read: Read) -> tuple[str, str]:
    """The step from which on a band has its finished power, in every group of samples."""
    settled = read["intervals"]["curves"]["settled_by_group"]["large"]
    figures = ", ".join(f"{band} {min(steps)} to {max(steps)}" for band, steps in settled.items())
    in_order = [list(steps) == sorted(steps) and steps[0] < steps[-1] for steps in zip(*settled.values(), strict=True)]
    return f"finished from step: {figures}", YES if all(in_order) else OPEN if any(in_order) else NO


# Beyond


def searched(kind: str) -> Here:
    def here(read: Read) -> tuple[str, str]:
        plans = read["beyond"]["found"]["plans"]
        rows = {key.removeprefix("found "): row.get(f"to_best_{kind}") for key, row in plans.items() if key[:2] == "fo"}
        told = {key: row for key, row in rows.items() if row is not None}
        each = {
            key: f"the plan found is {row['best']}" if is_same(row) else f"{gap(row)} than {row['best']}"
            for key, row in told.items()
        }
        figures = "; ".join(f"{100 * float(key):.0f} %: {said}" for key, said in each.items())
        if told and all(map(is_same, told.values())):
            return figures, SAME
        return figures, of_all(NO if is_same(row) else below(row["said"]) for row in told.values())

    return here


def large_member(read: Read) -> tuple[str, str]:
    row = read["beyond"]["switch to dit"]["0.4"]
    return f"r = .4: {gap(row)}", below(row["said"])


def processes(read: Read) -> tuple[str, str]:
    loss = first_two_fifths(read["beyond"]["two processes"])
    return loss.of, at_no_loss(loss)


def seams(read: Read) -> tuple[str, str]:
    rows = read["beyond"]["per sample"]["fractions"]
    figures = "; ".join(
        f"r = {r}: {signed(row['gap'], row['gap_half_width'])} at {row['cost']:.2f} of the time"
        for r, row in rows.items()
    )
    return figures, of_all(seam(row) for row in rows.values())


def seam(row: Mapping[str, Any]) -> str:
    """Better, if it does not take longer; worse, if it does not save time."""
    if row["gap"] < -row["gap_half_width"] and row["cost"] <= 1 + SAME_TIME:
        return YES
    return NO if row["gap"] > row["gap_half_width"] and row["cost"] >= 1 - SAME_TIME else OPEN


def guide(read: Read) -> tuple[str, str]:
    found = read["beyond"]["guided"]
    best = " to ".join(found["best"][kind] for kind in ("small member", "null label"))
    return f"{best}: {gap(found['small_to_null'])}", below(found["small_to_null"]["said"])


CLAIMS = (
    Claim(
        "Switch-DiT is below DTR at equal iterations",
        "FID of S 33.99, 37.43; B 16.21, 16.58; L 8.78, 8.90; XL 8.76, 10.85",
        ("switch",),
        families("switch", "switch_dit to dtr"),
    ),
    Claim(
        "DTR is below DiT at equal iterations",
        "S 37.43, 44.28; B 16.58, 27.96; L 8.90, 12.59; but XL 10.85, 9.40",
        ("switch",),
        families("switch", "dtr to dit"),
    ),
    Claim(
        "Switch-DiT is below DiT at equal iterations",
        "S 33.99, 44.28; B 16.21, 27.96; L 8.78, 12.59; XL 8.76, 9.40",
        ("switch",),
        families("switch", "switch_dit to dit"),
    ),
    Claim("All three are in this order, their intervals apart", "", ("switch",), apart),
    Claim(
        "Under guidance 1.5, as the paper evaluates: Switch-DiT is below DTR",
        "the figures above",
        ("switch",),
        families("switch", "switch_dit to dtr", "under_guidance"),
    ),
    Claim(
        "Under guidance 1.5: DTR is below DiT",
        "the figures above",
        ("switch",),
        families("switch", "dtr to dit", "under_guidance"),
    ),
    Claim(
        "Under guidance 1.5: Switch-DiT is below DiT",
        "the figures above",
        ("switch",),
        families("switch", "switch_dit to dit", "under_guidance"),
    ),
    Claim(
        "Switch-DiT is below DiT at equal training time",
        "",
        ("switch",),
        families("switch", "switch_dit to dit", "at_equal_time"),
    ),
    Claim("Switch-DiT comes to DiT's final distance sooner", "yes, in a figure", ("switch",), sooner),
    Claim("Switch-DiT is at DiT's final distance after 70 % of the iterations", "", ("switch",), in_seventy),
    Claim(
        "On colour pictures: Switch-DiT is below DTR",
        "",
        ("colour",),
        families("colour", "switch_dit to dtr"),
    ),
    Claim("On colour pictures: DTR is below DiT", "", ("colour",), families("colour", "dtr to dit")),
    Claim("On colour pictures: Switch-DiT is below DiT", "", ("colour",), families("colour", "switch_dit to dit")),
    Claim(
        "On colour pictures: Switch-DiT is below DiT at equal training time",
        "",
        ("colour",),
        families("colour", "switch_dit to dit", "at_equal_time"),
    ),
    Claim("On digits: Switch-DiT is below DTR", "", ("ablations",), ablated("dtr", "DTR less Switch-DiT")),
    Claim("On digits: Switch-DiT is below DiT", "", ("ablations",), ablated("dit", "DiT less Switch-DiT")),
    Claim(
        "The prior loss helps, on digits",
        "argued, section 4.3",
        ("ablations",),
        ablated("prior-0", "without less with"),
    ),
    Claim("The prior loss helps, on Fashion-MNIST", "argued, section 4.3", ("attempts",), prior),
    Claim(
        "Adding what is not routed, z − routed, helps, on digits",
        "",
        ("ablations",),
        ablated("skipless", "without less with"),
    ),
    Claim(
        "Under the papers' process (linear betas, ε): Switch-DiT is below DiT",
        "S 33.99, 44.28",
        ("attempts",),
        attempted("process"),
    ),
    Claim("Without the prior loss: Switch-DiT is below DiT", "", ("attempts",), attempted("no prior")),
    Claim(
        "Under the papers' process: DTR is below DiT",
        "S 37.43, 44.28",
        ("attempts",),
        attempted("process", "dtr to dit"),
    ),
    Claim("Half as wide: Switch-DiT is below DiT", "", ("attempts",), attempted("narrow")),
    Claim(
        "The small member takes the first 40 % of the steps at no loss",
        "FID 9.20 to 8.95 (DiT-S, XL)",
        ("stitching",),
        early_steps("stitching"),
    ),
    Claim("The first 40 % by the small member: faster", "16.5 s to 11.0 s, 1.50×", ("stitching",), speed),
    Claim(
        "The first 40 % at no loss with U-Nets (here a pair far more unequal)",
        "20.11 to 18.60 (LDM); 1/16, 2.0×",
        ("unets",),
        unets,
    ),
    Claim("The first 40 % at no loss in colour", "", ("colour",), early_steps("colour")),
    Claim(
        "The first 40 % at no loss at any number of steps",
        "10 to 250 (figures)",
        ("stitching",),
        settings("steps", {"50": "fractions"}),
    ),
    Claim(
        "The first 40 % at no loss with other samplers",
        "DDPM, DDIM, DPM-Solver++ (figures)",
        ("stitching",),
        settings("samplers", but=("heun",)),
    ),
    Claim("The first 40 % at no loss at any guidance", "1 to 4 (figures)", ("stitching",), settings("guidance")),
    Claim("Three members are as good as the large one, 1.7 times as fast", "9.19 to 9.21", ("stitching",), three),
    Claim("Mixes of three are better than the middle member alone, which is faster", "", ("stitching",), to_middle),
    Claim(
        "Part G: the first 40 % at no loss where the steps lie at the noise levels of the paper's",
        "9.20 to 8.95",
        ("early",),
        early("levels"),
    ),
    Claim("Part G: there, with the middle member first", "", ("early",), early("levels, middle")),
    Claim(
        "Part G: there, the small member first is better than fewer steps of the large one at equal time",
        "",
        ("early",),
        early_to_fewer("levels"),
    ),
    Claim(
        "Part G: there, the middle member first is better than fewer steps of the large one at equal time",
        "",
        ("early",),
        early_to_fewer("levels, middle"),
    ),
    Claim(
        "Stitching is better than fewer steps of the large member at equal time: every fraction at 50 steps",
        "",
        ("stitching",),
        fewer_steps("stitching"),
    ),
    Claim(
        "Stitching is better than fewer steps at equal time: r = .4 at other steps, samplers, guidance",
        "",
        ("stitching",),
        fewer_around,
    ),
    Claim(
        "Stitching is better than fewer steps of the large member at equal time, in colour",
        "",
        ("colour",),
        fewer_steps("colour"),
    ),
    Claim(
        "Who goes first matters: small, at random, interleaved, large",
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
    Claim(
        "Members agree at high noise and part later, in cosine: each one's own latents",
        "near 1, then falling (figure 2)",
        ("intervals",),
        alike(lambda curves: curves["latents"]["small"]["mean"]),
    ),
    Claim(
        "The same of the noise that they predict of the same latents",
        "",
        ("intervals",),
        alike(lambda curves: curves["eps"]["small"]["cosine"]["mean"]),
    ),
    Claim(
        "The same of the images that they predict of the same latents",
        "",
        ("intervals",),
        alike(lambda curves: curves["x0"]["small"]["cosine"]["mean"]),
    ),
    Claim("Early steps set the low frequencies, late ones the high", "figure 2", ("intervals",), frequencies),
    Claim("A searched plan is ahead of the best fraction", "", ("beyond",), searched("fraction")),
    Claim("A searched plan is ahead of the large member in fewer steps", "", ("beyond",), searched("steps")),
    Claim("Switch-DiT as the large member is ahead of DiT", "", ("beyond",), large_member),
    Claim("The small member may be of another noise process: the first 40 % at no loss", "", ("beyond",), processes),
    Claim("A seam for each sample is better than one for all", "", ("beyond",), seams),
    Claim("The small member is a better guide than no label, in distance", "", ("beyond",), guide),
)
