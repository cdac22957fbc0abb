"""Restart: killed, damaged, shared out; always the same files."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hemstitch import HemstitchError, Plan, Stitched
from hemstitch.bulk import MANIFEST, write_samples
from hemstitch.samplers import DDIM

from .conftest import denoiser
from .test_formats import LABELLED as MEANS
from .test_formats import files, write

ALL = {"formats": ["png", "npz", "webdataset", "latents"], "count": 21, "labels": "random"}

RUN = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from conftest import denoiser
from hemstitch.bulk import write_samples
for progress in write_samples(denoiser(), {out!r}, steps=2, batch=4, per_shard=8, patience=60, **{options!r}):
    print(progress.done, flush=True)
"""


def start(out, options, rank=0, world=1):
    code = RUN.format(tests=os.path.dirname(__file__), out=str(out), options=options)
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "out"
    process = start(out, ALL)
    assert process.wait(60) == 0, process.stderr.read()
    return out


def shards(out):
    return json.loads((out / MANIFEST).read_text())["shards"]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_work(straight, tmp_path, world):
    running = [start(tmp_path / "out", ALL, rank, world) for rank in range(world)]
    for process in running:
        assert process.wait(120) == 0, process.stderr.read()
    assert files(tmp_path / "out") == files(straight)
    assert shards(tmp_path / "out") == shards(straight)


KILLS = """
import os, random, signal, sys, time, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
from conftest import denoiser
from hemstitch.bulk import MANIFEST, write, write_samples

out, draw, generate = Path({out!r}), random.Random(0), write.generate

def slowly(*arguments, **keywords):  # so that a kill finds something to interrupt
    time.sleep(0.02)
    return generate(*arguments, **keywords)

write.generate = slowly

def start(rank, world):
    read, end = os.pipe()
    pid = os.fork()  # importing once is what makes twenty of them quick
    if pid:
        os.close(end)
        return pid, read
    os.environ |= {{"RANK": str(rank), "WORLD_SIZE": str(world)}}
    for _ in write_samples(denoiser(), out, steps=2, batch=4, per_shard=8, patience=60, **{options!r}):
        os.write(end, b".")
    os._exit(0)

for kill in range(20):
    world = draw.choice([1, 2, 3])
    running = [start(rank, world) for rank in range(world)]
    for _ in range(draw.randint(0, 3)):
        os.read(running[0][1], 1)
    time.sleep(draw.random() * 0.03)
    for pid, read in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
    print("finished" if (out / MANIFEST).exists() else "unfinished", flush=True)
    kept = sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith("."))
    if kept and draw.random() < 0.6:  # and something that was there is damaged, so that the work never ends by itself
        damaged = draw.choice(kept)
        damaged.write_bytes(damaged.read_bytes()[:-3])
"""


def test_killed_twenty_times(tmp_path):
    """kill -9 at any moment, of one to three processes; in the end the same bytes, and nothing beside them."""
    options = {**ALL, "count": 60}
    done = start(tmp_path / "straight", options)
    out = tmp_path / "out"
    code = KILLS.format(tests=os.path.dirname(__file__), out=str(out), options=options)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.wait(60) == 0, done.stderr.read()
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.split().count("unfinished") >= 15, killed.stdout
    process = start(out, options)
    assert process.wait(60) == 0, process.stderr.read()
    assert files(out) == files(tmp_path / "straight")
    assert shards(out) == shards(tmp_path / "straight")
    assert not [p for p in out.rglob(".*") if p.name != ".rank-0"]


def test_finished_shards_are_never_redone(model, tmp_path, monkeypatch):
    sampled = []
    original = write_samples.__globals__["generate"]

    def counting(*arguments, **keywords):
        sampled.append(keywords["seeds"][0][1])
        return original(*arguments, **keywords)

    monkeypatch.setitem(write_samples.__globals__, "generate", counting)
    out = tmp_path / "out"
    for _ in zip(range(3), write_samples(model, out, count=21, steps=2, batch=4, per_shard=8), strict=False):
        pass  # stopped after the first shard was handed to the writer
    sampled.clear()
    write(model, out, count=21)
    assert sampled == [8, 12, 16, 20]
    sampled.clear()
    last = write(model, out, count=21)[-1]
    assert (sampled, last.kept, last.total) == ([], 21, 21)


