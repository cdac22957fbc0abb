"""The command that samples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HemstitchError
from .line import Line, clock

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..autoencoder import Decoder
    from ..denoiser import Denoiser
    from ..evaluate.evaluation import Measuring
    from ..evaluate.extractors import Extractor
    from ..evaluate.reference import Source
    from ..sampling import Look
    from ..stitch.adaptive import AdaptivePlan
    from ..stitch.plan import Plan


def sample(known: argparse.Namespace, rest: list[str]) -> int:
    from ..bulk import write_samples
    from ..share import device_of, place

    device = device_of(known.device)
    members = loaded(known.members, device, known.weights, known.ema)
    model = stitched(members, plan_of(known, list(members)))
    labels, count = _labels(known.labels, known.num, model.spec.num_classes)
    decode = None
    if known.vae is not None:
        from ..autoencoder import decoder

        decode = decoder(known.vae, model.spec, device, known.decode_slice)
    formats = None if known.format is None else known.format.split(",")
    measured = None if known.metrics is None else _Measured.of(known, model, decode)
    if measured is None and (known.reference is not None or known.cache is not None):
        raise HemstitchError("--reference and --cache belong to --metrics: say which, as --metrics fid,is")
    if measured is not None:
        formats = [*(formats or []), "features"]
    line, progress = Line(), None
    try:
        for progress in write_samples(
            model,
            known.out,
            count=count,
            labels=labels,
            seed=known.seed,
            batch=known.batch,
            per_shard=known.per_shard,
            formats=formats,
            decode=decode,
            quantise=known.quantise,
            extractors=() if measured is None else measured.extractors,
            **look_of(known),
        ):
            waiting = f", waiting for {progress.waiting} shards of other processes" if progress.waiting else ""
            pace = f"{progress.rate:.1f}/s, {clock(progress.left)} left{waiting}"
            line.show(f"{progress.done}/{progress.total} samples, {pace}")
    except KeyboardInterrupt:
        line.say("stopped; finished shards are kept, and the same command goes on from there")
        return 130
    line.close()
    if progress is not None and progress.kept == progress.total:
        line.say("all of them were there already, and sound")
    if measured is not None and place().rank == 0:
        measured.tell(known.out, line)
    line.say(str(known.out))
    return 0


@dataclass(frozen=True)
class _Measured:
    """What is measured of samples as they are made."""

    reference: Source | None
    measuring: Measuring
    metrics: list[str]

    @classmethod
    def of(cls, known: argparse.Namespace, model: Denoiser, decode: Decoder | None) -> _Measured:
        """As the options say, checked before anything is sampled."""
        from ..bulk.settings import chosen_labels
        from ..evaluate.evaluation import check
        from ..evaluate.reference import Source, open_reference
        from .evaluating import measuring_of

        measuring, metrics = measuring_of(known)
        reference = None
        if known.reference is not None:
            reference = open_reference(known.reference, size=known.reference_size, grey=known.grey)
        side = model.spec.size if decode is None else decode.size(model.spec.size)
        labels, count = _labels(known.labels, known.num, model.spec.num_classes)
        chosen = chosen_labels(labels, model.spec.num_classes, count, known.seed)
        if count < 2:
            raise HemstitchError("figures are of at least 2 samples: --num 50000")
        samples = Source("the samples", None, chosen, to_come=(side, side))
        check({"samples": [samples]}, reference, metrics, replace(measuring, count=count))
        if (known.out / "report.json").is_dir():
            raise HemstitchError(f"{known.out / 'report.json'} is a folder: the report goes there")
        return cls(reference, measuring, metrics)

    @property
    def extractors(self) -> list[Extractor]:
        from ..evaluate.evaluation import extractors_of
        from ..evaluate.metrics import chosen

        return extractors_of(chosen(self.metrics), self.measuring)

    def tell(self, out: Path, line: Line) -> None:
        """Print what came out, and write it beside the features."""
        from ..evaluate.evaluation import evaluate
        from ..evaluate.reference import open_source
        from .evaluating import shown, told

        report = evaluate(
            {out.name: [open_source(str(out))]}, self.reference, self.metrics, self.measuring, shown(line)
        )
        told(report, out / "report.json", line)


def look_of(known: argparse.Namespace) -> Look:
    """How to sample, as the options say."""
    return {
        "steps": known.steps,
        "sampler": known.sampler,
        "guidance": known.guidance,
        "guidance_channels": known.guidance_channels,
        "guidance_interval": known.guidance_interval and tuple(known.guidance_interval),
        "grid": known.grid,
        "eta": known.eta,
    }


def _labels(asked: str | None, num: int | None, classes: int) -> tuple[str | Sequence[int] | Tensor | None, int]:
    """The labels asked for, and how many samples."""
    if num is not None and num < 1:
        raise HemstitchError("--num is at least 1")
    if asked is None or asked in ("balanced", "random"):
        return asked, 16 if num is None else num
    if Path(asked).suffix or Path(asked).exists():
        from ..bulk import read_labels

        given = read_labels(Path(asked))
        if num is not None and num > len(given):
            raise HemstitchError(f"{asked} has {len(given)} labels for {num} samples: one each")
        return given[:num], len(given) if num is None else num
    try:
        return [int(word) for word in asked.split(",")], 16 if num is None else num
    except ValueError:
        raise HemstitchError(
            f"--labels is balanced, random, whole numbers (207,360) or a file of them, not {asked!r}"
        ) from None


def loaded(
    arguments: Sequence[str], device: torch.device, weights: str = "ema", ema: float | None = None
) -> dict[str, Denoiser]:
    """Members by name, from NAME=PATH or, of a single one, PATH."""
    from ..weights import load

    members: dict[str, Denoiser] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = Path(argument).stem, argument
            if len(arguments) > 1:
                raise HemstitchError(f"name each of several members: NAME={argument}")
        if name in members:
            raise HemstitchError(f"two members are called {name!r}")
        members[name] = load(path, weights="model" if weights == "model" else "ema", ema=ema).to(device)
    return members


def stitched(members: dict[str, Denoiser], plan: Plan | AdaptivePlan | None) -> Denoiser:
    """The only member, or all of them under the plan, which is told."""
    if plan is None:
        return next(iter(members.values()))
    from ..stitch.stitched import Stitched

    Line().say(f"plan of {plan.steps} steps: {plan}")
    return Stitched(members, plan)


def plan_of(known: argparse.Namespace, names: list[str]) -> Plan | AdaptivePlan | None:
    """The plan that the options say, None for a single member."""
    from ..files import read_json_file
    from ..stitch.adaptive import plan_of_data
    from ..stitch.plan import Plan

    if known.plan is not None:
        if known.fraction is not None:
            raise HemstitchError("--plan and --fraction both say which member runs when: give one")
        if not known.plan.exists():
            raise HemstitchError(f"there is no plan file {known.plan}")
        return plan_of_data(read_json_file(known.plan))
    if len(names) == 1:
        if known.fraction is not None:
            raise HemstitchError("--fraction needs two members: small=PATH large=PATH")
        return None
    if known.fraction is None or len(names) != 2:
        raise HemstitchError("several members need --plan plan.json (or, if they are two, --fraction)")
    fractions = {names[0]: known.fraction, names[1]: 1 - known.fraction}
    return Plan.fractions(fractions, 50 if known.steps is None else known.steps)
