"""Hyper-parameters, chosen for the DiT by its own quality; all three families have them.

The process was chosen before any other family was trained. The rate's neighbours, under the process that was chosen,
were looked at afterwards. Width, depth, batch and averaging are by judgement.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .fields import BATCH, Field, fashion, judged, told
from .networks import at, marked, training, transformer
from .work import Ledger, Result, Task

# Process, batch and rate; the first is what was chosen.
OPTIONS = (
    ("cosine v", 64, "3e-3"),
    ("cosine v", 64, "1e-3"),
    ("cosine v", 64, "6e-3"),
    ("cosine eps", 64, "3e-3"),
    ("linear eps", 64, "3e-3"),
    ("cosine eps", 64, "1e-3"),
    ("linear eps", 64, "1e-3"),
)
IMAGES = 96_000
NUM, SAMPLING_SEED = 2_500, 900
LOOKS: dict[str, dict[str, Any]] = {
    "ddim 25": {"sampler": "ddim", "steps": 25},
    "ddim 50": {"sampler": "ddim", "steps": 50},
    "dpmpp_2m 15": {"sampler": "dpmpp_2m", "steps": 15},
}


def tasks(folder: Path) -> list[Task]:
    field, runs = fashion(folder), folder / "runs"
    found = [field.task("switch/field")]
    for process, batch, rate in OPTIONS:
        schedule, prediction = process.split()
        name = f"choose-{schedule}-{prediction}-{batch}-{rate}"
        recipe = transformer(
            field,
            name,
            schedule=schedule,
            prediction=prediction,
            batch=batch,
            learning_rate=float(rate),
            steps=IMAGES // batch,
        )
        found.append(training(f"choose/trained/{name}", recipe, runs))
        for look in LOOKS if (process, batch, rate) == OPTIONS[0] else ("ddim 25",):
            judge = partial(_judge, field, runs / name, IMAGES // batch, folder / "features" / name / look, look)
            needs = ("switch/field", f"choose/trained/{name}")
            of = (field.settings, marked(recipe), LOOKS[look], NUM, SAMPLING_SEED)
            found.append(Task(f"choose/judged/{name}/{look}", judge, needs, of))
    return found


def _judge(field: Field, run: Path, steps: int, kept: Path, look: str) -> Result:
    scores = judged(field, at(run, steps), NUM, kept, SAMPLING_SEED, LOOKS[look])
    return {name: told(score) for name, score in scores.items()}


def summary(ledger: Ledger) -> dict[str, Any]:
    return {
        "sampling": {"looks": LOOKS, "samples": NUM, "seed": SAMPLING_SEED, "batch": BATCH},
        "trained": ledger.all("choose/trained"),
        "judged": ledger.all("choose/judged"),
    }
