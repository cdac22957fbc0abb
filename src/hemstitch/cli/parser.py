"""The arguments of every command. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import __version__

_STORED = ["float32", "float16", "bfloat16", "uint8"]


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hemstitch", description="Diffusion models whose compute follows the noise level."
    )
    parser.add_argument("--version", action="version", version=f"hemstitch {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="command")

    quick = verbs.add_parser("quickstart", help="train, stitch, measure and report on bundled real digits")
    quick.add_argument("--out", type=Path, help="folder (runs/quickstart, or runs/pretrained)")
    quick.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        default=None,
        metavar="ARCHIVE",
        help="train nothing: the models that come with hemstitch, or those of an archive like theirs",
    )
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

    sample = verbs.add_parser(
        "sample",
        help="sample a model, or several stitched, into a folder",
        epilog="Under accelerate launch or torchrun the processes share the work (to torchrun say --samples: it takes "
        "--num for its own). Run again, it goes on: what is missing or damaged is made, the rest is kept.",
    )
    _members(sample)
    sample.add_argument(
        "--num", "--samples", type=int, help="how many samples (16, or as many as a file of labels has)"
    )
    sample.add_argument("--labels", help="balanced, random, classes repeated as needed (207,360), or a file (balanced)")
    sample.add_argument("--seed", type=int, default=0, help="sample i has the seed (SEED, i)")
    sample.add_argument("--batch", type=int, help="samples at a time (64, or fewer if there are fewer)")
    sample.add_argument("--per-shard", type=int, help="samples in a unit of work (16 batches)")
    sample.add_argument("--format", help="some of png,npz,webdataset,latents (png; latents where those are sampled)")
    sample.add_argument(
        "--quantise", choices=["floor", "round"], help="pixels as ADM or as DiT does (by what they are)"
    )
    sample.add_argument("--vae", help="folder of the autoencoder whose latents these are: pictures are written")
    sample.add_argument("--decode-slice", type=int, default=16, help="latents decoded at a time (16)")
    sample.add_argument("--out", type=Path, default=Path("samples"), help="folder (samples)")

    sample.add_argument(
        "--metrics", help="measure the samples as they are made; pictures are kept only if --format says so"
    )
    _measured(sample)
    sample.set_defaults(count=None)

    evaluate = verbs.add_parser(
        "evaluate",
        help="measure sets of pictures, or sweep plans of models (--curve)",
        epilog="A set is a folder of pictures or of samples, a .npz (arr_0), tar shards, or a data set (KIND:PATH); "
        "NAME=A,B,C are repeated seeds of one. Every figure has its 95 %% interval.",
    )
    evaluate.add_argument("sets", nargs="+", help="PATH or NAME=PATH[,PATH…]; with --curve members, small first")
    evaluate.add_argument("--metrics", help="some of fid,sfid,is,prc,dc,kid,fd_dinov2,cmmd,accuracy")
    evaluate.add_argument("--size", type=int, default=0, help="of sets by KIND:PATH, crop and resize to this side")
    _measured(evaluate)
    evaluate.add_argument("--count", type=int, help="pictures of each set at most; samples of each plan (1000)")
    evaluate.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (a GPU if there is one)")
    evaluate.add_argument("--out", type=Path, help="report.json; with --curve a folder (curve)")
    curve = evaluate.add_argument_group("--curve")
    curve.add_argument("--curve", action="store_true", help="sweep plans and guidance over the members given")
    curve.add_argument("--fractions", default="0,0.2,0.4,0.6,0.8,1", help="shares of the first of two members")
    curve.add_argument("--plans", help="plan files, with commas between")
    curve.add_argument("--guidances", default="1", help="guidance scales, with commas between (1)")
    curve.add_argument("--steps", type=int, help="solver steps (50)")
    curve.add_argument("--sampler", default="ddim", help="ddpm, ddim, dpmpp_2m, heun or euler (ddim)")
    curve.add_argument("--batch", type=int, default=64, help="samples at a time (64)")
    curve.add_argument("--vae", help="folder of the autoencoder whose latents these are")
    curve.add_argument("--weights", choices=["ema", "model"], default="ema", help="averaged weights, or not (ema)")
    curve.add_argument("--ema", type=float, help="of runs with snapshots, the average of this length")

    convert = verbs.add_parser("convert", help="rewrite weights in another format")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--to", required=True, choices=["native", "released", "diffusers"], dest="format")
    _loading(convert)

    cost = verbs.add_parser("describe", help="parameters and multiply-adds of a preset or a model")
    cost.add_argument("models", nargs="+", help="a preset name (dit_xl2) or a path")
    _loading(cost)

    check = verbs.add_parser(
        "check",
        help="say whether two diffusers pipelines or denoisers can be stitched, and why not",
        epilog="Only configurations are read, no weights; those of hub ids are fetched. Exit status: 0 if they can be "
        "stitched, 1 if not, 2 for bad input.",
    )
    check.add_argument("small", help="a pipeline or denoiser, for the noisiest steps: folder or hub id (owner/name)")
    check.add_argument("large", help="the pipeline to stitch it into, or its denoiser")
    check.add_argument("--subfolder", help="where in them the denoiser is (unet or transformer)")

    analyze = verbs.add_parser(
        "analyze",
        help="show which experts run when, where models agree, which frequencies are settled when",
        epilog="The last member is the one that others are compared with. Out come report.html, which opens offline, "
        "its figures, and analysis.json with every number drawn.",
    )
    _members(analyze)
    analyze.add_argument("--num", type=int, default=32, help="how many samples (32)")
    analyze.add_argument(
        "--labels", help="balanced, random, classes repeated as needed (207,360), or a file (balanced)"
    )
    analyze.add_argument("--seed", type=int, default=0, help="sample i has the seed (SEED, i)")
    analyze.add_argument("--batch", type=int, default=32, help="samples at a time (32)")
    analyze.add_argument("--out", type=Path, default=Path("analysis"), help="folder (analysis)")

    search = verbs.add_parser(
        "search",
        help="find which member to run at which step, within a latency budget",
        epilog="The plan goes to --out, the evidence to a folder beside it, with report.html. Stopped, the same "
        "command goes on. Without --reference plans are ranked by how much samples differ from the dearest member's.",
    )
    search.add_argument("members", nargs="+", help="NAME=PATH for each of two or more")
    search.add_argument("--budget", help="share of the dearest member's time; several with commas between (0.6,0.4)")
    search.add_argument("--milliseconds", type=float, help="the same as time per image, instead")
    search.add_argument("--steps", default="50", help="solver steps at most; several with commas, to choose among (50)")
    search.add_argument("--samples", type=int, default=512, help="half to choose by, half to judge by (512)")
    search.add_argument("--batch", type=int, default=64, help="samples at a time, and what latency is measured at (64)")
    search.add_argument("--trajectories", type=int, default=32, help="on which members are compared by step (32)")
    search.add_argument("--labels", help="balanced, random, or classes repeated as needed (balanced)")
    search.add_argument("--seed", type=int, default=0, help="of samples and proposals")
    search.add_argument("--seams", type=int, help="changes of member at most (4; 2 for dpmpp_2m)")
    search.add_argument("--seconds", type=float, help="time bound, within which less is tried")
    search.add_argument("--search-interval", action="store_true", help="choose where guidance applies, too")
    search.add_argument("--per-sample", action="store_true", help="try a seam for each sample, too (AdaptivePlan)")
    search.add_argument("--vae", help="folder of the autoencoder whose latents these are")
    search.add_argument("--out", type=Path, default=Path("plan.json"), help="file of the plan (plan.json)")
    _solving(search)
    _reference(search.add_argument_group("measuring"))
    return parser


def _members(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("members", nargs="+", help="PATH, or NAME=PATH for each of several, small first")
    parser.add_argument("--fraction", type=float, help="share of steps for the first of two members")
    parser.add_argument("--plan", type=Path, help="a plan.json")
    _looking(parser)


def _looking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="solver steps (the plan's, else 50)")
    _solving(parser)


def _solving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sampler", default="ddim", help="ddpm, ddim, dpmpp_2m, heun or euler (ddim)")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance scale (1: none)")
    parser.add_argument("--guidance-channels", type=int, help="guide the first so many channels only")
    parser.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide within these log-SNR only"
    )
    parser.add_argument("--grid", default="released", help="released, leading, trailing, linspace or logsnr")
    parser.add_argument("--eta", type=float, default=0.0, help="noise of DDIM (0)")
    parser.add_argument("--weights", choices=["ema", "model"], default="ema", help="averaged weights, or not (ema)")
    parser.add_argument("--ema", type=float, help="of runs with snapshots, the average of this length (0.05 is 5 %%)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to sample (a GPU if there is one)")


def _measured(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measuring")
    _reference(group, "inception")
    group.add_argument("--extract-batch", type=int, default=64, help="pictures at a time (64)")
    group.add_argument("--cache", type=Path, help="folder where features are kept for next time")
    group.add_argument("--resamples", type=int, default=20, help="of the bootstrap (20)")
    group.add_argument(
        "--order", choices=["shuffled", "given"], default="shuffled", help="in an Inception Score; given is ADM's"
    )


def _reference(group: argparse._ArgumentGroup, extractor: str | None = None) -> None:
    group.add_argument("--reference", help="pictures, a data set, or a .npz of statistics (mu, sigma) as ADM's")
    group.add_argument("--reference-size", type=int, default=0, help="of KIND:PATH, crop and resize to this side")
    group.add_argument(
        "--extractor",
        default=extractor,
        help="inception, dinov2, clip, or a classifier.safetensors (inception)",
    )
    group.add_argument(
        "--extractor-weights",
        action="append",
        dest="weights_of",
        metavar="NAME=PATH",
        help="inception=FILE, dinov2=FOLDER, clip=FOLDER, instead of fetching them",
    )
    group.add_argument("--grey", action="store_true", help="take greyscale pictures, repeating their channel")


def _loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", choices=["dit", "dtr", "switch_dit", "sit"], help="where tensors cannot tell")
    parser.add_argument("--num-heads", type=int)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--ema", type=float, help="of a run with snapshots, the average of this length (0.05 is 5 %%)")
