"""The command that searches for a plan."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import HemstitchError, MissingExtraError
from .line import Line

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..evaluate.extractors import Extractor
    from ..stitch.search import Turn


def search(known: argparse.Namespace, rest: list[str]) -> int:
    from ..files import write_bytes, write_text
    from ..share import device_of
    from ..stitch.search import report
    from ..stitch.search import search as searched
    from .sampling import loaded

    device = device_of(known.device)
    if known.out.is_dir() or known.out.suffix != ".json":
        raise HemstitchError(f"--out is the file of the plan, as plan.json, not {known.out}")
    members = loaded(known.members, device, known.weights, known.ema)
    folder = known.out.with_suffix("")
    folder = folder.with_name(f"{folder.name}-search")
    line = Line()

    def show(turn: Turn) -> None:
        left = "" if turn.left is None else f", {turn.left:.0f} s left of the time"
        line.show(f"{turn.stage}: {turn.done}/{turn.total}{left}")

    try:
        found = searched(
            members,
            None if known.budget is None else _numbers(known.budget, "--budget"),
            milliseconds=known.milliseconds,
            **_wishes(known, members),
            extractor=_extractor(known, members),
            progress=show,
            out=folder,
        )
    except KeyboardInterrupt:
        line.say(f"stopped; what was measured is kept in {folder}, and the same command goes on from there")
        return 130
    line.close()
    found.save(known.out)
    for result in found.results:
        write_text(folder / f"plan-{result.budget:g}.json", result.found.plan.to_json())
    for trial in found.per_sample:
        seam = trial.fixed.plan.counts[trial.plan.first]
        write_text(folder / f"adaptive-{trial.plan.first}-{seam}.json", trial.plan.to_json())
    line.say(f"{found}\n\n{found.costs}\n")
    line.say(f"{report.spent(found)}\n{report.command(found, known.members, known.out)}")
    try:
        drawn = report.pictures(found)
    except MissingExtraError as error:
        line.say(f"without figures and report.html: {error}")
        return 0
    for name, data in drawn.items():
        write_bytes(folder / name, data)
    write_text(folder / "report.html", report.html(found, drawn))
    line.say(str(folder / "report.html"))
    return 0


def _wishes(known: argparse.Namespace, members: dict[str, Denoiser]) -> dict[str, Any]:
    """What to search for and how to sample, as the options say."""
    decode = None
    if known.vae is not None:
        from ..autoencoder import decoder
        from ..share import device_of

        decode = decoder(known.vae, next(iter(members.values())).spec, device_of(known.device))
    reference: Any = known.reference
    if reference is not None:
        from ..evaluate.reference import open_reference

        grey = known.grey or next(iter(members.values())).spec.channels == 1
        reference = open_reference(reference, size=known.reference_size, grey=grey)
    steps = _numbers(known.steps, "--steps")
    if any(count != int(count) for count in steps):
        raise HemstitchError(f"--steps is a whole number, or several with commas between (25,50), not {known.steps!r}")
    interval: Any = known.guidance_interval and tuple(known.guidance_interval)
    if known.search_interval:
        if interval is not None:
            raise HemstitchError("--guidance-interval says where to guide, and --search-interval asks: give one")
        interval = "search"
    return {
        "reference": reference,
        "labels": _labels(known.labels),
        "steps": int(steps[0]) if len(steps) == 1 else [int(count) for count in steps],
        "sampler": known.sampler,
        "eta": known.eta,
        "guidance": known.guidance,
        "guidance_channels": known.guidance_channels,
        "guidance_interval": interval,
        "grid": known.grid,
        "seams": known.seams,
        "samples": known.samples,
        "trajectories": known.trajectories,
        "batch": known.batch,
        "seed": known.seed,
        "seconds": known.seconds,
        "per_sample": known.per_sample,
        "decode": decode,
    }


def _labels(asked: str | None) -> Any:
    if asked is None or asked in ("balanced", "random"):
        return asked
    return [int(number) for number in _numbers(asked, "--labels")]


def _extractor(known: argparse.Namespace, members: dict[str, Denoiser]) -> Extractor | None:
    """The one asked for; where there is a reference and none is, Inception."""
    name = known.extractor or ("inception" if known.reference is not None else None)
    if name is None:
        return None
    from ..evaluate.extractors import extractor
    from ..share import device_of
    from .evaluating import weights_of

    return extractor(name, weights=weights_of(known.weights_of or []).get(name), device=device_of(known.device))


def _numbers(text: str, option: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        raise HemstitchError(f"{option} is numbers with commas between, not {text!r}") from None
