"""Faults of training: killed at any moment, a full disk, numbers that are none, data that are broken."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hemstitch import HemstitchError, load, recipes
from hemstitch.data import Digits, ImageFolder, batch_at
from hemstitch.run import Run
from hemstitch.train import engine
from hemstitch.train.checkpoint import Writer
from hemstitch.train.fit import fit, restore, save
from hemstitch.train.loop import loop, prepare
from hemstitch.weights.native import Samples

BASE = recipes.recipe("debug").overridden(
    {"net.width": "16", "net.depth": "2", "batch": "16", "log_every": "2", "sample_every": "0"}
)
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


def recipe_of(steps, every=100, **changes):
    return replace(BASE, train=replace(BASE.train, steps=steps, checkpoint_every=every, **changes))


def contents(run):
    newest = Run(run).newest()
    return newest.name, {name: (newest / name).read_bytes() for name in FILES}


# One process imports everything once and trains in children that it forks, so that a sitting costs no start of Python.
NURSERY = """
import os, sys
from pathlib import Path
from hemstitch.recipe import Recipe
import hemstitch.train.fit, hemstitch.data.digits, sklearn.datasets, accelerate, tensorboard
import torch, torch.utils.tensorboard
torch.set_num_threads(1)
recipe, out = Recipe.from_json(sys.argv[1]), Path(sys.argv[2])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        resume = (out / "recipe.json").exists()
        for _ in hemstitch.train.fit.fit(recipe, out, resume=resume, device="cpu", trackers=[]):
            pass
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


def test_killed_thirty_times(tmp_path):
    """kill -9 at 30 random moments, most of them near or in the writing of a checkpoint: bitwise the straight run."""
    steps, kills = 90, 30
    recipe = recipe_of(steps, every=2)
    list(fit(recipe, tmp_path / "straight", device="cpu"))
    out = tmp_path / "killed"
    chance = random.Random(0)
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, recipe.to_json(), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    written = []

    def sitting(seconds):
        """Train until a while after something was written, or to the end. Returns whether that was reached."""
        before = stamp(out)
        nursery.stdin.write("go\n")
        nursery.stdin.flush()
        child = int(nursery.stdout.readline())
        end = time.monotonic() + 60
        while seconds is not None and stamp(out) == before and time.monotonic() < end:
            time.sleep(0.001)
        if seconds is not None:
            time.sleep(seconds)
            written.append(any(out.glob("checkpoints/.*")))
            os.kill(child, signal.SIGKILL)
        return int(nursery.stdout.readline()) == 0

    try:
        finished = [sitting(chance.uniform(0, 0.06)) for _ in range(kills)]
        assert sitting(None)
    finally:
        nursery.stdin.close()
        nursery.wait(timeout=60)
    assert not any(finished), "the run ended before its last kill: give it more steps"
    assert contents(out) == contents(tmp_path / "straight")
    logged = [[json.loads(line)["step"] for line in (r / "metrics.jsonl").open()] for r in (out, tmp_path / "straight")]
    assert logged[0] == logged[1] == list(range(2, steps + 1, 2))
    assert not list(out.glob("checkpoints/.*"))
    assert sum(written) >= 3, "hardly a kill met a checkpoint being written"


