"""What each attempt at part A changes, and which marks it is judged at."""

import json

import pytest

from reproduction import attempts, claims, families, fields, networks, switch
from reproduction.work import Ledger


def test_what_differs_from_part_a_is_what_is_said(tmp_path):
    where = fields.fashion(tmp_path)
    base = switch.recipe(where, "dit", 1)
    changed = {
        key: set(attempt.recipe(where, base.name, "dit", 1).difference(base))
        for key, attempt in attempts.ATTEMPTS.items()
    }
    assert changed == {
        "process": {"process.schedule", "process.prediction"},
        "no prior": {"train.prior_weight"},
        "narrow": {"net.width", "net.heads"},
    }


def test_marks_are_seventy_per_cent_and_the_end_and_are_saved(tmp_path):
    where = fields.fashion(tmp_path)
    for attempt in attempts.ATTEMPTS.values():
        recipe = attempt.recipe(where, "x", "dit", 1)
        early, last = attempt.marks
        assert early == round(families.SOONER * last)
        assert all(mark % recipe.train.checkpoint_every == 0 for mark in attempt.marks)


def test_every_family_and_seed_is_trained_and_judged_at_every_mark(tmp_path):
    tasks = {task.name: task for task in attempts.tasks(tmp_path)}
    for key, attempt in attempts.ATTEMPTS.items():
        for family in attempt.families:
            for seed in attempts.SEEDS:
                trained = f"attempts/trained/{key}/{family}-{seed}"
                run = tmp_path / "runs" / f"attempts-{key}-{family}-{seed}"
                assert tasks[trained].keeps == networks.held(run, attempt.marks[-1])
                for mark in attempt.marks:
                    assert trained in tasks[f"attempts/judged/{key}/{family}-{seed}/{mark}"].needs
    trained = [task for name, task in tasks.items() if name.startswith("attempts/trained/")]
    assert len({task.mark for task in trained}) == len(trained)


def test_families_that_a_setting_says_nothing_of_are_part_as(tmp_path):
    """Distances are the family's, the attempt's a tenth of part A's, and seeds differ alike."""
    made = Ledger(tmp_path)
    worth = {"dit": 20.0, "dtr": 22.0, "switch_dit": 18.0}

    def put(name, family, seed, share):
        value = {"value": share * worth[family] + seed, "error": 0.1, "samples": 5000}
        made.path(name).parent.mkdir(parents=True, exist_ok=True)
        made.path(name).write_text(json.dumps(dict.fromkeys(families.FIGURES, value)))

    for task in attempts.tasks(tmp_path):
        if task.name.startswith("attempts/judged"):
            family, seed = task.name.split("/")[3].rsplit("-", 1)
            put(task.name, family, int(seed), 0.1)
    for family in worth:
        for seed in attempts.SEEDS:
            for mark in switch.MARKS:
                put(f"switch/judged/{family}-{seed}/{mark}", family, seed, 1.0)
    found = attempts.summary(made)["attempts"]
    gaps = {key: one["marks"][max(one["marks"], key=int)]["gaps"] for key, one in found.items()}
    assert gaps["no prior"]["switch_dit to dit"]["gap"] == pytest.approx(1.8 - 20)
    assert gaps["no prior"]["dtr to dit"]["gap"] == pytest.approx(2)
    assert gaps["process"]["switch_dit to dit"]["gap"] == pytest.approx(1.8 - 2)
    [to_a] = [mark["to_part_a"] for mark in found["no prior"]["marks"].values() if "to_part_a" in mark][1:]
    assert to_a["switch_dit"]["gap"] == pytest.approx(1.8 - 18)
    assert "to_part_a" not in found["process"]["marks"]["2000"]
    assert claims.prior({"attempts": {"attempts": found}})[1] == claims.NO
    assert set(gaps["narrow"]) == {"switch_dit to dit"}
    assert found["no prior"]["sooner"]["switch_dit to dit"]["said"] == "lower"
    by_name = {task.name: task for task in attempts.tasks(tmp_path)}
    assert "switch/judged/dtr-2/2800" in by_name["attempts/judged/no prior/switch_dit-2/2800"].needs
