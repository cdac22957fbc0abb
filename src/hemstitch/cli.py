"""The command line: verbs over the library. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import HemstitchError, MissingExtraError

if TYPE_CHECKING:
    from .data import Dataset
    from .denoiser import Denoiser
    from .recipe import Recipe
    from .stitch.plan import Plan
    from .train.meter import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if known.verb is None:
        parser.print_help()
        return 0
    if rest and known.verb != "train":
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    warnings.showwarning = _warn
    try:
        return _VERBS[known.verb](known, rest)
    except (HemstitchError, MissingExtraError) as error:
        print(f"hemstitch: {error}", file=sys.stderr)
        return 2
    except (OSError, UnicodeDecodeError) as error:  # unreadable, unwritable, no space: the message has the path
        print(f"hemstitch: a file could not be read or written: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhemstitch: interrupted", file=sys.stderr)
        return 130


def _warn(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """Ours are for the person at the keyboard; others keep their name."""
    named = "" if category is UserWarning else f" ({category.__name__})"
    print(f"hemstitch: warning{named}: {message}", file=sys.stderr)


_STORED = ["float32", "float16", "bfloat16", "uint8"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hemstitch", description="Diffusion models whose compute follows the noise level."
    )
    parser.add_argument("--version", action="version", version=f"hemstitch {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="command")

    quick = verbs.add_parser("quickstart", help="train, stitch, measure and report on bundled real digits")
    quick.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder (runs/quickstart)")
    quick.add_argument("--full", action="store_true", help="5,000 samples a point and every tenth fraction")
    quick.add_argument("--reuse", action="store_true", help="keep finished models and a measured curve")

    train = verbs.add_parser(
        "train",
        help="train a preset or a recipe file",
        epilog="Any field of the recipe may be set by its name: --data.path imagenet/ --steps 400000 --net.width 96. "
        "A field of `train` needs no prefix. --dry-run prints the recipe that would run.",
    )
    train.add_argument("recipe", help="a preset (debug, digits_small, switch_dit_s2, …) or a recipe.json")
    train.add_argument("--plan", type=Path, help="train on the timesteps only that this plan gives --member")
    train.add_argument("--member", help="whose timesteps of --plan")
    train.add_argument("--track", help="accelerate's trackers, comma-separated: tensorboard,wandb,mlflow")
    train.add_argument("--out", type=Path, help="run folder (runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint")
    train.add_argument("--device", choices=["cpu", "cuda"], help="where to train (a GPU if there is one)")
    train.add_argument("--dry-run", action="store_true", help="print the recipe, its cost and a timed step")

    encode = verbs.add_parser(
        "encode",
        help="write a cache of latents (or of pixels) to train from",
        epilog="Under torchrun or accelerate launch the processes share the work. Run again, it goes on.",
    )
    encode.add_argument("data", nargs="?", default="", help="where the images are (some kinds know)")
    encode.add_argument(
        "--kind", default="folder", help="folder, shards, huggingface, fashion_mnist, idx, arrays (folder)"
    )
    encode.add_argument(
        "--size", type=int, default=0, help="side that images are given (their own, where they have one)"
    )
    encode.add_argument("--vae", default="identity", help="folder of a diffusers autoencoder (identity: pixels)")
    encode.add_argument("--normalise", choices=["measured", "vae", "none"], help="what latents are read as")
    encode.add_argument("--dtype", default="float32", choices=_STORED, help="on disk")
    encode.add_argument("--batch", type=int, default=64, help="images at a time (64)")
    encode.add_argument("--per-shard", type=int, default=4096, help="samples in a file (4096)")
    encode.add_argument("--seed", type=int, default=0, help="of the posterior's noise")
    encode.add_argument("--device", choices=["cpu", "cuda"], help="where to encode (a GPU if there is one)")
    encode.add_argument("--out", type=Path, required=True, help="folder")

    sample = verbs.add_parser("sample", help="sample a model, or several stitched")
    sample.add_argument("members", nargs="+", help="PATH, or NAME=PATH for each of several, small first")
    sample.add_argument("--fraction", type=float, help="share of steps for the first of two members")
    sample.add_argument("--plan", type=Path, help="a plan.json")
    sample.add_argument("--num", type=int, default=16, help="how many samples (16)")
    sample.add_argument("--labels", help="comma-separated classes, repeated as needed (all in turn)")
    sample.add_argument("--steps", type=int, help="solver steps (the plan's, else 50)")
    sample.add_argument("--sampler", default="ddim", help="ddpm, ddim, dpmpp_2m, heun or euler (ddim)")
    sample.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance scale (1: none)")
    sample.add_argument("--guidance-channels", type=int, help="guide the first so many channels only")
    sample.add_argument("--grid", default="released", help="released, leading, trailing, linspace or logsnr")
    sample.add_argument("--eta", type=float, default=0.0, help="noise of DDIM (0)")
    sample.add_argument("--seed", type=int, default=0, help="sample i has the seed (SEED, i)")
    sample.add_argument("--batch", type=int, default=64, help="samples at a time (64)")
    sample.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to sample")
    sample.add_argument("--vae", help="folder of the autoencoder whose latents these are: pictures are written")
    sample.add_argument("--out", type=Path, default=Path("samples"), help="folder (samples)")

    convert = verbs.add_parser("convert", help="rewrite weights in another format")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--to", required=True, choices=["native", "released", "diffusers"], dest="format")
    _loading(convert)

    cost = verbs.add_parser("describe", help="parameters and multiply-adds of a preset or a model")
    cost.add_argument("models", nargs="+", help="a preset name (dit_xl2) or a path")
    _loading(cost)
    return parser


def _loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", choices=["dit", "dtr", "switch_dit", "sit"], help="where tensors cannot tell")
    parser.add_argument("--num-heads", type=int)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--ema", type=float, help="of a run with snapshots, the average of this length (0.05 is 5 %%)")


def _quickstart(known: argparse.Namespace, rest: list[str]) -> int:
    from .quickstart import Talk, quickstart

    line = _Line()
    for name, progress in quickstart(known.out, known.full, known.reuse, Talk(line.say, line.show)):
        line.show(f"{name}: {_told(progress)}", last=progress.left == 0)
        if progress.stopped:
            line.say("stopped; the same command goes on from here")
            return 130
    return 0


def _train(known: argparse.Namespace, rest: list[str]) -> int:
    from . import recipes
    from .files import read_json_file
    from .recipe import Recipe

    path = Path(known.recipe)
    if path.suffix == ".json":
        if not path.exists():
            raise HemstitchError(f"there is no recipe file {path}")
        recipe = Recipe.from_data(read_json_file(path))
    else:
        recipe = recipes.recipe(known.recipe)
    recipe = _intervals(known, recipe.overridden(_overrides(rest)))
    out = known.out or Path("runs") / recipe.name
    if known.dry_run:
        return _dry_run(recipe, known.device)
    from .train.engine import keep_pages
    from .train.fit import fit

    keep_pages()
    line = _Line()
    if known.resume and not out.exists():
        line.say(f"there is nothing to resume in {out}: starting anew")
    line.say(f"{recipe.name} -> {out}\n{textwrap.fill(recipe.summary(), 110, break_on_hyphens=False)}")
    progress = None
    trackers = None if known.track is None else known.track.split(",")
    for progress in fit(recipe, out, resume=known.resume, device=known.device, trackers=trackers):
        line.show(f"{recipe.name}: {_told(progress)}", last=progress.left == 0 or progress.stopped)
        if progress.stopped:
            line.say(f"stopped after step {progress.step}, saved in {progress.saved}; --resume goes on from there")
            return 130
    if progress is None:
        line.say(f"{out} is trained to step {recipe.train.steps} or beyond already: nothing to do")
    return 0


def _intervals(known: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe on the timesteps that a plan gives a member."""
    if (known.plan is None) != (known.member is None):
        raise HemstitchError("--plan and --member go together: the plan, and whose steps of it to train on")
    if known.plan is None:
        return recipe
    from dataclasses import replace

    from .files import read_json_file
    from .stitch.plan import Plan
    from .train.times import plan_intervals

    if not known.plan.exists():
        raise HemstitchError(f"there is no plan file {known.plan}")
    intervals = plan_intervals(Plan.from_data(read_json_file(known.plan)), known.member, recipe.process)
    return replace(recipe, train=replace(recipe.train, intervals=intervals))


