"""What only a GPU can answer. Run through gpu.sh."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hemstitch import Guided, NetConfig, NetDenoiser, Plan, Process, Spec, Stitched, build, generate, recipes
from hemstitch.models import preset
from hemstitch.provenance import provenance
from hemstitch.samplers import SAMPLERS
from hemstitch.sampling import Job, prepare
from hemstitch.stitch.latency import ideal_seconds
from hemstitch.train.fit import fit
from hemstitch.train.objective import Objective

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "golden.safetensors"
LEARNED = Process("linear", learned_variance=True)


def interleaved(variants: dict[str, Callable[[], Any]], repeats: int, warm: int = 3) -> dict[str, float]:
    """Median seconds of each variant, the variants taking turns, synchronised around each call."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + warm):
        for name, run in variants.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if repeat >= warm:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def randomised(config: NetConfig, dtype: torch.dtype) -> torch.nn.Module:
    """A network on the GPU whose output is not zero; weights do not change what it costs."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        net = build(config)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    return net.to(dtype)


def denoiser(name: str, dtype: torch.dtype) -> NetDenoiser:
    config = preset(name)
    spec = Spec(4, config.input_size, 1000, null_label=True)
    return NetDenoiser(randomised(config, dtype).eval(), LEARNED, spec)


def golden() -> dict[str, float]:
    """Largest relative gap of each golden network on the GPU, in float32 without TF32."""
    g = load_file(GOLDEN, device="cuda")
    gaps = {}
    for name, family in (("dit", "dit"), ("small", "dit"), ("dtr", "dtr"), ("switch", "switch_dit")):
        width, depth = (16, 2) if name == "small" else (32, 3)
        net = build(NetConfig(family, 8, 4, 2, width, depth, 2, 10))
        net.load_state_dict({k.partition("/")[2]: v for k, v in g.items() if k.startswith(f"{name}/")})
        with torch.no_grad():
            out = net.cuda().eval()(g["x"], g["t"], g["y"])
        gaps[name] = float((out - g[f"{name}.out"]).abs().max() / g[f"{name}.out"].abs().max())
    return gaps


def no_synchronisation() -> dict[str, str]:
    """Every sampler's step under a stitch and guidance, with torch told to raise at any synchronising call."""
    members = {"small": denoiser("dit_s8", torch.float32), "large": denoiser("switch_dit_s8", torch.float32)}
    model = Stitched(members, Plan.fractions({"small": 0.5, "large": 0.5}, 6))
    verdict = {}
    for name in SAMPLERS:
        generate(model, [1, 2, 3, 4], sampler=name, guidance=1.5)  # warm
        verdict[name] = _stepping(prepare(model, [1, 2, 3, 4], sampler=name, guidance=1.5))
        mixed = prepare(model, [1, 2, 3, 4], sampler=name, guidance=[1.0, 1.5, 2.0, 1.0])
        verdict[f"{name}, rows of different members and guidance"] = _stepping(mixed, apart=True)
    return verdict


def _stepping(job: Job, apart: bool = False) -> str:
    """Step to the end, raising at synchronisation. apart: rows go to the members in turn, whatever the plan."""
    state = job.state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            while not bool(state.done.all()):
                at = state.t
                route = torch.arange(len(at)) % 2 if apart else job.denoiser.route(state.step, at)
                state = job.sampler.step(state, job.denoiser(state.x, at, job.labels, member=route))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def stitching(dtype: torch.dtype, steps: int = 100, batch: int = 8) -> list[dict[str, float]]:
    """Seconds to sample 8 images, DiT-S/2 first, DiT-XL/2 after (T-Stitch, table 1: DDIM 100, guidance 1.5)."""
    members = {"small": denoiser("dit_s2", dtype), "large": denoiser("dit_xl2", dtype)}
    labels = list(range(batch))
    variants, plans = {}, {}
    for tenth in range(11):
        plan = Plan.fractions({"small": tenth / 10, "large": 1 - tenth / 10}, steps)
        model = Stitched(members, plan)
        plans[f"{tenth / 10}"] = plan
        variants[f"{tenth / 10}"] = lambda model=model: generate(model, labels, guidance=1.5, guidance_channels=3)
    seconds = interleaved(variants, repeats=5, warm=1)
    large = seconds["0.0"]
    cost = {"small": seconds["1.0"] / steps, "large": large / steps}
    return [
        {
            "fraction": float(r),
            "seconds": round(s, 4),
            "speedup": round(large / s, 3),
            "speedup_ideal": round(large / ideal_seconds(plans[r], cost), 3),
        }
        for r, s in seconds.items()
    ]