def stamp(out):
    """What changes while a checkpoint is written."""
    return sorted(p.name for p in (out / "checkpoints").glob("*")) if (out / "checkpoints").exists() else []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk):
    out = small_disk / "run"
    list(fit(recipe_of(4, every=4), out, device="cpu", trackers=[]))
    before = contents(out)
    free = shutil.disk_usage(small_disk).free
    size = sum(p.stat().st_size for p in (out / "checkpoints").rglob("*"))
    (small_disk / "other").write_bytes(bytes(free - size // 2))  # half a checkpoint fits
    with pytest.raises(HemstitchError, match=r"could not be written .*; the one before it is untouched"):
        list(fit(recipe_of(8, every=8), out, device="cpu", resume=True, trackers=[]))
    assert contents(out) == before
    assert load(out)
    (small_disk / "other").unlink()
    told = list(fit(recipe_of(8, every=8), out, device="cpu", resume=True, trackers=[]))
    assert told[-1].saved.name == "step_00000008"


def test_numbers_that_are_none_stop_the_run(tmp_path):
    """The step is named, its batch saved, the last good checkpoint kept; nothing bad is ever written."""
    out = tmp_path / "run"
    list(fit(recipe_of(4, every=4), out, device="cpu"))
    before = contents(out)

    data = Digits("train")
    bad = int(batch_at(len(data), 16, 0, 6)[3])  # a sample of the seventh step
    data._images[bad] = float("nan")
    with pytest.raises(HemstitchError, match=r"not a number at step 7; the last checkpoint, step_00000004, is unt"):
        list(fit(recipe_of(20, every=4), out, device="cpu", resume=True, data=data))
    assert contents(out) == before
    batch = load_file(out / "diverged_step_00000007.safetensors")
    assert batch["x0"].shape == (16, 1, 8, 8)
    assert batch["x0"].isnan().any((1, 2, 3)).nonzero().flatten().tolist() == [3]
    assert max(json.loads(line)["step"] for line in (out / "metrics.jsonl").open()) == 6


def pictures(folder, broken):
    """200 pictures of two classes; of those in `broken` the header is sound and the rest cut off."""
    rng = np.random.default_rng(0)
    for i in range(200):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:100])
    return folder


def test_a_few_broken_pictures_are_named_and_passed_over(tmp_path):
    data = ImageFolder(pictures(tmp_path / "pictures", {7, 60}), 8)
    with pytest.warns(UserWarning, match=r"cannot be decoded, and others of their class stand"):
        told = list(fit(recipe_of(14), tmp_path / "run", device="cpu", data=data))
    assert told[-1].step == 14
    assert sorted(p.name for p in data.broken) == ["007.png", "060.png"]


@pytest.mark.filterwarnings("ignore:.*stand in for them")
def test_many_broken_pictures_stop_the_run(tmp_path):
    data = ImageFolder(pictures(tmp_path / "pictures", {7, 20, 60, 99, 131}), 8)
    with pytest.raises(HemstitchError, match=r"more than 1% of the images .* cannot be decoded"):
        list(fit(recipe_of(30), tmp_path / "run", device="cpu", data=data))


def test_bf16_on_a_cpu_learns_and_says_so(tmp_path):
    told = list(fit(recipe_of(40, precision="bf16"), tmp_path / "run", device="cpu"))
    assert told[-1].mse < 0.8 * told[0].mse
    assert json.loads((tmp_path / "run" / "provenance.jsonl").read_text())["dtype"] == "bf16"
    with pytest.raises(HemstitchError, match="fp16 needs a GPU"):
        list(fit(recipe_of(4, precision="fp16"), tmp_path / "other", device="cpu"))


def test_going_on_in_another_precision_is_told(tmp_path):
    out = tmp_path / "run"
    list(fit(recipe_of(2), out, device="cpu"))
    lines = (out / "provenance.jsonl").read_text().replace('"fp32"', '"bf16"')
    (out / "provenance.jsonl").write_text(lines)
    with pytest.warns(UserWarning, match="trained in bf16 and goes on in fp32, for it is on another kind of device"):
        list(fit(recipe_of(4), out, device="cpu", resume=True))


@pytest.mark.parametrize("how", [{"recompute": True}, {"accumulate": 4}, {"workers": 1}, {"workers": 5}], ids=str)
def test_how_it_is_computed_changes_nothing(tmp_path, how):
    """Recomputed activations, parts of a batch, any number of threads: the same weights to rounding."""
    list(fit(recipe_of(6), tmp_path / "plain", device="cpu"))
    list(fit(recipe_of(6, **how), tmp_path / "other", device="cpu"))
    ours, theirs = (load_file(Run(tmp_path / n).newest() / "model.safetensors") for n in ("plain", "other"))
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-6), name
    if "workers" in how:
        assert contents(tmp_path / "plain") == contents(tmp_path / "other")


def test_compiled_blocks_compute_the_same(tmp_path, monkeypatch):
    """Captured, differentiated and run as graphs; code generation, half a minute here, is for the benchmarks."""
    monkeypatch.setattr(engine, "BACKEND", "aot_eager")
    told = [list(fit(recipe_of(3, compile=c), tmp_path / str(c), device="cpu", trackers=[]))[-1] for c in (False, True)]
    assert told[1].loss == pytest.approx(told[0].loss, rel=1e-5)
    assert told[1].gradient_norm == pytest.approx(told[0].gradient_norm, rel=1e-4)