def _dry_run(recipe: Recipe, device: str | None) -> int:
    from .data import open_dataset
    from .describe import describe
    from .train.estimate import Noise, estimate

    if recipe.data.kind in ("folder", "latents") and not recipe.data.path:
        print("no --data.path: counted and timed on noise of the preset's shape", file=sys.stderr)
        data: Dataset = Noise(recipe.net)
    else:
        data = open_dataset(recipe.data.kind, recipe.data.path, recipe.data.size)
    fitted = recipe.fitted(data.channels, data.size, len(data.classes))
    print(fitted.to_json())
    print(f"{len(data)} images of {data.name}; {describe(fitted.net)}; recipe {fitted.hash}", flush=True)
    cost = estimate(fitted, data, device)
    print(f"{cost}, {_clock(cost.step_seconds * fitted.train.steps)} for {fitted.train.steps} steps")
    return 0


def _encode(known: argparse.Namespace, rest: list[str]) -> int:
    from .data import open_dataset
    from .encode import encode

    data = open_dataset(known.kind, known.data, known.size)
    line, progress = _Line(), None
    for progress in encode(
        data,
        known.out,
        autoencoder=known.vae,
        batch=known.batch,
        per_shard=known.per_shard,
        dtype=known.dtype,
        normalise=known.normalise,
        device=known.device,
        seed=known.seed,
    ):
        waiting = f", waiting for {progress.waiting} shards of other processes" if progress.waiting else ""
        line.show(
            f"{progress.done}/{progress.total} images, {progress.rate:.0f}/s, {_clock(progress.left)} left{waiting}",
            progress.done == progress.total and not progress.waiting,
        )
    line.say(f"{known.out}: train on it with --data.kind latents --data.path {known.out}")
    return 0


