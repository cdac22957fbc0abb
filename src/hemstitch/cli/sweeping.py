"""The curve of `hemstitch evaluate --curve`: plans and guidance swept, quality against measured latency."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HemstitchError
from .line import Line, clock

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..evaluate.curve import Candidate, Point, Setting
    from ..stitch.plan import Plan


def sweep(known: argparse.Namespace) -> int:
    from ..evaluate import report
    from ..evaluate.curve import measure
    from ..evaluate.plot import curve_png
    from ..files import write_bytes, write_text
    from ..identity import identity
    from ..provenance import provenance
    from ..share import device_of
    from .sampling import loaded

    device = device_of(known.device)
    members = loaded(known.sets, device, known.weights, known.ema)
    if len(members) < 2:
        raise HemstitchError("a curve is of two members or more: small=PATH large=PATH")
    large = list(members)[-1]
    setting, reference = _setting(known, members, large)
    candidates = _candidates(known, members, large, setting)
    out = known.out or Path("curve")
    line = Line()
    points: list[Point] = []
    for turn in measure(setting, candidates):
        line.show(
            f"{len(candidates)} plans in turns, {turn.done}/{turn.total} batches, {clock(turn.left)} left; "
            f"{turn.candidate.name}: {1000 * turn.seconds:.2f} ms per image",
            turn.done == turn.total,
        )
        if turn.finished is not None:
            if not points:
                line.say(report.TABLE_HEAD)
            points.append(turn.finished.point)
            line.say(report.table_row(points[-1]))
    extractor = setting.extractor
    source = provenance(device) | {
        "members": ", ".join(f"{name} {identity(member)}" for name, member in members.items()),
        "sampling": f"{setting.num} samples a point, seeds (0, 0) to (0, {setting.num - 1}), {setting.sampler}, batch "
        f"{setting.batch}",
        "extractor": f"{extractor.name} {extractor.hash} ({extractor.version})",
        "reference": reference,
    }
    data = {"points": [p.to_json() for p in points], "provenance": source}
    write_text(out / "curve.json", json.dumps(data, indent=1))
    title = f"{' → '.join(members)}; {candidates[0].plan.steps} steps of {setting.sampler}, {setting.num} samples"
    write_bytes(out / "curve.png", curve_png(points, title, large))
    line.say(f"{out / 'curve.png'} and curve.json")
    return 0


def _setting(known: argparse.Namespace, members: dict[str, Denoiser], large: str) -> tuple[Setting, str]:
    """How all plans are sampled and measured, and what the reference is."""
    from ..bulk.settings import chosen_labels
    from ..evaluate.curve import Setting
    from ..evaluate.features import moments_of
    from ..evaluate.reference import open_reference
    from ..share import device_of
    from .evaluating import measuring_of

    if known.reference is None:
        raise HemstitchError("a curve measures a distance to a reference: give one (--reference imagenet/val)")
    device, spec = device_of(known.device), members[large].spec
    measuring, _ = measuring_of(known)
    source = open_reference(known.reference, size=known.reference_size, grey=known.grey)
    moments = (source.statistics or {}).get("pool")
    if moments is None:
        if source.images is None:
            raise HemstitchError(f"{source.name} has no statistics of pooled features: give pictures")
        moments = moments_of(source.images, measuring.extractor)
    decode = None
    if known.vae is not None:
        from ..autoencoder import decoder

        decode = decoder(known.vae, spec, device)
    elif spec.channels not in (1, 3):
        raise HemstitchError(f"samples of {spec.channels} channels are latents: decode them (--vae FOLDER)")
    num = known.count or 1000
    labels = chosen_labels(None, spec.num_classes, num, 0)
    setting = Setting(
        members, large, labels, num, min(known.batch, num), known.sampler, measuring.extractor, moments, decode
    )
    return setting, f"{source.name} {source.hash[:12]}".strip()


def _candidates(
    known: argparse.Namespace, members: dict[str, Denoiser], large: str, setting: Setting
) -> list[Candidate]:
    from ..evaluate.curve import candidates_of
    from ..files import read_json_file
    from ..stitch.latency import seconds_per_call
    from ..stitch.plan import Plan

    guidances = _numbers(known.guidances, "--guidances")
    names = list(members)
    plans: list[tuple[float | None, Plan]] = []
    if known.plans:
        for path in map(Path, known.plans.split(",")):
            if not path.exists():
                raise HemstitchError(f"there is no plan file {path}")
            plans.append((None, Plan.from_data(read_json_file(path))))
    steps = known.steps or (plans[0][1].steps if plans else 50)
    if len(names) == 2:
        for fraction in _numbers(known.fractions, "--fractions"):
            plan = Plan.fractions({names[0]: fraction, large: 1 - fraction}, steps)
            plans.append((fraction, plan))
    elif not plans:
        raise HemstitchError("a curve of more than two members needs plans: --plans a.json,b.json")
    if any(plan.steps != steps for _, plan in plans):
        raise HemstitchError(f"all plans of a curve are of one number of steps: {sorted({p.steps for _, p in plans})}")
    cost = seconds_per_call(members, setting.batch, guided=any(g != 1 for g in guidances))
    return candidates_of(plans, large, cost, guidances)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        raise HemstitchError(f"{option} is numbers with commas between (0,0.4,1), not {text!r}") from None
