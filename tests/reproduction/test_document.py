"""The whole of it with made-up results: every task of every part, and the document with its tables and pictures."""

import json
import math
import re
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hemstitch import AdaptivePlan, Plan
from hemstitch.errors import HemstitchError
from hemstitch.evaluate.score import NORMAL_95, Score
from hemstitch.stitch.search.cost import Cost, Costs
from hemstitch.stitch.search.per_sample import PerSample
from hemstitch.stitch.search.trunk import Candidate
from reproduction import (
    PARTS,
    ablations,
    attempts,
    beyond,
    choose,
    claims,
    colour,
    early,
    emoji,
    families,
    intervals,
    networks,
    pictures,
    stitching,
    switch,
    tables,
    unets,
    write,
)
from reproduction.fields import Field, draws, told
from reproduction.work import Ledger, Task, work

DOCUMENT = Path(__file__).parents[2] / "docs" / "reproduction.md"
BETTER = {"dit": 1.0, "dtr": 0.95, "switch_dit": 0.85}
COST = {"small": 1.0, "middle": 4.0, "large": 9.0}


def score(value, seed=0, samples=1000):
    """With draws that are the same for all, so that pairs differ by little."""
    draws = value * (1 + 0.02 * np.random.default_rng(0).standard_normal(50) + 0.001 * np.sin(np.arange(50) + seed))
    return Score(value, draws, resampled=samples, biased_by_size=True)


def figures(distance, seed=0):
    near = math.exp(-distance / 50)
    return {
        "distance": told(score(distance, seed)),
        "precision": told(score(0.9 * near)),
        "recall": told(score(0.8 * near)),
        "accuracy": told(score(0.95 * near)),
    }


def distance_of_plan(plan):
    """Small early costs little, late much; few steps cost some."""
    whole = 10 + 40 / plan.steps
    for i, member in enumerate(plan.assignment):
        whole += {"small": 30, "middle": 10, "large": 0}[member] / plan.steps * (i / plan.steps) ** 3
    return whole


def a_table(self, name, plans, look, closer=0):
    scores = {key: score(distance_of_plan(plan), i) for i, (key, plan) in enumerate(plans.items())}
    alone = next((scores[k] for k, p in plans.items() if p.counts == {"large": look.steps}), None)
    rows = {}
    for key, plan in plans.items():
        rows[key] = {"plan": json.loads(plan.to_json()), **figures(scores[key].value)}
        rows[key]["draws"] = draws(scores[key])
        if alone is not None:
            rows[key]["to_largest"] = stitching.beside(scores[key], alone)
    looked = {}
    if closer:
        gap = stitching.beside(scores["0.4"], alone)
        looked = {"closer": {"samples": closer, "whole": told(alone), "mixed": told(scores["0.4"]), **gap}}
    return looked | {"look": vars(look), "plans": rows}


def some_costs(*_, **__):
    entries = [Cost(m, guided, c * (1 + guided), 0, 0, 0) for m, c in COST.items() for guided in (False, True)]
    return {"costs": Costs("CPU", "float32", 1, 125, "ddim", tuple(entries), "").to_data()}


def some_seconds(members, plans, look):
    def taken(plan):
        return [(1 + 0.01 * i) * sum(COST[m] for m in plan.assignment) / 1000 for i in range(5)]

    return {"seconds_per_image": {key: taken(plan) for key, plan in plans.items()}, "batch": 50}


def trained(recipe, *_):
    return {"recipe": recipe.hash, "steps": recipe.train.steps, "milliseconds_a_step": 300.0, "parameters": 1_270_000}


def family_judged(what, mark, last, seed):
    family = next(name for name in ("switch_dit", "dtr", "dit") if f"-{name}-" in str(what))
    distance = BETTER[family] * (12 + 0.3 * seed) * last / mark
    return figures(distance) | ({"all": figures(distance - 1)} if mark == last else {})