def _overrides(rest: list[str]) -> dict[str, str]:
    """--a.b value, --a.b=value, and --flag alone for true."""
    changes: dict[str, str] = {}
    i = 0
    while i < len(rest):
        name, equals, value = rest[i].partition("=")
        if not name.startswith("--"):
            raise HemstitchError(f"expected --field value, got {rest[i]!r}")
        i += 1
        if not equals:
            alone = i >= len(rest) or rest[i].startswith("--")
            value = "true" if alone else rest[i]
            i += not alone
        changes[name[2:]] = value
    return changes


def _sample(known: argparse.Namespace, rest: list[str]) -> int:
    from .bulk import write_samples

    members = _members(known.members, known.device)
    plan = _plan(known, list(members))
    if known.num < 1 or known.batch < 1:
        raise HemstitchError("--num and --batch are at least 1")
    if plan is None:
        model: Denoiser = next(iter(members.values()))
    else:
        from .stitch.stitched import Stitched

        print(f"plan of {plan.steps} steps: {plan}")
        model = Stitched(members, plan)
    classes = model.spec.num_classes
    labels = None
    if known.labels is not None:
        try:
            labels = [int(v) for v in known.labels.split(",")]
        except ValueError:
            raise HemstitchError(f"--labels is a list of whole numbers (207,360), not {known.labels!r}") from None
    elif classes:
        labels = list(range(classes))
    decode = None
    if known.vae is not None:
        from .autoencoder import decoder

        decode = decoder(known.vae, model.spec, known.device)
    line, began = _Line(), time.perf_counter()
    for done in write_samples(
        model,
        known.out,
        decode=decode,
        count=known.num,
        labels=labels,
        seed=known.seed,
        batch=known.batch,
        steps=known.steps,
        sampler=known.sampler,
        guidance=known.guidance,
        guidance_channels=known.guidance_channels,
        grid=known.grid,
        eta=known.eta,
    ):
        rate = done / (time.perf_counter() - began)
        line.show(
            f"{done}/{known.num} samples, {rate:.1f}/s, {_clock((known.num - done) / rate)} left",
            done == known.num,
        )
    line.say(str(known.out))
    return 0