def test_trackers_by_name(tmp_path, monkeypatch):
    """accelerate's trackers are asked for by their name, told every metric, and a missing one names its package."""
    for name, said in (("comet_ml", "comet_ml is not installed: pip install comet-ml"), ("notes", "not 'notes'")):
        with pytest.raises(HemstitchError, match=said):
            list(fit(recipe_of(2), tmp_path / "run", device="cpu", trackers=[name]))
    list(fit(recipe_of(4), tmp_path / "run", device="cpu", trackers=["tensorboard"]))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = [EventAccumulator(str(p)).Reload() for p in (tmp_path / "run" / "trackers").rglob("events*")]
    (told,) = [events for events in found if "loss" in events.Tags()["scalars"]]
    assert [e.step for e in told.Scalars("loss")] == [2, 4]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [e.value for e in told.Scalars("loss")] == pytest.approx([line["loss"] for line in logged])


def test_pictures_at_intervals(tmp_path):
    out = tmp_path / "run"
    list(fit(recipe_of(4, sample_every=2), out, device="cpu"))
    for folder in ("samples", "experts"):
        names = sorted(p.name for p in (out / folder).iterdir())
        assert names == ["step_00000002.png", "step_00000004.png"]
    sheet = Image.open(out / "samples" / "step_00000004.png")
    assert sheet.size == ((8 * 9 - 1) * 8, (4 * 9 - 1) * 8)


def test_pictures_without_labels_and_without_luck(tmp_path, monkeypatch):
    """Unlabelled data are drawn too; a picture that fails costs a warning, not the run."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8, 3), 30 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    list(fit(recipe_of(2, sample_every=2), tmp_path / "a", device="cpu", data=ImageFolder(folder, 8)))
    assert (tmp_path / "a" / "samples" / "step_00000002.png").exists()

    def unlucky(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("hemstitch.train.looks.generate", unlucky)
    with pytest.warns(UserWarning, match="no pictures at step 2: out of memory"):
        told = list(fit(recipe_of(2, sample_every=2), tmp_path / "b", device="cpu", data=ImageFolder(folder, 8)))
    assert told[-1].saved


def test_data_that_changed_are_refused_on_resume(tmp_path):
    data = ImageFolder(pictures(tmp_path / "pictures", set()), 8)
    list(fit(recipe_of(2), tmp_path / "run", device="cpu", data=data))
    (tmp_path / "pictures" / "a" / "000.png").unlink()
    with pytest.raises(HemstitchError, match="trained on 200 images and the data now hold 199"):
        list(fit(recipe_of(4), tmp_path / "run", device="cpu", resume=True, data=ImageFolder(tmp_path / "pictures", 8)))


def test_a_cut_provenance_does_not_stop_a_resume(tmp_path):
    out = tmp_path / "run"
    list(fit(recipe_of(2), out, device="cpu"))
    with (out / "provenance.jsonl").open("a") as file:
        file.write('{"step": 2, "dty')
    told = list(fit(recipe_of(4), out, device="cpu", resume=True))
    assert told[-1].step == 4
    assert len([json.loads(line) for line in (out / "provenance.jsonl").open()]) == 2


def test_the_scaler_is_restored(tmp_path):
    """Saved and loaded through a checkpoint as under fp16, which only a GPU trains in."""
    recipe = recipe_of(4, every=2).fitted(1, 8, 10)

    def scaled():
        made = engine.Engine(recipe.train, tmp_path, "cpu", [])
        made.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
        return made, prepare(recipe, made)

    (first, trainee), writer, run = scaled(), Writer(), Run(tmp_path / "run")
    for stepped in loop(trainee, recipe, Digits("train"), first):
        if stepped.step == 2:
            break
    first.scaler.update(2048.0)
    saved = save(run, recipe, first, trainee, Samples(), writer)
    writer.finish()
    second, other = scaled()
    restore(other, saved, second)
    assert second.scaler.get_scale() == 2048.0
    assert other.step == 2
