"""What training costs: Switch-DiT's and DTR's step and memory beside DiT's, waiting for data, a checkpoint's stall.

    python benchmarks/train.py --out benchmarks/results               # on this machine's CPU, some ten minutes
    python benchmarks/train.py --out … --device cuda                  # compiled, bf16, DiT-XL/2's share of the peak

Ratios are of medians in one run, the variants taking turns in changing order.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hemstitch import Process, recipes
from hemstitch.data import ImageFolder
from hemstitch.description import describe
from hemstitch.provenance import provenance
from hemstitch.recipe import DataRecipe, Recipe
from hemstitch.train.engine import DTYPES, Engine, keep_pages
from hemstitch.train.estimate import Noise, estimate
from hemstitch.train.fit import fit
from hemstitch.train.loop import accumulated, optimizer_like, prepare, rows_of, update
from hemstitch.train.meter import product_rate

FAMILIES = ("dit", "dtr", "switch_dit")
PEAK_BF16 = 989.4e12  # dense, of an H100 SXM or H200, by its maker's data sheet


def sized(name: str, batch: int, **changes: Any) -> Recipe:
    """A published recipe at another batch."""
    recipe = recipes.recipe(name)
    return replace(recipe, train=replace(recipe.train, batch=batch, **changes))


def stepping(recipe: Recipe, device: str) -> tuple[Callable[[], None], Engine]:
    """One whole training step as `fit` takes it: noise, forward, backward, AdamW, average. No weight is zero."""
    if device == "cpu":
        keep_pages()
    engine = Engine(recipe.train, Path("."), device, [])
    trainee = prepare(recipe, engine)
    with torch.no_grad():
        for p in trainee.net.parameters():
            if p.requires_grad and not p.any():
                p.normal_(std=0.02)
    made = [rows_of(recipe, Noise(recipe.net), 0, engine.rows(recipe.train, 0))]

    def step() -> None:
        accumulated(trainee, recipe, made, engine)
        update(trainee, recipe, engine)

    return step, engine


def turns(
    variants: dict[str, Callable[[], None]], rounds: int, warm: int, settle: Callable[[], None]
) -> dict[str, Any]:
    """Seconds of each variant: median and minimum over rounds in which each takes a turn, in rotating order."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for r in range(rounds + warm):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            settle()
            began = time.perf_counter()
            variants[name]()
            settle()
            if r >= warm:
                times[name].append(time.perf_counter() - began)
    base = statistics.median(times[names[0]])
    return {
        name: {
            "seconds": round(statistics.median(t), 4),
            "least": round(min(t), 4),
            "ratio": round(statistics.median(t) / base, 3),
            # of each round's pair, which the machine's other work disturbs alike
            "paired_ratio": round(statistics.median(a / b for a, b in zip(t, times[names[0]], strict=True)), 3),
        }
        for name, t in times.items()
    }


def steps(
    device: str, size: str, batch: int, rounds: int, warm: int = 2, families: Sequence[str] = FAMILIES, **changes: Any
) -> dict[str, Any]:
    variants, engines = {}, []
    for family in families:
        step, engine = stepping(sized(f"{family}_{size}", batch, **changes), device)
        variants[f"{family}_{size}"] = step
        engines.append(engine)
    return {"batch": batch} | turns(variants, rounds, warm, engines[0].settle)


def memory(size: str, batch: int) -> dict[str, Any]:
    """Most memory of a process that takes three steps, less what it holds after importing; a process per family."""
    held = {}
    for family in FAMILIES:
        asked = [sys.executable, __file__, "--peak-of", f"{family}_{size}", "--batch", str(batch)]
        held[family] = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[-1])
    return {
        "batch": batch,
        "bytes": held,
        "ratio": {family: round(held[family] / held["dit"], 3) for family in FAMILIES},
        "counted": {
            family: estimate(
                sized(f"{family}_{size}", batch), Noise(recipes.recipe(f"{family}_{size}").net), "cpu"
            ).memory
            for family in FAMILIES
        },
    }


def peak_of(name: str, batch: int) -> None:
    def kib() -> int:
        """This process's own peak: ru_maxrss would begin with its parent's."""
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    torch.ones(1).requires_grad_().sum().backward()
    before = kib()
    step, _ = stepping(sized(name, batch), "cpu")
    for _ in range(3):
        step()
    print((kib() - before) * 1024)


