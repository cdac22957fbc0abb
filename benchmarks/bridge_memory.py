"""Peak memory of a stitched run, by where its members lie. A part of bridge.py; also the process that it measures."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bridge_networks import UNETS, Bench, free, size_of, spread, weight_bytes


def memory(bench: Bench, fraction: float = 0.4) -> dict[str, Any]:
    """Peak memory of a run, by where the members lie."""
    with tempfile.TemporaryDirectory() as folder:
        nets = {name: bench.unet(name, bench.size.memory_shrink) for name in UNETS}
        facts = {"fraction": fraction, "weight_mib": {name: mib(weight_bytes(net)) for name, net in nets.items()}}
        for name, net in nets.items():
            net.save_pretrained(Path(folder) / name)
        if bench.device == "cpu":
            del nets
            return facts | host_memory(bench, Path(folder), fraction)
        return facts | device_memory(bench, nets, Path(folder), fraction)


def mib(count: float) -> float:
    return round(count / 2**20, 1)


MODES = ("large alone", "both", "both, lazy", "active", "active, lazy")


def in_mode(bench: Bench, mode: str, large: Any, small: Any, folder: Path, fraction: float) -> Any:
    from diffusers import UNet2DConditionModel

    from hemstitch.bridge import Lazy, stitch

    pipe = bench.pipeline(large)
    if mode == "large alone":
        return pipe
    if mode == "both":
        small.to(bench.device)
    if mode.endswith("lazy"):
        small = Lazy(UNet2DConditionModel, folder / "small", torch_dtype=bench.dtype)
    return stitch(pipe, small, fraction=fraction, keep=mode.partition(",")[0])


def device_memory(bench: Bench, nets: dict[str, Any], folder: Path, fraction: float) -> dict[str, Any]:
    """Of the device's allocator. seconds: of whole runs, one mode after the other: moving takes far longer than the
    machine wavers. Two members change places twice a run: as it begins and at the seam."""
    from hemstitch.bridge import unstitch

    rows: dict[str, Any] = {}
    for mode in MODES:
        for net in nets.values():
            net.to("cpu")
        free()
        pipe = in_mode(bench, mode, nets["large"], nets["small"], folder, fraction)
        bench.latents(pipe)  # libraries' own buffers
        torch.cuda.reset_peak_memory_stats()
        bench.latents(pipe)
        rows[mode] = {"peak_mib": mib(torch.cuda.max_memory_allocated())}
        rows[mode]["seconds"] = spread([bench.seconds(partial(bench.latents, pipe)) for _ in range(3)])
        unstitch(pipe)
        del pipe
    weights = {name: weight_bytes(net) / 2**20 for name, net in nets.items()}
    activations = rows["large alone"]["peak_mib"] - weights["large"]
    changing = rows["active"]["seconds"]["median"] - rows["both"]["seconds"]["median"]
    opening = rows["active, lazy"]["seconds"]["median"] - rows["both"]["seconds"]["median"]
    for row in rows.values():
        row["over_large_and_activations"] = round(row["peak_mib"] / (weights["large"] + activations), 4)
    return {
        "activations_mib": round(activations, 1),
        "modes": rows,
        "active_peaks_at_large_and_activations": abs(rows["active"]["over_large_and_activations"] - 1) <= 0.01,
        "seconds_per_change_of_member": round(changing / 2, 4),
        "seconds_per_run_to_open_and_change": round(opening, 4),
    }


def host_memory(bench: Bench, folder: Path, fraction: float) -> dict[str, Any]:
    """Resident memory of a fresh process in each mode. "active" moves nothing where the device is the CPU."""
    rows = {}
    for mode in MODES:
        if mode == "active":
            continue
        command = [sys.executable, __file__, "--mode", mode, "--folder", str(folder), "--fraction", str(fraction)]
        command += ["--dtype", str(bench.dtype).removeprefix("torch.")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{mode}: {done.stderr[-2000:]}")
        rows[mode] = json.loads(done.stdout.splitlines()[-1])
    return {"device_memory": "not measured on CPU", "resident": rows}


@torch.no_grad()
def host_memory_of(mode: str, folder: Path, fraction: float, dtype: torch.dtype) -> dict[str, float]:
    """Of this process, in MiB beyond its imports: with the pipeline built, at the peak, and behind the run."""
    import tiny  # noqa: F401  (imported before the first reading)
    from diffusers import UNet2DConditionModel

    from hemstitch.bridge import stitch  # noqa: F401

    bench = Bench("cpu", dtype, replace(size_of("tiny", "cpu"), steps=5))
    before = _resident()

    def opened(name: str) -> Any:
        return UNet2DConditionModel.from_pretrained(folder / name, torch_dtype=dtype).eval()

    pipe = in_mode(bench, mode, opened("large"), opened("small") if mode == "both" else None, folder, fraction)
    built = _resident()
    begin = time.perf_counter()
    bench.latents(pipe)
    seconds = time.perf_counter() - begin
    gc.collect()
    kept = _resident()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sizes = {"built_mib": built - before, "peak_mib": peak - before, "kept_mib": kept - before}
    return {name: round(size, 1) for name, size in sizes.items()} | {"seconds": round(seconds, 3)}


def _resident() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    parser = argparse.ArgumentParser(description="the process that host_memory starts")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--fraction", type=float, required=True)
    parser.add_argument("--dtype", required=True)
    known = parser.parse_args()
    print(json.dumps(host_memory_of(known.mode, known.folder, known.fraction, getattr(torch, known.dtype))))


if __name__ == "__main__":
    main()
