"""What each attempt at part A changes, and which marks it is judged at."""

from reproduction import attempts, families, fields, networks, switch


def test_what_differs_from_part_a_is_what_is_said(tmp_path):
    where = fields.fashion(tmp_path)
    base = switch.recipe(where, "dit", 1)
    changed = {
        key: set(attempt.recipe(where, base.name, "dit", 1).difference(base))
        for key, attempt in attempts.ATTEMPTS.items()
    }
    assert changed == {
        "process": {"process.schedule", "process.prediction"},
        "narrow": {"net.width", "net.heads"},
    }
    narrow = attempts.ATTEMPTS["narrow"].recipe(where, base.name, "dit", 1).net
    assert (narrow.width, narrow.width // narrow.heads) == (base.net.width // 2, base.net.width // base.net.heads)


def test_marks_are_seventy_per_cent_and_the_end_and_are_saved(tmp_path):
    where = fields.fashion(tmp_path)
    for attempt in attempts.ATTEMPTS.values():
        recipe = attempt.recipe(where, "x", "dit", 1)
        early, last = attempt.marks
        assert (early, last) == (round(families.SOONER * last), recipe.train.steps)
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