def _members(arguments: list[str], device: str) -> dict[str, Denoiser]:
    from .weights import load

    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise HemstitchError("there is no GPU that torch can use here: leave out --device, or say cpu")
    members: dict[str, Denoiser] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals:
            name, path = Path(argument).stem, argument
            if len(arguments) > 1:
                raise HemstitchError(f"name each of several members: NAME={argument}")
        if name in members:
            raise HemstitchError(f"two members are called {name!r}")
        members[name] = load(path).to(device)
    return members


def _plan(known: argparse.Namespace, names: list[str]) -> Plan | None:
    from .files import read_json_file
    from .stitch.plan import Plan

    if known.plan is not None:
        if known.fraction is not None:
            raise HemstitchError("--plan and --fraction both say which member runs when: give one")
        if not known.plan.exists():
            raise HemstitchError(f"there is no plan file {known.plan}")
        return Plan.from_data(read_json_file(known.plan))
    if len(names) == 1:
        if known.fraction is not None:
            raise HemstitchError("--fraction needs two members: small=PATH large=PATH")
        return None
    if known.fraction is None or len(names) != 2:
        raise HemstitchError("several members need --plan plan.json (or, if they are two, --fraction)")
    fractions = {names[0]: known.fraction, names[1]: 1 - known.fraction}
    return Plan.fractions(fractions, 50 if known.steps is None else known.steps)


def _convert(known: argparse.Namespace, rest: list[str]) -> int:
    from .weights import convert

    options = _given(known, "family", "num_heads", "top_k", "input_size", "ema")
    for note in convert(known.source, known.target, known.format, **options):
        print(note)
    print(f"{known.source} -> {known.target}")
    return 0


def _describe(known: argparse.Namespace, rest: list[str]) -> int:
    from .describe import describe
    from .weights import load

    options = _given(known, "family", "num_heads", "top_k", "input_size", "ema")
    print(f"{'model':<24} {'parameters':>12} {'active':>12} {'GMAC':>9} {'unmerged':>9}")
    for name in known.models:
        d = describe(load(name, **options) if Path(name).exists() else name)
        print(
            f"{name:<24} {d.parameters:>12,} {d.active_parameters:>12,} {_giga(d.macs):>9} {_giga(d.macs_unmerged):>9}"
        )
    return 0


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f}" if count >= 1e8 else f"{count / 1e9:.2g}"


def _given(known: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(known, name) for name in names if getattr(known, name) is not None}


def _told(p: Progress) -> str:
    prior = f", prior {p.prior:.4f}" if p.prior else ""
    waiting = f", waiting for data {p.waited:.0%} of the time" if p.waited > 0.02 else ""
    speed = f"{p.rate:.0f} images/s, {p.share:.0%} of the matrix rate here{waiting}"
    return f"step {p.step}, loss {p.loss:.4f}{prior}, {speed}, {_clock(p.left)} left"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class _Line:
    """A progress line that rewrites itself on a terminal, and prints now and then elsewhere."""

    def __init__(self) -> None:
        self.quiet = int(os.environ.get("RANK", "0")) > 0  # of several processes one speaks
        self.live = sys.stderr.isatty()
        self.open = False
        self.spoke = 0.0

    def show(self, text: str, last: bool = False) -> None:
        if self.quiet:
            return
        if self.live:
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
            sys.stderr.flush()
            self.open = not last
        elif last or time.monotonic() - self.spoke > 5:
            print(text, file=sys.stderr, flush=True)
            self.spoke = time.monotonic()

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self.open:
            sys.stderr.write("\n")
            self.open = False
        print(text, flush=True)


_VERBS = {
    "quickstart": _quickstart,
    "train": _train,
    "encode": _encode,
    "sample": _sample,
    "convert": _convert,
    "describe": _describe,
}
