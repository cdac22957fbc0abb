"""Invariance and faults of training: resume is bitwise, checkpoints are whole or absent, Ctrl-C saves."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from hemstitch import HemstitchError, load, recipes
from hemstitch.data import Digits, batch_at
from hemstitch.marked import name_of
from hemstitch.process import Process
from hemstitch.run import Run
from hemstitch.train.fit import fit
from hemstitch.train.loop import noised, rows_of

BASE = recipes.recipe("debug").overridden({"net.width": "16", "net.depth": "2", "batch": "16", "log_every": "2"})
LOSSES = ("step", "loss", "mse", "vb", "prior", "gradient_norm")
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


def short(steps, every=100, **changes):
    train = replace(BASE.train, steps=steps, checkpoint_every=every, **changes)
    return replace(BASE, train=train)


def run_to_end(recipe, out, resume=False):
    return list(fit(recipe, out, resume=resume, device="cpu"))


def contents(run):
    newest = Run(run).newest()
    return newest.name, {name: (newest / name).read_bytes() for name in FILES}


def command(out, *more):
    options = ["--net.width", "16", "--net.depth", "2", "--batch", "16", "--log_every", "2", "--device", "cpu"]
    return [sys.executable, "-m", "hemstitch", "train", "debug", "--out", str(out), *options, *more]


def wait_for(path, process, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    run_to_end(short(40, every=7), out)
    return out


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from hemstitch.recipe import Recipe
from hemstitch.train.fit import fit
torch.set_num_threads(2)
for progress in fit(Recipe.from_json(sys.argv[1]), Path(sys.argv[2]), resume=sys.argv[3] == "1", device="cpu"):
    if progress.step == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kills", [(4, 18)], ids=str)
def test_resume_after_kill_is_bitwise(straight, tmp_path, kills):
    """40 steps straight equal: some, kill -9, resume, and so on; one kill before the first checkpoint (7).

    Weights, average, optimizer, the metrics logged, and with them the data order. Thirty kills: test_faults.py.
    """
    out = tmp_path / "run"
    recipe = short(40, every=7)
    for step in kills:
        asked = [sys.executable, "-c", KILLED, recipe.to_json(), str(out), str(int(out.exists())), str(step)]
        assert subprocess.run(asked, check=False).returncode == -signal.SIGKILL
    run_to_end(recipe, out, resume=True)
    assert contents(out) == contents(straight)
    ours, theirs = ([json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (out, straight))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    # the reading that spans a resume averages fewer steps; all later ones are equal but for the time they took
    later = [line["step"] > max(kills) + 2 for line in ours]
    told = [
        [{k: line[k] for k in LOSSES} for line, late in zip(lines, later, strict=True) if late]
        for lines in (ours, theirs)
    ]
    assert told[0] == told[1]


def test_a_damaged_newest_checkpoint_does_not_eat_the_next_ones(straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    whole = out / "checkpoints" / "step_00000040"
    mine = out / "checkpoints" / "step_00000040_best"
    shutil.copytree(whole, mine)
    ahead = out / "checkpoints" / "step_00000044"
    shutil.copytree(whole, ahead)
    (ahead / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="passing over"):
        run_to_end(short(43, every=1), out, resume=True)
    with pytest.warns(UserWarning, match="passing over"):
        assert Run(out).newest().name == "step_00000043"
    with pytest.warns(UserWarning, match="passing over"):
        run_to_end(short(45, every=1), out, resume=True)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [mine.name, "step_00000045"]


def test_load_passes_over_damaged_weights(straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    file = out / "checkpoints" / "step_00000040" / "ema.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with (
        pytest.warns(UserWarning, match=r"passing over a checkpoint: .*ema\.safetensors"),
        pytest.raises(HemstitchError, match=r"every checkpoint in .* is damaged"),
    ):
        load(out)
    assert load(out, weights="model")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_exits(straight, tmp_path, number):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, "--steps", "4000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(out / "metrics.jsonl", process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on from there" in said
    assert Run(out).newest() is not None
    assert not list(out.glob("checkpoints/.*"))


def test_a_finished_run_resumes_to_nothing(straight):
    before = contents(straight)
    assert run_to_end(short(40, every=7), straight, resume=True) == []
    assert contents(straight) == before


@pytest.mark.parametrize("keep", [1, 2, 4, 5, 20])
def test_only_the_newest_checkpoints_stay(tmp_path, keep):
    run_to_end(short(8, every=1, keep=keep), tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [name_of(step) for step in range(1, 9)][-keep:]


def test_the_run_folder_explains_itself(straight):
    assert Run(straight).recipe.train.steps == 40
    assert Run(straight).recipe.net.num_classes == 10
    assert list((straight / "trackers").rglob("events.out.tfevents*"))
    assert "--resume" in (straight / "README.txt").read_text()
    assert json.loads((straight / "provenance.jsonl").read_text().splitlines()[0])["dtype"] == "fp32"
    denoiser = load(straight)
    assert denoiser.spec.space == "digits"
    assert denoiser.process == BASE.process
    ema = load_file(Run(straight).newest() / "ema.safetensors")
    assert torch.equal(denoiser.net.final_layer.linear.weight, ema["final_layer.linear.weight"])
    model = load(straight, weights="model")
    assert not torch.equal(model.net.final_layer.linear.weight, denoiser.net.final_layer.linear.weight)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_checkpoint_is_named_and_passed_over(straight, tmp_path, name, damage):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    older = out / "checkpoints" / "step_00000035"
    shutil.copytree(out / "checkpoints" / "step_00000040", older)
    file = out / "checkpoints" / "step_00000040" / name
    data = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[:-10])
    elif damage == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.warns(UserWarning, match=f"passing over a checkpoint: .*{name}"):
        assert Run(out).newest() == older


def test_an_unmarked_checkpoint_does_not_count(straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    (out / "checkpoints" / "step_00000040" / "COMPLETE").unlink()
    assert Run(out).newest() is None
    run_to_end(short(3, every=3), out, resume=True)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step_00000003"]


def test_no_space_leaves_the_checkpoint_before(tmp_path):
    """A limit on file size, smaller than the weights, in place of a full disk."""
    out = tmp_path / "run"
    run_to_end(short(4, every=4), out)
    before = contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(HemstitchError, match=r"could not be written .*; the one before it is untouched"):
            run_to_end(short(8, every=8), out, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(out) == before
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step_00000004"]
    run_to_end(short(8, every=8), out, resume=True)
    assert contents(out)[0] == "step_00000008"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(HemstitchError, match=r"cannot write to|is a file"):
            run_to_end(short(2), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_another_recipe_does_not_resume(straight):
    with pytest.raises(HemstitchError, match=r"another recipe; these differ: train\.batch, train\.seed"):
        run_to_end(short(40, batch=8, seed=1), straight, resume=True)


def test_a_run_is_not_overwritten(straight, tmp_path):
    with pytest.raises(HemstitchError, match="pass --resume"):
        run_to_end(short(40), straight)
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(HemstitchError, match=r"not empty and not a run|not a run folder"):
            run_to_end(short(2), tmp_path, resume=resume)


def test_epochs_follow_without_dropping_a_sample():
    seen = torch.cat([batch_at(10, 4, 3, step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    counts = torch.bincount(torch.cat([batch_at(3, 7, 0, step) for step in range(3)]), minlength=3)
    assert counts.tolist() == [7, 7, 7]  # batches larger than the data


def test_a_batch_is_the_same_however_it_is_shared_out():
    data = Digits("train")
    recipe = short(1).fitted(1, 8, 10)

    def batch(rows):
        return noised(recipe, rows_of(recipe, data, 5, rows), torch.device("cpu"))

    whole, halves = batch(range(16)), [batch(range(8)), batch(range(8, 16))]
    for i in range(4):
        assert torch.equal(whole[i], torch.cat([half[i] for half in halves]))


@pytest.mark.parametrize("process", [Process("flow", "flow"), Process("cosine", "v"), Process("linear", "x0")], ids=str)
def test_every_parameterisation_learns(tmp_path, process):
    recipe = replace(short(60, weighting="min_snr"), process=process)
    told = run_to_end(recipe, tmp_path / "run")
    assert told[-1].mse < 0.7 * told[0].mse


def test_learned_variance_learns(tmp_path):
    recipe = replace(short(60), process=Process(learned_variance=True), net=replace(BASE.net, learned_variance=True))
    told = run_to_end(recipe, tmp_path / "run")
    assert told[-1].loss < 0.8 * told[0].loss
    assert told[-1].vb > 0


def test_checkpoint_names_sort_as_their_steps():
    assert name_of(999) < name_of(1000)
