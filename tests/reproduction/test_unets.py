"""U-Nets of the reproduction: training that goes on, the plans of a real pipeline, arithmetic. On 8x8 digits."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from hemstitch.bridge import stitched
from hemstitch.errors import HemstitchError
from reproduction import unets
from reproduction.unets import Member, Trainee, Way
from reproduction.work import Ledger, Stopped, Task, work

TINY = Member((8, 16), layers=1, steps=6, batch=4, save_every=100)


@pytest.fixture(scope="module")
def pair(field, tmp_path_factory):
    """A small and a large U-Net that answer differently, as pipelines."""
    folder = tmp_path_factory.mktemp("pair")
    for name, widths in (("small", (8, 8)), ("large", (8, 16))):
        net = unets.unet(replace(TINY, widths=widths), field.data())
        torch.nn.init.normal_(net.conv_out.weight, std=0.1)
        DDPMPipeline(net, DDPMScheduler()).save_pretrained(folder / name)
    return folder


def averaged(folder):
    return UNet2DModel.from_pretrained(folder, subfolder="unet").state_dict()


def test_training_that_was_stopped_ends_as_if_it_had_not_been(field, tmp_path, monkeypatch):
    unets.train(field, TINY, tmp_path / "whole")
    learn = unets.learn

    def interrupted(trainee, *rest):
        learn(trainee, *rest)
        if trainee.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(unets, "learn", interrupted)
    with pytest.raises(Stopped):
        unets.train(field, TINY, tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "parts" / "unet").exists()

    done = []
    monkeypatch.setattr(unets, "learn", lambda trainee, *rest: (done.append(trainee.step), learn(trainee, *rest)))
    result = unets.train(field, TINY, tmp_path / "parts")
    assert done == [2, 3, 4, 5]
    whole, parts = averaged(tmp_path / "whole"), averaged(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert result["held_out_error"]["samples"] == len(field.test())
    with pytest.raises(HemstitchError, match="another network"):
        unets.train(field, replace(TINY, rate=1.0), tmp_path / "parts")


def test_a_step_moves_the_average_by_its_share(field):
    trainee = Trainee.of(replace(TINY, ema=0.75), field.data())
    before = [p.clone() for p in trainee.net.parameters()]
    unets.learn(trainee, field.data(), DDPMScheduler())
    moved = [(new - old).abs().max() for new, old in zip(trainee.net.parameters(), before, strict=True)]
    assert max(moved) > 0
    for average, new, old in zip(trainee.average.parameters(), trainee.net.parameters(), before, strict=True):
        torch.testing.assert_close(average, 0.75 * old + 0.25 * new.detach(), atol=1e-7, rtol=0)


def test_the_error_held_out_is_one_for_a_network_that_says_nothing(field):
    net = unets.unet(TINY, field.data())
    for p in net.conv_out.parameters():
        torch.nn.init.zeros_(p)
    score = unets.held_out_error(net, field.test(), DDPMScheduler())
    pixels = len(field.test()) * 64
    assert score.value == pytest.approx(1, abs=4 * (2 / pixels) ** 0.5)
    assert score.error == pytest.approx((2 / pixels) ** 0.5, rel=0.2)


def test_ends_of_the_fractions_are_the_plain_pipelines(pair):
    pipe = unets.opened(pair)
    for way, name in ((Way(4), "large"), (Way(4, 4), "small")):
        plain = DDIMPipeline.from_pretrained(pair / name)
        plain.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        expected = plain(3, generators, num_inference_steps=4, output_type="pt").images * 2 - 1
        assert torch.equal(unets.draw(pipe, way, range(3)), expected)
    assert not torch.equal(unets.draw(pipe, Way(4), range(3)), unets.draw(pipe, Way(4, 4), range(3)))


def test_every_way_asks_the_small_one_as_often_as_it_says(pair):
    pipe = unets.opened(pair)
    for way in unets.fractions(10).values():
        unets.draw(pipe, way, range(1))
        assert stitched(pipe).route.last.assignment == ("small",) * way.small + ("large",) * (way.steps - way.small)
    assert [way.small for way in unets.fractions().values()] == list(range(0, 51, 5))


def test_an_image_is_its_seeds_whatever_the_batch(pair):
    pipe = unets.opened(pair)
    together, alone = unets.draw(pipe, Way(4, 2), range(4)), unets.draw(pipe, Way(4, 2), range(2, 4))
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=0)
    assert together.min() >= -1
    assert together.max() <= 1


def test_sampling_that_was_stopped_draws_only_what_is_missing(field, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(unets, "BATCH", 4)
    pipe, draw, drawn = unets.opened(pair), unets.draw, []
    monkeypatch.setattr(unets, "draw", lambda pipe, way, seeds: (drawn.append(seeds), draw(pipe, way, seeds))[1])
    rows = unets.sampled_rows(field, pipe, Way(4, 2), 10, tmp_path)
    first = unets.FIRST_SEED
    assert drawn == [range(first, first + 4), range(first + 4, first + 8), range(first + 8, first + 10)]
    (tmp_path / "2 of 4" / "000004.safetensors").unlink()
    drawn.clear()
    assert torch.equal(unets.sampled_rows(field, pipe, Way(4, 2), 10, tmp_path), rows)
    assert drawn == [range(first + 4, first + 8)]
    assert len(load_file(tmp_path / "2 of 4" / "000008.safetensors")["rows"]) == 2


def test_a_table_holds_ways_against_others_of_the_same_noise(field, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(unets, "STEPS", 5)
    ways = {"0": Way(5), "0.4": Way(5, 2), "3 steps, as long as 0.6": Way(3)}
    monkeypatch.setattr(unets, "fractions", lambda: {"0": Way(5), "0.4": Way(5, 2), "0.6": Way(5, 3)})
    told = unets.table(field, pair, ways, 40, tmp_path)["plans"]
    value = {key: row["distance"]["value"] for key, row in told.items()}
    assert told["0"]["to_largest"] == {"gap": 0.0, "half_width": 0.0, "said": "no difference"}
    assert told["0.4"]["to_largest"]["gap"] == pytest.approx(value["0.4"] - value["0"])
    assert "fraction_to_it" not in told["0.4"]
    fraction = unets.table(field, pair, {"0.6": Way(5, 3)}, 40, tmp_path)["plans"]["0.6"]["distance"]["value"]
    fewer = told["3 steps, as long as 0.6"]
    assert fewer["fraction_to_it"]["gap"] == pytest.approx(fraction - fewer["distance"]["value"])
    assert (fewer["steps"], fewer["small"]) == (3, 0)


def test_samples_of_other_weights_are_not_taken_for_ones_own(field, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(unets, "STEPS", 2)
    monkeypatch.setattr(unets, "fractions", lambda: {"0": Way(2)})

    def value(pair):
        return unets.table(field, pair, {"0": Way(2)}, 20, tmp_path / "kept")["plans"]["0"]["distance"]["value"]

    before = value(pair)
    assert value(pair) == before
    shutil.copytree(pair, tmp_path / "pair")
    shutil.rmtree(tmp_path / "pair" / "large")
    shutil.copytree(pair / "small", tmp_path / "pair" / "large")
    assert value(tmp_path / "pair") != before


def test_rounds_of_timing_are_kept(pair, tmp_path, monkeypatch):
    kept = tmp_path
    monkeypatch.setattr(unets, "draw", lambda *_: None)
    first = unets.seconds(pair, {"0": Way(4)}, kept, rounds=2)["seconds_per_image"]["0"]
    more = unets.seconds(pair, {"0": Way(4)}, kept, rounds=3)["seconds_per_image"]["0"]
    assert more[:2] == first
    assert len(more) == 3
    other = unets.seconds(pair, {"0": Way(5)}, kept, rounds=1)["seconds_per_image"]["0"]
    assert len(other) == 1
    assert len(list(kept.rglob("seconds.json"))) == 2


def test_fewer_steps_take_as_long_by_ratios_within_a_round():
    """The second round is ten times as slow, for all."""
    times = {"0": [2.0, 20.0, 2.0], "0.2": [1.7, 17.0, 1.7], "0.4": [1.4, 14.0, 1.4], "0.6": [1.3, 13.0, 1.3]}
    found = unets.as_long(times | {"0.8": [0.001, 0.01, 0.001]})
    assert list(found.values()) == [Way(43), Way(35), Way(33), Way(1)]  # 42.5 and 32.5 are rounded up
    assert unets.fraction_of(list(found)[1]) == "0.4"
    told = unets.timed(times)
    assert told["0.4"]["milliseconds_per_image"] == {"median": 1400.0, "least": 1400.0, "most": 14000.0}
    assert told["0.4"]["times_as_fast"]["most"] == pytest.approx(2 / 1.4)


def test_tasks_need_what_tasks_make(tmp_path):
    found = unets.tasks(tmp_path)
    names = [task.name for task in found]
    assert len(set(names)) == len(names)
    assert {need for task in found for need in task.needs} - set(names) == {"switch/field"}


def test_the_summary_joins_times_to_plans_and_is_of_all_results(tmp_path):
    ledger, times = Ledger(tmp_path), {"0": [2.0, 4.0], "0.5": [1.0, 2.0], "1": [0.5, 1.0]}
    results = {
        "trained/small": {"parameters": 3},
        "trained/large": {"parameters": 9},
        "fractions": {"plans": {"0": {}, "0.5": {}}},
        "time": {"seconds_per_image": times},
        "fewer steps": {"plans": {"30 steps, as long as 0.4": {"fraction_to_it": {"gap": 1.0}}}},
    }
    for name, result in results.items():
        work([Task(f"unets/{name}", lambda result=result: result)], ledger, lambda text: None)
    with pytest.raises(HemstitchError):
        unets.summary(ledger)
    last = {"seconds_per_image": {"0": [2.0, 4.0], "30 steps, as long as 0.4": [1.0, 2.0]}}
    work([Task("unets/time of fewer steps", lambda: last)], ledger, lambda text: None)
    told = unets.summary(ledger)
    assert told["fractions"]["plans"]["0.5"]["times_as_fast"]["median"] == 2
    assert told["fewer steps"]["plans"]["30 steps, as long as 0.4"]["milliseconds_per_image"]["most"] == 2000
    assert told["time"]["speed"]["0.5"]["of_ideal"] == pytest.approx(1.25)
    assert told["trained/small"]["parameters"] == 3
    assert told["fractions to fewer steps"] == {"0.4": {"fewer": "30 steps, as long as 0.4", "gap": 1.0}}