def a_way(way):
    return distance_of_plan(Plan.explicit(["small"] * way.small + ["large"] * (way.steps - way.small)))


def unet_table(field, pair, ways, num, kept):
    base = score(a_way(unets.Way(unets.STEPS)))
    rows = {}
    for i, (key, way) in enumerate(ways.items()):
        mine = score(a_way(way), i)
        rows[key] = figures(mine.value) | {"to_largest": stitching.beside(mine, base)}
        rows[key]["fraction_to_it"] = stitching.beside(base, mine)
    return {"samples": num, "plans": rows}


def unet_seconds(pair, ways, kept):
    return {
        "batch": 25,
        "seconds_per_image": {
            key: [0.001 * (9 * (way.steps - way.small) + way.small + 0.1 * i) for i in range(7)]
            for key, way in ways.items()
        },
    }


def some_curves(paths, group):
    x = np.linspace(0, 1, intervals.STEPS + 1)
    wave = 0.001 * group
    band = lambda y: {key: (y + wave + shift).tolist() for key, shift in (("mean", 0), ("low", -0.1), ("high", 0.1))}  # noqa: E731
    alike = {name: {"cosine": band(1 - 0.3 * x[1:]), "distance": band(x[1:])} for name in ("small", "middle")}
    parts = {part: (1 - x**power).tolist() for part, power in (("low", 1), ("middle", 2), ("high", 4))}
    return {
        "curves": {
            "t": x[1:].tolist(),
            "latents": {name: band(1 - 0.3 * x**2) for name in ("small", "middle")},
            "eps": alike,
            "x0": alike,
            "power": dict.fromkeys(paths, parts),
            "unsettled": dict.fromkeys(paths, parts),
        }
    }


def a_search(field, load, out):
    plan = Plan.steps_each({"small": 20, "large": 15})
    results = [{"budget": b, "plan": json.loads(plan.to_json())} for b in beyond.BUDGETS]
    return {"seconds": 1.0, "images_of_the_largest": 2.0, "results": results} | some_costs()


def seams(pair, ledger):
    fixed = Candidate(Plan.fractions({"small": 0.4, "large": 0.6}, 25), (True,) * 25)
    plan = AdaptivePlan("small", "large", 25, 0.5)
    row = PerSample(fixed, plan, 10.2, 1.01, {"change above": 11.0}, score(11.5, 1), score(12.0)).to_data()
    return {"samples": 1, "fractions": dict.fromkeys(("0.4", "0.6", "0.8"), row)}


def guides(field, load, kept):
    names = ["alone", *(f"{kind}, {w:g}" for kind in ("null label", "small member") for w in beyond.GUIDES)]
    best = {"null label": names[1], "small member": names[-1]}
    held = stitching.beside(score(12, 1), score(13))
    return {"models": {name: figures(12 + i) for i, name in enumerate(names)}, "best": best, "small_to_null": held}


def an_early_pair():
    whole, mixed = score(7.0), score(7.1, 1)
    plans = {"0": whole, "0.4": mixed, "fewer": whole}
    plans = {key: {"distance": told(of), "draws": draws(of)} for key, of in plans.items()}
    gap = stitching.beside(mixed, whole)
    told_ = {"log_snr_at_seam": -3.4, "times_as_fast": 1.5, "fewer_steps": 17}
    return told_ | {"plans": plans, "to_largest": gap, "to_fewer": gap}


def some_errors(field, process, answers):
    ratio = {"value": 1.1, "half_width": 0.02}
    smaller = {name: ratio for name in answers if name != "large"}
    row = {"log_snr": -1.0, "error": {"large": 0.1}, "to_large": smaller}
    return {"images": 1, "levels": {f"{share:g}": row for share in early.LEVELS}}


