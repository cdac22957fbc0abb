"""Two processes on one machine (gloo) train what one does; and what happens when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from hemstitch import load, recipes
from hemstitch.run import Run
from hemstitch.train.fit import fit

BASE = recipes.recipe("debug").overridden(
    {"net.width": "16", "net.depth": "2", "batch": "16", "log_every": "2", "sample_every": "0", "snapshot_every": "4"}
)
TENSORS = ("model", "ema", "power_0.050", "power_0.100", "optimizer")


def recipe_of(steps, **changes):
    return replace(BASE, train=replace(BASE.train, steps=steps, checkpoint_every=4, **changes))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(rank, port, world=2):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return os.environ | {k: str(v) for k, v in place.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


def start(recipe, out, *more, world=2):
    """The command line in `world` processes, started as torchrun would."""
    path = out.with_suffix(".json")
    path.write_text(recipe.to_json())
    port = free_port()
    command = [sys.executable, "-m", "hemstitch", "train", str(path), "--out", str(out), "--device", "cpu", *more]
    return [
        subprocess.Popen(command, env=environment(r, port, world), stderr=subprocess.PIPE, text=True)
        for r in range(world)
    ]


def finish(processes, code=0):
    said = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [code] * len(processes), said
    return said


def gap(a, b):
    """Largest difference between two runs' newest checkpoints, over the largest magnitude of all tensors of their kind:
    weights, first moments, second moments, step counts.
    """
    worst = 0.0
    for name in TENSORS:
        ours, theirs = (load_file(Run(run).newest() / f"{name}.safetensors") for run in (a, b))
        assert ours.keys() == theirs.keys()
        kinds = {key: key.rpartition("/")[2] if name == "optimizer" else "weight" for key in ours}
        for kind in set(kinds.values()):
            keys = [key for key in ours if kinds[key] == kind]
            scale = max(float(ours[key].abs().max()) for key in keys)
            worst = max(worst, *(float((ours[key] - theirs[key]).abs().max()) / scale for key in keys))
    return worst


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    list(fit(recipe_of(8), out, device="cpu"))
    return out


def test_accelerate_launch_is_one_process(alone, tmp_path):
    """Data parallel, with gradient accumulation, under accelerate's launcher."""
    out = tmp_path / "run"
    command = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    ours = "-m hemstitch train debug --device cpu --net.width 16 --net.depth 2 --batch 16 --log_every 2"
    steps = f"--steps 8 --checkpoint-every 4 --sample-every 0 --snapshot-every 4 --accumulate 2 --out {out}"
    arguments = [sys.executable, *command.split(), "--main_process_port", str(free_port()), *ours.split()]
    done = subprocess.run([*arguments, *steps.split()], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert gap(alone, out) < 1e-5
    told = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (alone, out)]
    for ours, theirs in zip(*told, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    assert done.stdout.count("debug -> ") == 1  # one of them speaks


def test_sharded_weights_and_another_number_of_processes(alone, tmp_path):
    """Four steps fully sharded over two, recomputing activations; four more in one: eight in one."""
    out = tmp_path / "run"
    finish(start(recipe_of(4, parallel="fsdp", recompute=True), out))
    facts = json.loads((out / "provenance.jsonl").read_text())
    assert (facts["parallel"], facts["processes"]) == ("fsdp", 2)
    list(fit(recipe_of(8), out, device="cpu", resume=True))
    assert gap(alone, out) < 1e-5
    assert sorted(p.name for p in (out / "snapshots").iterdir()) == sorted(
        p.name for p in (alone / "snapshots").iterdir()
    )
    assert load(out, ema=0.07).spec == load(alone, ema=0.07).spec


def test_resumed_over_two(alone, tmp_path):
    """Four steps in one process, four over two with sharded weights: restoring spreads what one wrote."""
    out = tmp_path / "run"
    list(fit(recipe_of(4), out, device="cpu"))
    finish(start(recipe_of(8, parallel="fsdp"), out, "--resume"))
    assert gap(alone, out) < 1e-5


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    said = finish(start(recipe_of(4, batch=15), tmp_path / "run"), code=2)
    assert all("train.batch 15 does not divide into 2 processes × 1 parts" in text for text in said)
    assert not (tmp_path / "run").exists()


def test_what_the_main_process_refuses_ends_all(alone):
    said = finish(start(recipe_of(8), alone), code=2)
    assert "holds a run already" in said[0]
    assert "the main process stopped" in said[1]


@pytest.mark.parametrize("dies", [0, 1])
def test_a_dead_process_ends_the_others(tmp_path, dies):
    """Within a minute and with an error; what was saved is whole."""
    out = tmp_path / "run"
    processes = start(recipe_of(100_000), out)
    end = time.monotonic() + 90
    while not (out / "metrics.jsonl").exists() or Run(out).newest() is None:
        assert time.monotonic() < end
        assert [p.poll() for p in processes] == [None, None]
        time.sleep(0.05)
    processes[dies].send_signal(signal.SIGKILL)
    began = time.monotonic()
    (said,) = finish([processes[1 - dies]], code=2)
    assert "another process of this run ended or cannot be reached" in said
    assert time.monotonic() - began < 60
    processes[dies].wait()
    assert Run(out).newest() is not None


def test_ctrl_c_reaches_all(tmp_path):
    """A stop asked of one process stops both, after the same step and with a checkpoint."""
    out = tmp_path / "run"
    processes = start(recipe_of(100_000), out)
    end = time.monotonic() + 90
    while not (out / "metrics.jsonl").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, code=130)
    assert Run(out).newest() is not None
