"""Training as a task: stopped anywhere, it goes on to the same end. Tiny networks on digits."""

from dataclasses import replace

import pytest
import torch

import hemstitch as hs
from hemstitch.errors import HemstitchError
from reproduction import fields, networks, switch
from reproduction.work import Stopped


@pytest.fixture
def recipe(field):
    return networks.transformer(
        field, "tiny", width=8, depth=1, heads=2, batch=8, steps=6, checkpoint_every=2, log_every=1
    )


def weights(folder):
    return hs.load(folder).net.state_dict()


def test_it_trains_and_does_not_train_again(recipe, tmp_path):
    told = networks.train(recipe, tmp_path / "run")
    assert told["steps"] == 6
    assert told["milliseconds_a_step"] > 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert networks.train(recipe, tmp_path / "run") == told
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_run_of_another_recipe_is_refused(recipe, tmp_path):
    networks.train(recipe, tmp_path / "run")
    other = replace(recipe, train=replace(recipe.train, learning_rate=1e-4))
    with pytest.raises(HemstitchError, match="learning_rate"):
        networks.train(other, tmp_path / "run")


@pytest.mark.parametrize("steps", [1, 3])  # before the first checkpoint, and after it
def test_it_goes_on_where_it_was_broken_off(recipe, tmp_path, steps, monkeypatch):
    whole = networks.fit

    def part(*arguments, **options):
        for progress in whole(*arguments, **options):
            yield progress
            if progress.step == steps:
                raise RuntimeError("broken off")

    monkeypatch.setattr(networks, "fit", part)
    with pytest.raises(RuntimeError, match="broken off"):
        networks.train(recipe, tmp_path / "run")
    monkeypatch.setattr(networks, "fit", whole)
    networks.train(recipe, tmp_path / "run")
    networks.train(recipe, tmp_path / "other")
    for name, value in weights(tmp_path / "other").items():
        assert torch.equal(weights(tmp_path / "run")[name], value)


def test_a_run_that_is_asked_to_stop_has_no_result(recipe, tmp_path, monkeypatch):
    whole = networks.fit

    def stopping(*arguments, **options):
        for progress in whole(*arguments, **options):
            yield progress._replace(stopped=progress.step == 3)

    monkeypatch.setattr(networks, "fit", stopping)
    with pytest.raises(Stopped):
        networks.train(recipe, tmp_path / "run")


def test_weights_of_every_checkpoint_are_there(recipe, tmp_path):
    networks.train(recipe, tmp_path / "run")
    states = [networks.at(tmp_path / "run", step).net.state_dict() for step in (2, 4, 6)]
    assert not torch.equal(states[0]["final_layer.linear.weight"], states[1]["final_layer.linear.weight"])
    assert torch.equal(
        states[2]["final_layer.linear.weight"], weights(tmp_path / "run")["final_layer.linear.weight"].bfloat16()
    )


def test_samples_kept_are_the_samples_drawn(recipe, field, tmp_path):
    """Rows are those of one call, however often they were broken off; and a table of two plans shares what it can."""
    networks.train(recipe, tmp_path / "run")
    model, num = hs.load(tmp_path / "run"), fields.BATCH + 5
    look = {"steps": 3, "sampler": "ddim", "guidance": 1.0}
    rows = fields.sampled_rows(field, model, num, tmp_path / "kept", 7, **look)
    x = hs.generate(model, fields.classes(fields.BATCH), seeds=[(7, i) for i in range(fields.BATCH)], **look)
    assert rows.shape == (num, 64)
    assert torch.equal(rows[: fields.BATCH], field.rows(x))
    again = fields.sampled_rows(field, model, num, tmp_path / "kept", 7, **look)
    assert torch.equal(again, rows)
    scores = field.scores(rows, fields.classes(num))
    assert set(scores) == {"distance", "precision", "recall", "accuracy"}


def test_training_with_other_rounding_is_another_run_of_the_same_recipe(recipe, field, tmp_path, monkeypatch):
    monkeypatch.setattr(switch, "judge", lambda field, run, mark, kept, seed: {"distance": {"value": 1.0}})
    told = switch.rounded(field, recipe, tmp_path / "run", tmp_path / "kept")
    assert (told["recipe"], told["steps"], told["distance"]) == (networks.marked(recipe)[0], 6, {"value": 1.0})
    assert switch.rounded(field, recipe, tmp_path / "run", tmp_path / "kept") == told