def use(*_):
    one = {"experts": 12, "never": 2, "divergence": 0.2, "within": 0.7, "most_used": [900.0] * 4, "shared": [1] * 4}
    return {"untrained": one, "trained": one}


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """A ledger with results of all tasks, whose heavy work is replaced."""
    stub = SimpleNamespace(spec=SimpleNamespace(num_classes=10))
    for module in (networks, switch):
        monkeypatch.setattr(module, "train", trained)
    monkeypatch.setattr(Task, "there", True)
    for module in (choose, switch, stitching, beyond, colour):
        monkeypatch.setattr(module, "at", lambda run, step: stub)
    monkeypatch.setattr(early, "begin_at", lambda *_: None)
    field = {"classifier": "c", "classifier_accuracy": 0.9, "held_out": 1000, "reference": "images"}
    field["training_images"] = figures(0.1)
    monkeypatch.setattr(Field, "prepare", lambda self: field)
    monkeypatch.setattr(choose, "_judge", lambda *_: figures(50.0))
    monkeypatch.setattr(
        switch, "judge", lambda field, run, mark, kept, seed: family_judged(f"{run}", mark, switch.STEPS, seed)
    )
    monkeypatch.setattr(
        attempts, "judge", lambda field, run, mark, num, kept, seed: family_judged(f"{run}", mark, 3000, seed)
    )
    monkeypatch.setattr(switch, "rounded", lambda field, mine, *_: trained(mine) | figures(40.0))
    monkeypatch.setattr(
        switch, "guided", lambda field, run, kept, seed: family_judged(f"{run}", switch.STEPS, switch.STEPS, seed)
    )
    paces = {
        family: [0.3 * b * (1 + 0.01 * i) for i in range(9)] for family, b in zip(BETTER, (1, 1, 1.2), strict=True)
    }
    for module in (switch, colour):
        monkeypatch.setattr(module, "pace", lambda *_: {"seconds_a_step": paces})
    monkeypatch.setattr(stitching.Pair, "table", a_table)
    monkeypatch.setattr(stitching, "costs", some_costs)
    monkeypatch.setattr(stitching, "seconds", some_seconds)
    monkeypatch.setattr(unets, "train", lambda *_: {"steps": 10, "milliseconds_a_step": 100.0, "parameters": 10_000})
    monkeypatch.setattr(unets, "table", unet_table)
    monkeypatch.setattr(unets, "seconds", unet_seconds)
    monkeypatch.setattr(intervals, "tune", lambda *_: {"steps": 1000, "milliseconds_a_step": 10.0, "intervals": []})
    ways = {"as trained": 12.0, "own times": 11.0, "all times": 11.9}
    monkeypatch.setattr(
        intervals,
        "judge",
        lambda field, paths, plan, kept, seed: (
            figures(ways[kept.parent.name] + seed / 10)
            | {"draws": score(ways[kept.parent.name] + seed / 10, seed).draws.tolist()}
        ),
    )
    monkeypatch.setattr(intervals, "curves", some_curves)
    monkeypatch.setattr(beyond, "searched", a_search)
    monkeypatch.setattr(beyond, "per_sample", seams)
    monkeypatch.setattr(beyond, "guided", guides)
    monkeypatch.setattr(ablations, "taught", lambda variant, recipe, run: trained(recipe) | {"network": "SwitchDiT"})
    monkeypatch.setattr(
        ablations,
        "judge",
        lambda where, variant, run, mark, kept, seed: figures(20 + len(variant.name) + hash_of(run.name) / 50),
    )
    monkeypatch.setattr(ablations, "experts", use)
    monkeypatch.setattr(emoji, "prepare", lambda folder: {"train": {}, "held": {}})
    monkeypatch.setattr(colour, "prepare", lambda _: field)
    monkeypatch.setattr(
        colour, "judge", lambda field, run, mark, kept, seed: family_judged(run, mark, colour.STEPS, seed)
    )
    monkeypatch.setattr(
        colour, "copies", lambda *_: {"near_copies": told(score(0.1)), "nearer_learned": told(score(0.6))}
    )
    monkeypatch.setattr(colour, "measured", some_costs)
    monkeypatch.setattr(colour, "seconds", some_seconds)
    monkeypatch.setattr(early, "judge", lambda *_: an_early_pair())
    monkeypatch.setattr(early, "errors", some_errors)
    monkeypatch.setattr(early.UNet2DModel, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(early.Member, "load", lambda self: SimpleNamespace(process=None))
    ledger = Ledger(tmp_path / "out" / "results")
    for part in PARTS:
        module = sys.modules[f"reproduction.{part}"]
        assert work(module.tasks(tmp_path / "out"), ledger, lambda text: None) == [], part
    return tmp_path / "out"


def hash_of(name):
    return sum(map(ord, name)) % 50


def test_every_table_and_picture_is_made_of_results_and_has_its_place(made_up, tmp_path):
    document = tmp_path / "docs" / "reproduction.md"
    document.parent.mkdir()
    empty = re.sub(r"(<!-- [^/]*? -->\n).*?(<!-- / -->)", r"\1\2", DOCUMENT.read_text(), flags=re.S)
    document.write_text(empty)
    write.write(made_up, tmp_path / "committed", document)
    text = document.read_text()
    places = re.findall(r"<!-- ([^/]*?) -->\n(.*?)<!-- / -->", text, flags=re.S)
    assert {name for name, _ in places} == {*tables.TABLES, *tables.BESIDE, "claims", "judge", "took", "state"}
    for name, block in places:
        rows = [line for line in block.splitlines() if line]
        assert len(rows) > 2, name
        assert len({line.count("|") for line in rows}) == 1, name
        assert "nan" not in block, name
    shown = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text))
    assert shown == set(pictures.PICTURES)
    for name in shown:
        image = Image.open(BytesIO((document.parent / name).read_bytes()))
        assert min(image.size) > 300, name
    ledger, committed = Ledger(made_up / "results"), Ledger(tmp_path / "committed")
    for part in PARTS:
        assert committed.all(part) == ledger.all(part) != {}
        for task in sys.modules[f"reproduction.{part}"].tasks(made_up):
            assert committed.done(task.name)
    write.refresh(tmp_path / "committed", document)
    assert document.read_text() == text


