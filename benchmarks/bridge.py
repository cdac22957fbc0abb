"""What a stitched diffusers pipeline costs and whether it is exact: equality, overhead, speed, DiT, memory, compiling.

python benchmarks/bridge.py                       # on a CPU, with reduced widths
benchmarks/bridge.sh                              # on a GPU, with the published ones
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge_memory import memory
from bridge_networks import SEEDS, UNETS, Bench, dit_latents, dit_pipeline, free, parameters, size_of, spread
from hemstitch import NetDenoiser, Plan, Stitched, generate
from hemstitch.provenance import provenance

FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
CALLS = 50  # of a run whose overhead is measured, one a solver step
WARM = 4  # pairs of calls that are not counted


def compared(a: Tensor, b: Tensor) -> dict[str, Any]:
    return {
        "equal": torch.equal(a, b),
        "largest_difference": float((a.double() - b.double()).abs().max()),
        "finite": bool(a.isfinite().all()),
    }


# 1. A stitched pipeline at fraction 0 or 1 and the plain pipeline of that member


def equality(bench: Bench) -> dict[str, Any]:
    from hemstitch.bridge import stitch

    results = {}
    small, large = bench.unet("small"), bench.unet("large")
    plain = {name: bench.latents(bench.pipeline(net)) for name, net in (("small", small), ("large", large))}
    pipe = stitch(bench.pipeline(large), small, fraction=0.0)
    results["unet"] = _ends(pipe, plain, bench.latents)
    with tempfile.TemporaryDirectory() as folder:
        _, nets = bench.dits(Path(folder))
        nets = {name: net.to(bench.dtype) for name, net in nets.items()}
        ask = partial(dit_latents, steps=bench.size.steps)
        plain = {name: ask(dit_pipeline(net)) for name, net in nets.items()}
        results["dit"] = _ends(stitch(dit_pipeline(nets["large"]), nets["small"], fraction=0.0), plain, ask)
    return results


def _ends(pipe: Any, plain: dict[str, Tensor], ask: Callable[[Any], Tensor]) -> dict[str, Any]:
    from hemstitch.bridge import replan

    results: dict[str, Any] = {}
    for fraction, name in ((0.0, "large"), (1.0, "small")):
        with replan(pipe, fraction=fraction):
            results[f"{fraction:g}"] = compared(ask(pipe), plain[name])
    with replan(pipe, fraction=0.4):
        between = ask(pipe)
    results["0.4 differs from both"] = not any(torch.equal(between, alone) for alone in plain.values())
    return results


# 2. Overhead of the wrapper, per call


@torch.no_grad()
def overhead(bench: Bench) -> dict[str, Any]:
    """Milliseconds that a call through the wrapper takes beyond the member's own call, paired.

    Until the call returns: on a GPU this is the host's time. "tiny networks": U-Nets of two blocks. "no computing": the
    pair with as many modules as Stable Diffusion's (what is done at a seam visits them), whose forwards answer at once,
    so that the wrapper is all there is to time; and whole runs of their pipelines, each beyond its members' share of
    plain runs, which holds what pipelines ask of the wrapper between the calls, too.
    """
    import tiny

    calls = bench.size.calls
    blocks = {"small": tiny.unet_sd("small"), "large": tiny.unet_sd("large")}
    blocks = {name: net.to(bench.device, bench.dtype) for name, net in blocks.items()}
    results: dict[str, Any] = {"target_ms": 0.2, "tiny networks": _overhead(bench, blocks)}
    narrow = replace(bench, size=replace(size_of("tiny", bench.device), calls=calls, steps=CALLS))
    pair = {name: narrow.unet(name) for name in UNETS}
    side = narrow.size.latents
    answer = (torch.zeros(2, 4, side, side, device=bench.device, dtype=bench.dtype),)
    for net in pair.values():
        net.forward = lambda *args, **kwargs: answer
    results["no computing"] = _overhead(narrow, pair)
    rows = timed(narrow, pair, (0.0, 0.4, 1.0), rounds=max(calls // 10, 2))["fractions"]
    results["whole runs, no computing"] = {f"{row['fraction']:g}": row["beyond_ideal_ms_per_step"] for row in rows}
    return results


def _overhead(bench: Bench, pair: dict[str, Any]) -> dict[str, Any]:
    import tiny

    from hemstitch.bridge import stitch, stitched

    pipe = stitch(bench.pipeline(pair["large"]), pair["small"], fraction=0.4)
    model, scheduler = stitched(pipe), pipe.scheduler
    side, width = pair["large"].config.sample_size, pair["large"].config.cross_attention_dim
    x = torch.randn(2, 4, side, side, device=bench.device, dtype=bench.dtype)
    text = torch.randn(2, 77, width, device=bench.device, dtype=bench.dtype)

    def again() -> None:
        scheduler.set_timesteps(CALLS, device=bench.device)

    def ask(network: Any, place: int) -> Any:
        return from_inside(pipe, network, x, scheduler.timesteps[place], text)

    def ask_in_loop(network: Any, place: int) -> Any:  # of one's own: no pipeline among the callers
        return network(x, scheduler.timesteps[place], encoder_hidden_states=text, return_dict=False)

    def ask_with_copy(network: Any, place: int) -> Any:  # as DiTPipeline on a GPU: its place is found by its value
        return from_inside(pipe, network, x, scheduler.timesteps[place].clone(), text)

    def gaps(places: Sequence[int], before: Callable[[], Any] = lambda: None, ask: Any = ask) -> dict[str, Any]:
        milliseconds = []
        for i in range(bench.size.calls + WARM):
            place = places[i % len(places)]
            ways = {"through": model, "alone": pair["small" if place < 0.4 * CALLS else "large"]}
            taken = {}
            for way in sorted(ways, reverse=bool(i // 2 % 2)):
                before()
                bench.wait()
                begin = time.perf_counter()
                ask(ways[way], place)
                taken[way] = time.perf_counter() - begin
            milliseconds.append(1000 * (taken["through"] - taken["alone"]))
        return spread(milliseconds[WARM:])

    again()
    ask(model, 0)  # a run begins
    found = {
        "modules": {name: sum(1 for _ in net.modules()) for name, net in pair.items()},
        "within a run": gaps([30]),
        "at a seam": gaps([10, 30]),
        "first call of a run": gaps([0], again),
        "first call of a run, in a loop of one's own": gaps([0], again, ask_in_loop),
    }
    scheduler = pipe.scheduler = tiny.sd_scheduler()  # DDIM, which keeps no index
    again()
    ask(model, 0)
    return found | {"within a run, the timestep a copy": gaps([30], ask=ask_with_copy)}


def from_inside(self: Any, network: Any, x: Tensor, t: Tensor, text: Tensor) -> Any:
    """A call of the network as the pipeline `self` makes it; named so because the pipeline is found by this name."""
    return network(x, t, encoder_hidden_states=text, timestep_cond=None, return_dict=False)


# 3. Speed, beside the ideal


def speed(bench: Bench) -> dict[str, Any]:
    nets = {name: bench.unet(name) for name in UNETS}
    return {
        f"pictures: {pictures}": timed(bench, nets, FRACTIONS, bench.size.rounds, pictures)
        for pictures in sorted({1, bench.size.pictures})
    }


def timed(
    bench: Bench, nets: dict[str, Any], fractions: Sequence[float], rounds: int, pictures: int = 1
) -> dict[str, Any]:
    """Whole runs, in turns with the plain pipelines of both members. ideal: of a round, that many steps at what a step
    of each plain pipeline took in the same round. ratio = ideal / measured.
    """
    from hemstitch.bridge import replan, stitch, stitched

    steps = bench.size.steps
    alone = {name: bench.pipeline(net) for name, net in nets.items()}
    pipe = stitch(bench.pipeline(nets["large"]), nets["small"], fraction=0.0)

    def run(fraction: float) -> Tensor:
        with replan(pipe, fraction=fraction):
            return bench.latents(pipe, pictures=pictures)

    variants: dict[str, Callable[[], Any]] = {
        name: partial(bench.latents, alone[name], pictures=pictures) for name in nets
    }
    finite, small_steps = True, {}
    for fraction in fractions:
        finite &= bool(run(fraction).isfinite().all())
        small_steps[fraction] = stitched(pipe).route.last.counts.get("small", 0)
        variants[f"{fraction:g}"] = partial(run, fraction)
    times = bench.interleaved(variants, rounds)

    rows = []
    for fraction in fractions:
        k, measured = small_steps[fraction], times[f"{fraction:g}"]
        pairs = zip(times["small"], times["large"], strict=True)
        ideal = [(k * small + (steps - k) * large) / steps for small, large in pairs]
        ratio = spread([i / m for i, m in zip(ideal, measured, strict=True)])
        beyond = [1000 * (m - i) / steps for i, m in zip(ideal, measured, strict=True)]
        rows.append(
            {
                "fraction": fraction,
                "small_steps": k,
                "seconds": spread(measured),
                "ideal_seconds": round(statistics.median(ideal), 4),
                "speedup": round(statistics.median(times["large"]) / statistics.median(measured), 3),
                "beyond_ideal_ms_per_step": spread(beyond),
                "ratio": ratio,
                "ratio_at_least_0.98": ratio["median"] >= 0.98,
            }
        )
    return {
        "parameters": {name: parameters(net) for name, net in nets.items()},
        "latents": bench.size.latents,
        "steps": steps,
        "pictures": pictures,
        "rounds": rounds,
        "finite": finite,
        "step_ms": {name: spread([1000 * s / steps for s in times[name]], 2) for name in nets},
        "fractions": rows,
    }


# 4. diffusers' DiTPipeline and our own sampler


def dit(bench: Bench, labels: Sequence[int] = (1, 207), guidance: float = 1.5) -> dict[str, Any]:
    """Largest difference over the largest magnitude, in float32 without TF32: DDIM, guidance on all channels.

    "released frequencies": networks as DiT was released, whose timestep frequencies diffusers spaces otherwise; this is
    what converting them costs, stitched or not.
    """
    from hemstitch.bridge import stitch

    cases: list[tuple[str, dict[str, Any]]] = [(spacing, {}) for spacing in ("leading", "trailing")]
    cases.append(("leading", {"frequency_shift": 0}))
    results: dict[str, Any] = {"target": 1e-4, "dtype": "float32", "steps": bench.size.steps}
    with _no_tf32():
        for spacing, changes in cases:
            with tempfile.TemporaryDirectory() as folder:
                ours, theirs = bench.dits(Path(folder), **changes)
            pipe = stitch(dit_pipeline(theirs["large"], spacing), theirs["small"], fraction=0.0)
            row = _gaps(bench, ours, pipe, spacing, labels, guidance)
            results[f"{spacing}, released frequencies" if changes else spacing] = row
    return results


def _gaps(
    bench: Bench, ours: dict[str, NetDenoiser], pipe: Any, spacing: str, labels: Sequence[int], guidance: float
) -> dict[str, Any]:
    from hemstitch.bridge import replan, stitched

    steps, shape = bench.size.steps, ours["large"].spec.shape
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(SEEDS["noise"]))
    gaps: dict[str, Any] = {}
    for fraction in (0.0, 0.4, 1.0):
        plan = Plan.fractions({"small": fraction, "large": 1 - fraction}, steps)
        expected = generate(Stitched(ours, plan), labels, noise=noise, guidance=guidance, grid=spacing)
        with replan(pipe, fraction=fraction):
            got = dit_latents(pipe, steps, labels, guidance)
        if list(stitched(pipe).route.last.assignment) != list(plan.assignment):
            raise RuntimeError(f"fraction {fraction}: the pipeline went by {stitched(pipe).route.last}, we by {plan}")
        gaps[f"{fraction:g}"] = float((got - expected).abs().max() / expected.abs().max())
    return gaps


@contextmanager
def _no_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# 6. Compiled members


def compiled(bench: Bench, rounds: int = 4, backend: str = "inductor") -> dict[str, Any]:
    """Each member compiled in place, the wrapper left as it is: graphs, breaks, and runs as in `speed`."""
    import torch._dynamo

    from hemstitch.bridge import stitch

    nets = {name: bench.unet(name) for name in UNETS}
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    pipe = stitch(bench.pipeline(nets["large"]), nets["small"], fraction=0.4)
    ask = partial(bench.latents, pipe, pictures=bench.size.pictures)
    eager = ask()
    pipe.unet.compile(backend=backend)
    opening = bench.seconds(ask)
    result = ask()

    def uncompiled() -> None:
        with torch.compiler.set_stance("force_eager"):
            ask()

    both = bench.interleaved({"compiled": ask, "eager": uncompiled}, rounds)
    ratios = [e / c for e, c in zip(both["eager"], both["compiled"], strict=True)]
    return {
        "backend": backend,
        "first_run_seconds": round(opening, 1),
        "gap_to_eager": float((result - eager).abs().max() / eager.abs().max()),
        "eager_over_compiled": spread(ratios),
        "timed": timed(bench, nets, (0.0, 0.4, 1.0), rounds, bench.size.pictures),
        "graph_breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],  # two, unless something was compiled again
    }


# Told


def table(name: str, result: dict[str, Any]) -> list[str]:
    """A part's figures, for reading."""
    if "failed" in result:
        return [f"  failed: {result['failed']}"]
    if "not measured" in result:
        return [f"  not measured: {result['not measured']}"]
    return {
        "equality": _table_equality,
        "overhead": _table_overhead,
        "speed": _table_speed,
        "dit": _table_dit,
        "memory": _table_memory,
        "compiled": _table_compiled,
    }[name](result)


