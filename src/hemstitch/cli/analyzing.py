"""The command that analyses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HemstitchError
from .line import Line

if TYPE_CHECKING:
    from torch import Tensor

    from ..analyze.study import Study
    from ..denoiser import Denoiser


def analyze(known: argparse.Namespace, rest: list[str]) -> int:
    from ..analyze import figures, report
    from ..analyze.experts import expert_use
    from ..analyze.study import Samples, study
    from ..denoiser import NetDenoiser
    from ..description import describe
    from ..files import write_bytes, write_text
    from ..models import SwitchDiT
    from ..share import device_of
    from .sampling import loaded, look_of, plan_of

    figures.check_there()
    if known.out.exists() and not known.out.is_dir():
        raise HemstitchError(f"{known.out} is a file; --out is a folder")
    members = loaded(known.members, device_of(known.device), known.weights, known.ema)
    plan = plan_of(known, list(members)) if known.plan is not None or known.fraction is not None else None
    labels = _labels(known, members)
    line, found = Line(), None
    turns = study(members, Samples(known.num, labels, known.seed, known.batch), plan, **look_of(known))
    nets = {name: m.net for name, m in members.items() if isinstance(m, NetDenoiser)}
    uses = {name: expert_use(net) for name, net in nets.items() if isinstance(net, SwitchDiT)}
    models = len(members) + (plan is not None)
    for turn in turns:
        line.show(f"{turn.done}/{turn.total} steps of {known.num} samples, {models} models side by side")
        found = turn.study
    assert found is not None
    line.show("drawing")
    made = report.sections(found, uses)
    described = {name: str(describe(member)) for name, member in members.items()}
    source = _source(known, members, found)
    for section in made:
        for shown in section.figures:
            write_bytes(known.out / f"{shown.stem}.png", shown.png)
    write_text(known.out / "report.html", report.html(made, described, source))
    data = {
        **report.numbers(found, uses),
        "figures": {f"{f.stem}.png": f"{f.shows} {f.found}" for section in made for f in section.figures},
        "members": described,
        "settings": _settings(known, found, labels),
        "provenance": source,
    }
    write_text(known.out / "analysis.json", json.dumps(data, allow_nan=False))
    line.close()
    for section in made:
        for shown in section.figures:
            line.say(f"{shown.stem}: {shown.found}")
    line.say(f"{known.out / 'report.html'}, its figures, and analysis.json")
    return 0


def _labels(known: argparse.Namespace, members: dict[str, Denoiser]) -> Tensor | None:
    """(N,) as the options say."""
    from ..bulk import read_labels
    from ..bulk.settings import chosen_labels

    if known.num < 1 or known.batch < 1:
        raise HemstitchError("--num and --batch are at least 1")
    asked, classes = known.labels, next(iter(members.values())).spec.num_classes
    if asked is None or asked in ("balanced", "random"):
        return chosen_labels(asked, classes, known.num, known.seed)
    if Path(asked).suffix or Path(asked).exists():
        return chosen_labels(read_labels(Path(asked)), classes, known.num, known.seed)
    try:
        numbers = [int(word) for word in asked.split(",")]
    except ValueError:
        raise HemstitchError(
            f"--labels is balanced, random, whole numbers (207,360) or a file of them, not {asked!r}"
        ) from None
    return chosen_labels(numbers, classes, known.num, known.seed)


def _settings(known: argparse.Namespace, found: Study, labels: Tensor | None) -> dict[str, object]:
    from .sampling import look_of

    return {
        **look_of(known),
        "steps": found.steps,
        "num": known.num,
        "batch": known.batch,
        "seed": known.seed,
        "labels": None if labels is None else labels.tolist(),
        "weights": known.weights,
        "ema": known.ema,
        "plan": None if found.plan is None else json.loads(found.plan.to_json()),
    }


def _source(known: argparse.Namespace, members: dict[str, Denoiser], found: Study) -> dict[str, str]:
    from ..identity import identity
    from ..provenance import provenance
    from ..share import device_of

    guided = f", guidance {known.guidance:g}" if known.guidance != 1 else ", no guidance"
    return provenance(device_of(known.device)) | {
        "members": ", ".join(f"{name} {identity(member)}" for name, member in members.items()),
        "sampling": f"{known.num} samples, seeds ({known.seed}, 0) to ({known.seed}, {known.num - 1}), {found.steps} "
        f"steps of {known.sampler} on the grid {known.grid}{guided}, {known.batch} at a time",
    }