def a_loss(gap, half, whole, error=0.0, mixed_error=None):
    """With a distance that is known exactly, unless said."""
    row = {
        "gap": gap,
        "half_width": half,
        "said": "higher" if gap > half else "lower" if gap < -half else "no difference",
    }
    mixed = (half / NORMAL_95) if mixed_error is None else mixed_error
    return claims.Loss(row, {"value": whole + gap, "error": mixed}, {"value": whole, "error": error})


def test_claims_are_judged_by_rule():
    assert claims.at_no_loss(a_loss(0.1, 0.3, 10.0)) == claims.YES  # at most 0.4, and 0.5 is nothing
    assert claims.at_no_loss(a_loss(0.1, 0.3, 6.0)) == claims.OPEN  # at most 0.4, and 0.3 is nothing
    assert claims.at_no_loss(a_loss(1.0, 0.3, 10.0)) == claims.NO
    assert claims.at_no_loss(a_loss(-1.0, 0.3, 10.0)) == claims.YES
    assert [claims.above(said) for said in ("lower", "higher", "no difference")] == [claims.NO, claims.YES, claims.OPEN]
    assert [claims.below(said) for said in ("lower", "higher", "no difference")] == [claims.YES, claims.NO, claims.OPEN]


def test_a_loss_in_per_cent_is_as_uncertain_as_the_distance_that_it_is_of():
    """Held against the ratio of draws, of a gap that grows with the distance, and of one that is apart from it."""
    random = np.random.default_rng(0)
    whole = 10 + 0.3 * random.standard_normal(20_000)
    for mixed in (1.4 * whole + 0.1 * random.standard_normal(20_000), 4 + whole + 0.1 * random.standard_normal(20_000)):
        gap = mixed - whole
        row = {"gap": gap.mean(), "half_width": NORMAL_95 * gap.std()}
        of = claims.Loss(row, {"error": mixed.std()}, {"value": whole.mean(), "error": whole.std()})
        value, half = tables.relative(*of)
        draws = 100 * (mixed / whole - 1)
        assert value == pytest.approx(draws.mean(), rel=0.01)
        assert half == pytest.approx(NORMAL_95 * draws.std(), rel=0.02)