def _table_equality(result: dict[str, Any]) -> list[str]:
    return [
        f"  {kind:5} fraction {fraction}: "
        + ("bitwise equal" if row["equal"] else f"differs by {row['largest_difference']:.3g}")
        for kind, rows in result.items()
        for fraction, row in rows.items()
        if isinstance(row, dict)
    ]


def _told(row: dict[str, Any], unit: str = "") -> str:
    (low, high), median = row["interval"], row["median"]
    return f"{median:.4g} ({low:.4g} to {high:.4g}){unit}"


def _table_overhead(result: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("tiny networks", "no computing"):
        rows = [(name, row) for name, row in result[kind].items() if "median" in row]
        lines += [f"  {kind + ', ' + name:60} {_told(row, ' ms')}" for name, row in rows]
    for fraction, row in result["whole runs, no computing"].items():
        lines.append(f"  {'a call, over a whole run at fraction ' + fraction:60} {_told(row, ' ms')}")
    return lines


def _table_speed(results: dict[str, Any]) -> list[str]:
    return [line for name, result in results.items() for line in (f"  {name}", *_table_timed(result))]


def _table_timed(result: dict[str, Any]) -> list[str]:
    lines = [f"  a step of {name:5}: {_told(row, ' ms')}" for name, row in result["step_ms"].items()]
    lines.append("  fraction  seconds   ideal  speed-up  ideal / measured (95 % interval of the median)")
    for row in result["fractions"]:
        seconds, ratio = row["seconds"]["median"], _told(row["ratio"])
        lines.append(
            f"  {row['fraction']:8.1f} {seconds:8.4f} {row['ideal_seconds']:7.4f} {row['speedup']:9.3f}  {ratio}"
        )
    return lines


def _table_dit(result: dict[str, Any]) -> list[str]:
    rows = [(name, gaps) for name, gaps in result.items() if isinstance(gaps, dict)]
    return [f"  {name:30} " + "  ".join(f"{f}: {gap:.2e}" for f, gap in gaps.items()) for name, gaps in rows]


def _table_memory(result: dict[str, Any]) -> list[str]:
    lines = ["  weights " + ", ".join(f"{name} {size} MiB" for name, size in result["weight_mib"].items())]
    for mode, row in result.get("modes", {}).items():
        seconds, share = row["seconds"]["median"], row["over_large_and_activations"]
        lines.append(
            f"  {mode:12} peak {row['peak_mib']:8.1f} MiB  {share:.3f} of large and activations  {seconds:.3f} s"
        )
    for mode, row in result.get("resident", {}).items():
        lines.append(
            f"  {mode:12} resident: built {row['built_mib']:7.1f}  peak {row['peak_mib']:7.1f}  "
            f"after the run {row['kept_mib']:7.1f} MiB"
        )
    if "modes" in result:
        lines.append(f"  a change of member takes {result['seconds_per_change_of_member']} s")
    return lines


def _table_compiled(result: dict[str, Any]) -> list[str]:
    return [
        f"  graph breaks: {result['graph_breaks']}, graphs: {result['graphs']}",
        f"  first run: {result['first_run_seconds']} s",
        f"  eager / compiled at fraction 0.4: {_told(result['eager_over_compiled'])}",
        *_table_timed(result["timed"]),
    ]


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "equality": equality,
    "overhead": overhead,
    "speed": speed,
    "dit": dit,
    "memory": memory,
    "compiled": lambda bench: compiled(bench) if bench.device == "cuda" else {"not measured": "on a CPU"},
}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="of the U-Nets: bfloat16 on a GPU, else float32")
    add("--size", choices=["tiny", "realistic"], default="realistic")
    add("--out", type=Path, help="file for the results (benchmarks/results/bridge-DEVICE.json)")
    add("--parts", default=",".join(PARTS), help="separated by commas: %(default)s")
    known = parser.parse_args(given)
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    dtype = known.dtype or ("bfloat16" if known.device == "cuda" else "float32")
    names = known.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown parts: {', '.join(unknown)}")
    bench = Bench(known.device, getattr(torch, dtype), size_of(known.size, known.device))
    path = known.out or Path(__file__).parent / "results" / f"bridge-{known.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = {package: installed(package) for package in ("diffusers", "transformers")}
    results: dict[str, Any] = {
        "provenance": provenance(known.device, dtype) | versions | {"size": known.size, "seeds": json.dumps(SEEDS)}
    }
    failures = 0
    for name in names:
        begin = time.perf_counter()
        try:
            results[name] = PARTS[name](bench)
        except Exception as error:  # one part's failure must not cost the others their figures; it is recorded
            logging.exception(name)
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
            failures += 1
        free()
        print(f"{name} ({time.perf_counter() - begin:.0f} s)", *table(name, results[name]), sep="\n", flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