@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_damage_is_repaired(model, tmp_path, how):
    straight, out = tmp_path / "straight", tmp_path / "out"
    write(model, straight, **ALL)
    shutil.copytree(straight, out)
    for name in ("000009.png", "samples.npz", "shard-00001.tar", "latents-00001.safetensors", "manifest/00001.json"):
        path = out / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        change = {"flip": lambda p, d: p.write_bytes(d), "cut": lambda p, d: p.write_bytes(d[:-70])}
        change.get(how, lambda p, d: p.unlink())(path, data)
        write(model, out, **ALL)
        assert files(out) == files(straight), name
        assert shards(out) == shards(straight)


def test_no_byte_of_the_array_may_change(model, tmp_path):
    """Labels and the directory of the zip included."""
    out, options = tmp_path / "out", {"count": 6, "formats": ["npz"], "per_shard": 4}
    write(model, out, **options)
    before = (out / "samples.npz").read_bytes()
    for place in range(0, len(before), 97):
        data = bytearray(before)
        data[place] ^= 64
        (out / "samples.npz").write_bytes(data)
        write(model, out, **options)
        assert (out / "samples.npz").read_bytes() == before, place


def test_a_damaged_array_costs_only_its_shard(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(model, out, count=21, formats=["npz"])
    before = (out / "samples.npz").read_bytes()
    data = bytearray(before)
    data[300 + 9 * 192] ^= 1  # in the tenth image
    (out / "samples.npz").write_bytes(data)
    sampled = []
    original = write_samples.__globals__["generate"]
    monkeypatch.setitem(
        write_samples.__globals__, "generate", lambda *a, **k: sampled.append(k["seeds"][0][1]) or original(*a, **k)
    )
    write(model, out, count=21, formats=["npz"])
    assert sampled == [8, 12]
    assert (out / "samples.npz").read_bytes() == before


def test_another_batch_is_equal_up_to_rounding(model, tmp_path):
    options = {"count": 12, "formats": ["latents"], "labels": "random"}
    for batch in (1, 4, 12):
        write(model, tmp_path / str(batch), batch=batch, per_shard=12, **options)
    a, b, c = (load(tmp_path / str(batch)) for batch in (1, 4, 12))
    assert torch.allclose(a, b, atol=2e-6)
    assert torch.allclose(a, c, atol=2e-6)


def load(out):
    from safetensors.torch import load_file

    return load_file(out / "latents-00000.safetensors")["x0"]


def test_the_manifest_of_another_model_is_refused(model, tmp_path):
    out = tmp_path / "out"
    write(model, out)
    other = denoiser(seed=1)
    with pytest.raises(HemstitchError, match=r"made otherwise.*model '[0-9a-f]{12}' and '[0-9a-f]{12}'"):
        write(other, out)
    for change, said in (
        ({"seed": 1}, "seed 0 and 1"),
        ({"steps": 3}, "steps 2 and 3"),
        ({"guidance": 1.5}, "guidance '1' and '1.5'"),
        ({"count": 12}, "count 11 and 12"),
        ({"labels": [1]}, "labels"),
        ({"batch": 8}, "batch 4 and 8"),
        ({"sampler": "heun"}, r"sampler 'DDIM.*' and 'Heun.*'"),
        ({"formats": ["npz"]}, "formats"),
        ({"quantise": "round"}, "quantise 'floor' and 'round'"),
    ):
        with pytest.raises(HemstitchError, match=said):
            write(model, out, **change)
    for change, said in (
        ({"eta": 0.5}, "sampler 'DDIM"),
        ({"grid": "trailing"}, "grid 'released' and 'trailing'"),
        ({"guidance_interval": (-3.0, 3.0)}, "guidance_interval"),
        ({"guidance_channels": 1}, "guidance_channels"),
        ({"per_shard": 4}, "per_shard 8 and 4"),
        ({"extractors": [MEANS], "formats": ["png", "features"]}, "To measure what is there: hemstitch evaluate"),
    ):
        with pytest.raises(HemstitchError, match=said):
            write(model, out, **change)
    write(model, out, sampler=DDIM(eta=0.0))  # the same by its other name
    plans = [Plan.explicit(["a", "b"]), Plan.explicit(["b", "a"])]
    stitched = [Stitched({"a": model, "b": other}, plan) for plan in plans]
    write(stitched[0], tmp_path / "stitched")
    with pytest.raises(HemstitchError, match="model"):
        write(stitched[1], tmp_path / "stitched")


def test_a_full_disk_says_what_to_do(model, tmp_path, monkeypatch):
    from hemstitch.bulk import formats

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "encoded", full)
    with pytest.raises(HemstitchError, match="finished shards stay"):
        write(model, tmp_path / "out")
    monkeypatch.undo()
    write(model, tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "000007.png").write_text("mine")
    with pytest.raises(HemstitchError, match="holds no samples of this kind"):
        write(model, tmp_path / "used")
    (tmp_path / "file").write_text("")
    with pytest.raises(HemstitchError, match="is a file"):
        write(model, tmp_path / "file")
    assert np.array_equal(sorted(p.name for p in tmp_path.iterdir()), ["file", "used"])