def test_a_difference_that_is_rounded_to_none_has_no_minus():
    assert tables.signed(-0.3, 12.0) == "+0 ± 12"
    assert tables.signed(-0.3, 0.12) == "-0.30 ± 0.12"


def test_no_loss_knows_that_the_distance_is_uncertain():
    """A gap just within the margin of a distance that may be less: the gap alone would say yes."""
    known, unknown = a_loss(0.3, 0.19, 10.0), a_loss(0.3, 0.19, 10.0, error=2.0, mixed_error=2.0)
    assert [claims.at_no_loss(of) for of in (known, unknown)] == [claims.YES, claims.OPEN]


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        ("YY", claims.YES),
        ("YN", claims.PART),
        ("YO", claims.PART),
        ("NN", claims.NO),
        ("NO", claims.NO),
        ("OO", claims.OPEN),
    ],
)
def test_several_settings_have_one_verdict(verdicts, together):
    names = {"Y": claims.YES, "N": claims.NO, "O": claims.OPEN}
    assert claims.of_all(names[v] for v in verdicts) == together


def shares(*values):
    there = families.over_reached(list(values))
    return {"switch": {"share_to_reach": {"switch_dit to dit": there}}}


def test_sooner_is_judged_by_the_share_of_iterations():
    assert claims.sooner(shares(0.8, 0.81, 0.82)) == ("81 ± 2 % (80 %, 81 %, 82 %)", claims.YES)
    assert claims.sooner(shares(0.6, 0.8, 1.0))[1] == claims.OPEN
    assert claims.sooner(shares(0.8, None, 0.8)) == ("80 %, never, 80 %", claims.OPEN)
    assert claims.sooner(shares(None, None, None))[1] == claims.NO


def test_intervals_are_apart_if_none_reaches_the_next():
    row = lambda mean, half: {"mean": mean, "half_width": half}  # noqa: E731
    assert claims.order(row(1, 0.4), row(2, 0.5)) == claims.YES
    assert claims.order(row(1, 0.6), row(2, 0.5)) == claims.OPEN
    assert claims.order(row(2, 0.4), row(1, 0.5)) == claims.NO


def test_no_loss_is_judged_by_the_samples_that_look_closer():
    far, near = a_loss(0.0, 2.0, 10.0), a_loss(0.1, 0.2, 10.0)
    plans = {"0": {"distance": far.whole}, "0.4": {"to_largest": far.row, "distance": far.mixed}}
    closer = {"whole": near.whole, "mixed": near.mixed, **near.row}
    assert claims.at_no_loss(claims.first_two_fifths({"plans": plans})) == claims.OPEN
    looked = claims.first_two_fifths({"plans": plans, "closer": closer})
    assert (looked.said, claims.at_no_loss(looked)) == ("+1.0 ± 2.0 %", claims.YES)


def ends(**distances):
    return {"switch": {"end": {"distance": {name: {"mean": m, "half_width": h} for name, (m, h) in distances.items()}}}}


def test_families_are_in_order_if_every_two_are_apart():
    assert claims.apart(ends(switch_dit=(1, 0.2), dtr=(2, 0.2), dit=(3, 0.2)))[1] == claims.YES
    figures, said = claims.apart(ends(switch_dit=(1, 0.2), dtr=(2, 0.2), dit=(1.3, 0.2)))
    assert said == claims.NO
    assert figures.endswith("1 of 3 pairs apart")


