"""The curve of `hemstitch evaluate --curve`: plans and guidance swept, quality against measured latency."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HemstitchError
from .line import Line, clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..denoiser import Denoiser
    from ..evaluate.curve import Candidate, Point, Setting
    from ..stitch.adaptive import AdaptivePlan
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
    candidates = _candidates(known, members, large, setting.cost)
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
    write_text(out / "curve.json", json.dumps(data, indent=1, allow_nan=False))
    title = f"{' → '.join(members)}; {candidates[0].plan.steps} steps of {setting.sampler}, {setting.num} samples"
    write_bytes(out / "curve.png", curve_png(points, title, large))
    line.say(f"{out / 'curve.png'} and curve.json")
    return 0


def _setting(known: argparse.Namespace, members: dict[str, Denoiser], large: str) -> tuple[Setting, str]:
    """How all plans are sampled and measured, and what the reference is."""
    from ..bulk.settings import chosen_labels
    from ..evaluate.curve import Setting
    from ..evaluate.evaluation import check
    from ..evaluate.reference import Source, open_reference, pooled_moments
    from ..share import device_of
    from ..stitch.latency import seconds_per_call
    from .evaluating import measuring_of

    if known.reference is None:
        raise HemstitchError("a curve measures a distance to a reference: give one (--reference imagenet/val)")
    device, spec = device_of(known.device), members[large].spec
    known.metrics = "fid"
    measuring, metrics = measuring_of(known)
    assert measuring.extractor is not None  # which a Fréchet distance needs
    source = open_reference(known.reference, size=known.reference_size, grey=known.grey)
    decode = None
    if known.vae is not None:
        from ..autoencoder import decoder

        decode = decoder(known.vae, spec, device)
    elif spec.channels not in (1, 3):
        raise HemstitchError(f"samples of {spec.channels} channels are latents: decode them (--vae FOLDER)")
    num = 1000 if known.count is None else known.count
    if num < 2 or known.batch < 1 or (known.steps is not None and known.steps < 1):
        raise HemstitchError("a curve is of at least 2 samples (--count), 1 at a time (--batch), and 1 step (--steps)")
    side = spec.size if decode is None else decode.size(spec.size)
    check({"samples": [Source("the samples", None, to_come=(side, side))]}, source, metrics, measuring)
    moments = pooled_moments(source, measuring.extractor)
    guided = any(g != 1 for g in _numbers(known.guidances, "--guidances"))
    cost = seconds_per_call(members, min(known.batch, num), guided=guided)
    labels = chosen_labels(None, spec.num_classes, num, 0)
    setting = Setting(
        members, large, labels, num, min(known.batch, num), known.sampler, measuring.extractor, moments, cost, decode
    )
    return setting, f"{source.name} {source.hash[:12]}".strip()


def _candidates(
    known: argparse.Namespace, members: dict[str, Denoiser], large: str, cost: Mapping[str, float]
) -> list[Candidate]:
    from ..evaluate.curve import candidates_of
    from ..files import read_json_file
    from ..stitch.adaptive import plan_of_data
    from ..stitch.plan import Plan

    guidances = _numbers(known.guidances, "--guidances")
    names = list(members)
    plans: list[tuple[float | None, Plan | AdaptivePlan]] = []
    if known.plans:
        for path in map(Path, known.plans.split(",")):
            if not path.exists():
                raise HemstitchError(f"there is no plan file {path}")
            plans.append((None, plan_of_data(read_json_file(path))))
    steps = known.steps or (plans[0][1].steps if plans else 50)
    if len(names) == 2:
        for fraction in _numbers(known.fractions, "--fractions"):
            plan = Plan.fractions({names[0]: fraction, large: 1 - fraction}, steps)
            plans.append((fraction, plan))
    elif not plans:
        raise HemstitchError("a curve of more than two members needs plans: --plans a.json,b.json")
    if any(plan.steps != steps for _, plan in plans):
        raise HemstitchError(f"all plans of a curve are of one number of steps: {sorted({p.steps for _, p in plans})}")
    return candidates_of(plans, large, cost, guidances)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        raise HemstitchError(f"{option} is numbers with commas between (0,0.4,1), not {text!r}") from None