def test_a_note_is_not_believed_blindly(model, tmp_path):
    """A picture that no note lists, a name with a flipped bit, another content: each is made again."""
    straight, out = tmp_path / "straight", tmp_path / "out"
    write(model, straight)
    shutil.copytree(straight, out)
    path = out / "manifest" / "00000.json"
    text = path.read_text()
    data = json.loads(text)
    for wrong in (
        {**data, "files": {}},
        {**data, "content": "0" + data["content"][1:]},
        {**data, "files": {name.replace("000003", "000103"): told for name, told in data["files"].items()}},
    ):
        path.write_text(json.dumps(wrong))
        (out / "000003.png").write_bytes(b"junk")
        write(model, out)
        assert files(out) == files(straight)
        assert shards(out) == shards(straight)


def test_lost_settings_cost_no_samples(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(model, out)
    path = out / "manifest" / "settings.json"
    before = path.read_text()
    monkeypatch.setitem(write_samples.__globals__, "generate", None)  # nothing is sampled again
    for harm in (path.unlink, lambda: path.write_text(before[:40])):
        harm()
        write(model, out)
        assert path.read_text() == before
    path.unlink()
    with pytest.raises(HemstitchError, match="the very settings that it was begun with"):
        write(model, out, seed=1)


def test_two_jobs_on_one_folder_are_told(model, tmp_path):
    out = tmp_path / "out"
    running = write_samples(model, out, count=21, steps=2, batch=4, per_shard=8)
    next(running)
    with pytest.raises(HemstitchError, match=r"another process is at work in .* as rank 0: stop it"):
        write(model, out, count=21)
    list(running)
    assert not (out / "manifest" / ".rank-0").exists()


def test_a_slow_process_is_waited_for_as_long_as_it_lives(model, tmp_path, monkeypatch):
    """Rank 0 has done its share; rank 1 needs longer for a shard than rank 0's patience."""
    options = {"count": 16, "formats": ["png"], "labels": "balanced"}
    slow = RUN.replace(
        "from hemstitch.bulk import write_samples",
        """
import time
from hemstitch import share
from hemstitch.bulk import write, write_samples
share.BEAT, generate = 0.1, write.generate
write.generate = lambda *a, **k: (time.sleep(1.0), generate(*a, **k))[1]
""",
    )
    code = slow.format(tests=os.path.dirname(__file__), out=str(tmp_path / "out"), options=options)
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    other = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    list(write_samples(model, tmp_path / "out", steps=2, batch=4, per_shard=8, patience=30, count=16))  # it has begun
    assert other.wait(30) == 0, other.stderr.read()
    shutil.rmtree(tmp_path / "out")
    other = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "manifest" / ".rank-1").exists():
        time.sleep(0.05)
    waited = list(write_samples(model, tmp_path / "out", steps=2, batch=4, per_shard=8, patience=0.8, count=16))
    assert any(progress.waiting for progress in waited)
    assert other.wait(30) == 0, other.stderr.read()


def test_a_picture_beside_the_folder_is_not_worth_failing_for(model, tmp_path, monkeypatch):
    from hemstitch.bulk import write as module

    def refused(path, data):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "write_bytes", refused)
    with pytest.warns(UserWarning, match="picture of the first samples could not be written"):
        write(model, tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST).exists()