def sampling_cost(dtype: torch.dtype, batch: int = 32) -> dict[str, float]:
    """Seconds of one guided prediction of a batch at one timestep: DiT, DTR and Switch-DiT (experts merged)."""
    result = {}
    for size in ("b2", "xl2"):
        asks = {}
        for family in ("dit", "dtr", "switch_dit"):
            model = Guided(denoiser(f"{family}_{size}", dtype), 1.5)
            x = torch.randn(batch, 4, 32, 32, device="cuda")
            t, y = torch.tensor([500.0]).expand(batch), torch.arange(batch, device="cuda")
            asks[f"{family}_{size}"] = torch.no_grad()(lambda model=model, x=x, t=t, y=y: model(x, t, y))
        result |= {name: round(s, 6) for name, s in interleaved(asks, repeats=15).items()}
        free()
    return result


def training_cost(batch: int = 64) -> dict[str, dict[str, float]]:
    """Seconds and peak GiB of one training step (forward, backward, AdamW) in bf16, not compiled."""
    result = {}
    for size in ("b2", "xl2"):
        steps = {}
        for family in ("dit", "dtr", "switch_dit"):
            objective = Objective(randomised(preset(f"{family}_{size}"), torch.float32), LEARNED)
            optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], 1e-4, fused=True)
            steps[f"{family}_{size}"] = training_step(objective, optimizer, batch)
        seconds = interleaved(steps, repeats=7)
        for name in steps:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            steps[name]()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**30
            result[name] = {"seconds": round(seconds[name], 5), "activation_gib": round(peak, 3)}
        del steps
        free()
    return result


def training_step(objective: Objective, optimizer: torch.optim.Optimizer, batch: int) -> Callable[[], None]:
    x0, eps = torch.randn(2, batch, 4, 32, 32, device="cuda")
    t, y = torch.randint(0, 1000, (batch,), device="cuda"), torch.randint(0, 1001, (batch,), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            losses = objective(x0, t, eps, y)
        losses.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training_runs() -> dict[str, dict[str, float]]:
    """The debug recipe through `fit` on this device: losses fall, alike in every precision, and it resumes."""
    ways: dict[str, dict[str, Any]] = {
        "fp32": {"precision": "fp32"},
        "bf16": {"precision": "bf16"},
        "fp16": {"precision": "fp16"},
        "bf16, recomputed, in 4 parts": {"precision": "bf16", "recompute": True, "accumulate": 4},
        "bf16, compiled": {"precision": "bf16", "compile": True},
    }
    return {name: training_run(**changes) for name, changes in ways.items()}


def training_run(**changes: Any) -> dict[str, float]:
    """In two sittings."""
    recipe = recipes.debug()
    recipe = replace(recipe, train=replace(recipe.train, steps=100, log_every=50, sample_every=0, **changes))
    first = replace(recipe, train=replace(recipe.train, steps=60))
    with tempfile.TemporaryDirectory() as folder:
        told = list(fit(first, Path(folder) / "run"))
        told += list(fit(recipe, Path(folder) / "run", resume=True))
    return {"first_loss": told[0].loss, "last_loss": told[-1].loss, "images_per_second": told[-1].rate}


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="gpu.json")
    known = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "golden_gap": golden,
        "synchronisation": no_synchronisation,
        "training_runs": training_runs,
        "stitching_bf16": lambda: stitching(torch.bfloat16),
        "stitching_fp32": lambda: stitching(torch.float32, steps=25),
        "sampling_seconds_bf16": lambda: sampling_cost(torch.bfloat16),
        "training_bf16": training_cost,
    }
    results: dict[str, Any] = {"provenance": provenance("cuda", "as named per part; seeds 0")}
    for name, part in parts.items():
        begin = time.perf_counter()
        try:
            results[name] = part()
        except Exception as error:  # one part's failure must not cost the others their figures; it is recorded
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
        free()
        print(f"{name} ({time.perf_counter() - begin:.0f} s)", json.dumps(results[name]), flush=True)
        (known.out / known.name).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