def test_plans_that_are_all_the_rival_itself_have_no_other_verdict():
    row = {"gap": 0.0, "half_width": 0.0, "best": "15 steps"}
    better = {"gap": -1.0, "half_width": 0.5, "said": "lower", "best": "25 steps"}

    def plans(*rows):
        found = {f"found 0.{i}": {"to_best_steps": row} for i, row in enumerate(rows)}
        return {"beyond": {"found": {"plans": found}}}

    assert claims.searched("steps")(plans(row, row))[1] == claims.SAME
    assert claims.searched("steps")(plans(row, better))[1] == claims.PART


LOWER, OPEN, HIGHER = (
    {"gap": gap, "half_width": 0.1, "said": said}
    for gap, said in ((-1.0, "lower"), (0.05, "no difference"), (1.0, "higher"))
)


def test_mixes_are_held_against_a_middle_member_that_is_faster():
    mix = lambda times, row: {"times": times, "to_middle": row}  # noqa: E731
    plans = {"middle": mix(1.8, OPEN), "20:20:60": mix(1.3, HIGHER), "60:20:20": mix(2.3, LOWER)}
    read = {"stitching": {"three members": {"plans": plans}}}
    assert claims.to_middle(read) == ("20:20:60: +1.00 ± 0.10, worse", claims.NO)  # the other is faster than it
    plans["40:20:40"] = mix(1.7, LOWER)
    assert claims.to_middle(read)[1] == claims.PART


def test_fewer_steps_around_the_table_count_every_setting_once():
    one = lambda row: {"to_fewer_steps": {"0.4": row}}  # noqa: E731
    found = {
        "steps/10": one(LOWER),
        "steps/25": one(HIGHER),
        "guidance/1.5": one(HIGHER),
        "samplers/heun 10": one(LOWER),
    }
    figures, said = claims.fewer_around({"stitching": found | {"fractions": {}}})
    assert (figures, said) == ("steps 10: -1.00 ± 0.10, better; worse at 1 of 2", claims.PART)


def test_early_steps_are_ahead_of_fewer_steps_if_they_are_at_either_levels():
    one = {"fewer_steps": 21, "to_fewer": LOWER, "to_fewer_there": LOWER}
    read = {"early": {"judged": {"a": one, "b": one | {"to_fewer_there": OPEN}, "c": one | {"to_fewer": HIGHER}}}}
    assert [claims.early_to_fewer(name)(read)[1] for name in "abc"] == [claims.YES, claims.PART, claims.PART]
    told = "-1.00 ± 0.10, better than 21 steps there; +0.05 ± 0.10, undecided than at part B's levels"
    assert claims.early_to_fewer("b")(read)[0] == told


def test_unets_are_said_to_be_as_unequal_as_they_are():
    whole = {"distance": {"value": 10.0, "error": 0.0}}
    plans = {"0": whole, "1": {"distance": {"value": 80.0, "error": 0.0}}}
    plans["0.4"] = {"to_largest": HIGHER, "distance": {"value": 11.0, "error": 0.1 / NORMAL_95}}
    found = {"fractions": {"plans": plans}, "trained/small": {"parameters": 10}, "trained/large": {"parameters": 560}}
    figures, said = claims.unets({"unets": found})
    assert figures == "+10.0 ± 1.0 % of 10.00; the small one of 1/56 of the parameters, 8.0× as far"
    assert said == claims.NO


def test_an_attempt_is_judged_at_its_end():
    gaps = lambda row: {"gaps": {"switch_dit to dit": row | {"ratio": {"mean": 0.9, "half_width": 0.05}}}}  # noqa: E731
    marks = {"1400": gaps(HIGHER), "2000": gaps(LOWER)}
    read = {"attempts": {"attempts": {"process": {"marks": marks}}}}
    assert claims.attempted("process")(read) == ("-1.00 ± 0.10 (× 0.900 ± 0.050)", claims.YES)


