"""What scoring costs: seconds and peak memory of each metric by the number of images, features on disk.

    python benchmarks/evaluate.py --out benchmarks/results           # on this machine's CPU, some twenty minutes
    python benchmarks/evaluate.py --out … --small                    # thousands of images, a minute

Each case is a process of its own; its memory is its peak less what it held after importing and one small product, and
counts the pages of the files that it maps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hemstitch.evaluate.frechet import Moments, bootstrap_distances, frechet_distance
from hemstitch.evaluate.inception_score import inception_score
from hemstitch.evaluate.kernels import cmmd, kernel_distance
from hemstitch.evaluate.neighbours import Manifold, neighbours
from hemstitch.provenance import provenance

POOLED, EMBEDDED, CLASSES = 2048, 768, 1008  # Inception's pooled features, CLIP's embeddings, Inception's logits
SIZES, SMALL = (5_000, 10_000, 20_000, 50_000), (1_000, 2_000, 4_000)
SEEDS = {"samples": 1, "reference": 2}
LATENT = 256
PART = 5_000


def write(folder: Path, N: int, width: int) -> None:
    """Two sets of N correlated features, not negative, of falling variance; the samples' mean is shifted."""
    mixing = np.random.default_rng(0).normal(size=(LATENT, width)).astype(np.float32)
    mixing *= np.linspace(1.5, 0.1, LATENT, dtype=np.float32)[:, None] / LATENT**0.5
    for name, seed in SEEDS.items():
        generator = np.random.default_rng(seed)
        rows = np.lib.format.open_memmap(folder / f"{name}-{width}.npy", "w+", np.float32, (N, width))
        for start in range(0, N, PART):
            part = generator.standard_normal((min(PART, N - start), LATENT), np.float32) @ mixing
            part += 0.2 * generator.standard_normal(part.shape, np.float32)
            rows[start : start + PART] = np.maximum(part - (0.5 if name == "reference" else 0.45), 0)
        rows.flush()
    np.save(folder / "logits.npy", 3 * np.random.default_rng(3).standard_normal((N, CLASSES), np.float32))
    if width == POOLED:
        moments = Moments.streamed(np.load(folder / f"reference-{width}.npy", mmap_mode="r")[:10_000])
        np.savez(folder / "reference.npz", mu=moments.mean, sigma=moments.covariance)


def case(name: str, folder: Path, N: int) -> None:
    """One metric, timed in this process."""

    def rows(file: str) -> Any:
        return np.load(folder / f"{file}.npy", mmap_mode="r")[:N]

    pooled, embedded = [[rows(f"{set}-{width}") for set in SEEDS] for width in (POOLED, EMBEDDED)]
    reference = None
    if name.startswith("frechet"):
        with np.load(folder / "reference.npz") as file:
            reference = Moments.published(file["mu"], file["sigma"])
    metrics: dict[str, Callable[[], Any]] = {
        "frechet": lambda: frechet_distance(Moments.streamed(pooled[0]), reference),
        "frechet_bootstrap_of_20": lambda: bootstrap_distances(pooled[0], reference).std(ddof=1),
        "neighbours": lambda: [s.value for s in neighbours(*map(Manifold.of, pooled))],
        "kid": lambda: kernel_distance(*pooled).score.value,
        "cmmd": lambda: cmmd(*embedded).value,
        "inception_score": lambda: inception_score(rows("logits")).score.value,
    }
    warm = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32)
    neighbours(Manifold.of(warm), Manifold.of(warm))
    frechet_distance(Moments.of(warm), Moments.of(warm))
    before, began = peak(), time.perf_counter()
    value = metrics[name]()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": round(seconds, 2), "bytes": peak() - before, "value": value}))


def peak() -> int:
    """This process's own peak: ru_maxrss would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def growth(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The exponent of the number of images in the time, by least squares of logarithms."""
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 2)


def measured(name: str, folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    cases = {}
    for N in sizes:
        asked = [sys.executable, __file__, "--case", name, "--count", str(N), "--folder", str(folder)]
        run = subprocess.run(asked, capture_output=True, text=True, check=True)
        cases[str(N)] = json.loads(run.stdout.splitlines()[-1])
    return {"by_count": cases, "growth": growth(sizes, [c["seconds"] for c in cases.values()])}


METRICS = ("frechet", "frechet_bootstrap_of_20", "inception_score", "kid", "cmmd", "neighbours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--small", action="store_true", help="thousands of images instead of tens of thousands")
    parser.add_argument("--sizes", help=f"comma-separated numbers of images ({', '.join(map(str, SIZES))})")
    parser.add_argument("--parts", help=f"comma-separated, of {', '.join(METRICS)}; all if not given")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.case:
        return case(known.case, known.folder, known.count)
    sizes = SMALL if known.small else SIZES
    if known.sizes:
        sizes = tuple(map(int, known.sizes.split(",")))
    names = known.parts.split(",") if known.parts else METRICS
    note = {"seeds": json.dumps(SEEDS), "widths": f"{POOLED}, CMMD {EMBEDDED}, Inception Score {CLASSES}"}
    results: dict[str, Any] = {"provenance": provenance() | note}
    known.out.mkdir(parents=True, exist_ok=True)
    path = known.out / ("evaluate-small.json" if known.small else "evaluate-cpu.json")
    with tempfile.TemporaryDirectory() as folder:
        for width in (EMBEDDED, POOLED):
            write(Path(folder), max(sizes), width)
        for name in names:
            results[name] = measured(name, Path(folder), sizes)
            print(name, json.dumps(results[name]), flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