def waiting(device: str) -> dict[str, Any]:
    """Share of the time that training waits for data: digits, and 256-px JPEGs that the page cache holds."""
    from PIL import Image

    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        debug = recipes.recipe("debug").overridden({"steps": "150", "log_every": "50", "sample_every": "0"})
        *_, told = fit(debug, root / "digits", device=device, trackers=[])
        shares["digits, debug preset, batch 128"] = told.waited
        torch.manual_seed(0)
        for i in range(256):
            path = root / "jpeg" / str(i % 4) / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = torch.rand(3, 32, 32)[None]
            picture = torch.nn.functional.interpolate(small, size=(256, 256), mode="bicubic")[0].clamp(0, 1)
            Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(path, quality=90)
        data = ImageFolder(root / "jpeg", 256)
        data.images(torch.arange(len(data)))  # the cache is warm
        base = recipes.recipe("dit_s2")
        net = replace(base.net, channels=3, input_size=256, patch=16, learned_variance=False)
        batch, count = (16, 12) if device == "cpu" else (128, 40)
        train = replace(base.train, batch=batch, steps=count, log_every=count // 2, sample_every=0)
        recipe = Recipe("pixels", net, Process(), DataRecipe("folder", str(root / "jpeg"), 256), train)
        *_, told = fit(recipe, root / "pixels", device=device, data=data, trackers=[])
        shares[f"256-px JPEGs, DiT-S/16, batch {batch}"] = told.waited
        shares["its images/s"] = told.rate
    return {name: round(share, 5) for name, share in shares.items()}


def checkpointing(device: str) -> dict[str, Any]:
    """The stall of saving DiT-B/2 with its optimizer and average, beside writing as many bytes to the same disk."""
    from hemstitch.run import Run
    from hemstitch.train.checkpoint import Writer
    from hemstitch.train.fit import files_of, save
    from hemstitch.weights.native import Samples

    recipe = sized("dit_b2", 4)
    engine = Engine(recipe.train, Path("."), device, [])
    trainee = prepare(recipe, engine)
    accumulated(trainee, recipe, [rows_of(recipe, Noise(recipe.net), 0, range(1))], engine)
    update(trainee, recipe, engine)
    stalls, whole, writes, size, writer = [], [], [], 0, Writer()
    writer.reserve(files_of(trainee) | {"optimizer": optimizer_like(trainee)})  # as `fit` does when it begins
    writer.finish()  # which in a run has happened long before the first checkpoint
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for _ in range(3):
            run = Run(Path(folder) / "run")
            os.sync()
            began = time.perf_counter()
            saved = save(run, recipe, engine, trainee, Samples(), writer)
            stalls.append(time.perf_counter() - began)
            writer.finish()
            whole.append(time.perf_counter() - began)
            parts = [p for p in saved.iterdir() if p.suffix == ".safetensors"]
            size = sum(p.stat().st_size for p in parts)
            held = [p.read_bytes() for p in parts]
            os.sync()
            began = time.perf_counter()
            for i, part in enumerate(held):
                with (Path(folder) / f"plain{i}").open("wb") as file:
                    file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
            writes.append(time.perf_counter() - began)
            trainee.step += 1
    writer.close()
    return {
        "bytes": size,
        "stall_seconds": [round(s, 2) for s in stalls],
        "complete_after_seconds": [round(s, 2) for s in whole],
        "plain_write_seconds": [round(w, 2) for w in writes],
    }


def peak_share(rounds: int = 10) -> dict[str, Any]:
    """DiT-XL/2 and Switch-DiT-XL/2 at 256 tokens in bf16: share of the peak, model operations alone."""
    result: dict[str, Any] = {"measured_product_rate": product_rate(torch.device("cuda"), DTYPES["bf16"])}
    both, alone = ("dit", "switch_dit"), ("dit",)
    for label, batch, families, compiled in (
        ("batch 64, compiled", 64, both, True),
        ("batch 64, not compiled", 64, both, False),
        ("batch 192, compiled", 192, alone, True),
    ):
        result[label] = steps("cuda", "xl2", batch, rounds, 4, families, compile=compiled)
        for family in families:
            told = result[label][f"{family}_xl2"]
            rate = 6 * describe(f"{family}_xl2").macs * batch / told["seconds"]
            told |= {
                "teraflops": round(rate / 1e12, 1),
                "share_of_peak": round(rate / PEAK_BF16, 3),
                "share_of_measured": round(rate / result["measured_product_rate"], 3),
            }
        torch.cuda.empty_cache()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--parts", help="comma-separated, all if not given")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=4, help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.peak_of:
        return peak_of(known.peak_of, known.batch)
    parts: dict[str, Callable[[], Any]] = {
        "step_fp32_batch4": lambda: steps("cpu", "b2", 4, rounds=9),
        "memory_batch4": lambda: memory("b2", 4),
        "data_wait": lambda: waiting("cpu"),
        "checkpoint": lambda: checkpointing("cpu"),
    }
    if known.device == "cuda":
        parts = {
            "peak_share": peak_share,
            "step_bf16_b2_compiled": lambda: steps("cuda", "b2", 128, 15, 4, compile=True, precision="bf16"),
            "data_wait": lambda: waiting("cuda"),
            "checkpoint": lambda: checkpointing("cuda"),
        }
    chosen = known.parts.split(",") if known.parts else list(parts)
    dtype = "float32" if known.device == "cpu" else "bfloat16"
    results: dict[str, Any] = {"provenance": provenance(known.device, dtype) | {"seeds": "0"}}
    path = known.out / f"train-{known.device}.json"
    for name in chosen:
        began = time.perf_counter()
        try:
            results[name] = parts[name]()
        except Exception as error:  # one part's failure must not cost the others their figures; it is recorded
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name} ({time.perf_counter() - began:.0f} s)", json.dumps(results[name]), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