def test_mixes_stand_beside_the_large_member_in_steps_that_are_as_fast(made_up):
    """Steps cost 1, 4 and 9."""
    found = stitching.summary(Ledger(made_up / "results"))
    plans, rivals = found["three members"]["plans"], found["fewer steps"]["plans"]
    assert plans["large"]["times"] == 1
    assert "fewer" not in plans["large"]
    key, times = "20:20:60", 50 * 9 / (10 * 1 + 10 * 4 + 30 * 9)
    assert plans[key]["times"] == pytest.approx(times)
    steps = max(n for n in (int(name.split()[0]) for name in rivals) if 50 / n >= times)  # no slower
    assert plans[key]["fewer"] == f"{steps} steps"
    value = {name: plan["distance"]["value"] for name, plan in plans.items()}
    assert plans[key]["to_middle"]["gap"] == pytest.approx(value[key] - value["middle"])
    rival = next(plan for name, plan in rivals.items() if name.startswith(f"{steps} "))
    assert plans[key]["to_fewer_steps"]["gap"] == pytest.approx(value[key] - rival["distance"]["value"])


def test_a_seam_for_each_sample_is_no_better_for_taking_longer():
    row = {"gap": -1.0, "gap_half_width": 0.1, "cost": 1.0}
    assert claims.seam(row) == claims.YES
    assert claims.seam(row | {"cost": 1.1}) == claims.OPEN
    assert claims.seam(row | {"gap": 1.0}) == claims.NO
    assert claims.seam(row | {"gap": 1.0, "cost": 0.9}) == claims.OPEN


def test_the_mix_of_three_is_chosen_by_its_time():
    def row(times, value, gap):
        of = a_loss(gap, 0.1, value - gap)
        return {"times": times, "distance": of.mixed, "to_largest": of.row}

    plans = {
        "large": row(1, 10, 0),
        "20:20:60": row(1.5, 10.1, 0.1),
        "40:40:20": row(2, 12, 2),
        "60:20:20": row(3, 10, 0),
    }
    figures, said = claims.three({"stitching": {"three members": {"plans": plans}}})
    assert figures.startswith("40:40:20, 2.0×")
    assert said == claims.NO


def test_results_of_tasks_that_are_no_more_are_refused(made_up, tmp_path):
    (made_up / "results" / "stitching" / "guidance").mkdir(exist_ok=True)
    (made_up / "results" / "stitching" / "guidance" / "5.json").write_text("{}")
    with pytest.raises(HemstitchError, match=r"no task makes guidance/5: remove"):
        write.write(made_up, tmp_path / "committed", DOCUMENT)


def test_lists_of_numbers_are_on_one_line_and_nothing_else_is_changed():
    data = {"a": [1, 2.5, "x,  [y]"], "b": [[1, 2], []], "c": {"d": [{"e": None}]}, "f": "[\n1\n]"}
    text = write.text(data)
    assert json.loads(text) == data
    assert '"b": [\n  [1, 2],' in text


def test_published_results_are_taken_up_and_stay_unless_others_made_them(made_up, tmp_path):
    document, committed = tmp_path / "reproduction.md", Ledger(tmp_path / "committed")
    document.write_text(DOCUMENT.read_text())
    write.write(made_up, committed.folder, document)
    other, lost = committed.path("switch/field"), committed.path("switch/no such task")
    lost.write_text('{"settings": "none"}')
    other.write_text(other.read_text().replace('"settings": "', '"settings": "x'))
    write.take(tmp_path / "out2", committed.folder)
    taken = Ledger(tmp_path / "out2" / "results")
    assert not taken.done("switch/field")
    assert taken["switch/pace"] == committed["switch/pace"]
    assert taken.all("colour") == committed.all("colour") != {}
    taken.path("switch/pace").unlink()
    write.write(tmp_path / "out2", committed.folder, document)
    assert committed.done("switch/pace")  # published, and only not made here
    assert not other.exists()
    assert not lost.exists()
