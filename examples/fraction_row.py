"""T-Stitch's figure: one prompt and one seed to a row, the small model's share of the steps from 0 to 1 along it.

    python examples/fraction_row.py --large Envvi/Inkpunk-Diffusion --small nota-ai/bk-sdm-tiny \\
        --prompts "a squirrel in a park, nvinkpunk" "New York City, nvinkpunk" --clip openai/clip-vit-base-patch32
    python examples/fraction_row.py --digits pair      # trains a pair in `pair` first (train_pair.py), minutes on a CPU
    python examples/fraction_row.py --tiny --clip tiny

Any text-to-image pipeline of diffusers and any denoiser of its class. Writes fraction_row.png and fraction_row.json
into --out. Seconds are of one whole call for one picture, text encoder and autoencoder included: the least of
--repeats, after one call that is not counted. The CLIP score is 100·max(cos, 0) of the embeddings of picture and
prompt, as torchmetrics has it; Hessel et al. (2021) have 2.5·max(cos, 0), T-Stitch's tables the cosine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny
import torch
import train_pair
from common import Arguments, Example, open_large, open_part, place, run
from diffusers import AutoPipelineForText2Image
from PIL import Image, ImageDraw, ImageFont
from transformers import CLIPModel, CLIPProcessor

from hemstitch.bridge import replan, stitch, stitched
from hemstitch.provenance import provenance

EXAMPLE = Example(family="sd", large="CompVis/stable-diffusion-v1-4", small="nota-ai/bk-sdm-tiny", steps=50)
PROMPTS = ["a photograph of an astronaut riding a horse", "a tropical beach at sunset, oil painting"]
DIGITS = ["a red three", "a blue seven", "a green five", "a purple two"]
INK, GREY = "#111111", "#555555"


def arguments(given: Sequence[str] | None) -> Arguments:
    parser = EXAMPLE.parser(__doc__)
    parser.set_defaults(fraction=[i / 10 for i in range(11)])
    parser.add_argument("--prompts", nargs="+", help="one row each")
    parser.add_argument("--guidance", type=float, help="guidance_scale (the pipeline's own)")
    parser.add_argument("--side", type=int, help="height and width of the pictures (the pipeline's own)")
    parser.add_argument("--repeats", type=int, default=1, help="calls per picture; the quickest gives its seconds (1)")
    parser.add_argument("--cell", type=int, default=192, help="pixels of a picture in the figure (192)")
    parser.add_argument("--clip", help='CLIP model for the score: hub id or folder; "tiny" a random one')
    parser.add_argument(
        "--digits", type=Path, help="folder of train_pair.py's pair, which is trained if it is not there"
    )
    parser.add_argument("--palette", action="store_true", help="256 colours, for a smaller file")
    args = EXAMPLE.read(parser, given)
    args.fraction = sorted(set(args.fraction))
    if args.digits:
        args.large, args.small = str(args.digits / "large"), str(args.digits / "small")
    if not args.prompts:
        args.prompts = [tiny.PROMPT, "two dogs"] if args.tiny else DIGITS if args.digits else PROMPTS
    return args


def opened(args: Arguments) -> Any:
    """The stitched pipeline."""
    if args.tiny:
        return stitch(tiny.build(args.family), tiny.small(args.family), fraction=0)
    pipe = open_large(args, AutoPipelineForText2Image)
    pipe.set_progress_bar_config(disable=True)
    part = "unet" if "unet" in pipe.components else "transformer"
    small = open_part(args.small, type(getattr(pipe, part)), part, args, lazy=args.lazy)
    return place(stitch(pipe, small, fraction=0, keep=args.keep), args)


def timed(pipe: Any, prompt: str, args: Arguments) -> tuple[Image.Image, float]:
    """A picture and its seconds."""
    asked = tiny.call_kwargs(args.family) if args.tiny else {"height": args.side, "width": args.side}
    asked |= {
        "guidance_scale": args.guidance,
        "num_inference_steps": args.steps,
        "prompt": prompt,
        "output_type": "pil",
    }
    asked["generator"] = torch.Generator(args.device).manual_seed(args.seed)
    began = time.perf_counter()
    picture = pipe(**{key: value for key, value in asked.items() if value is not None}).images[0]
    return picture, time.perf_counter() - began


def clip_scorer(source: str, device: str) -> Callable[[Image.Image, str], float]:
    """100·max(cos, 0) of a picture's and a text's embedding."""
    if source == "tiny":
        model, processor = tiny.clip_model()
    else:
        model, processor = CLIPModel.from_pretrained(source), CLIPProcessor.from_pretrained(source)
    model = model.eval().to(device)

    @torch.no_grad()
    def score(picture: Image.Image, text: str) -> float:
        inputs = processor(text=[text], images=[picture], return_tensors="pt", padding=True, truncation=True)
        out = model(**inputs.to(device))  # embeddings of norm 1
        return 100 * max(float((out.image_embeds * out.text_embeds).sum()), 0.0)

    return score


def measured(pipe: Any, args: Arguments) -> tuple[list[list[Image.Image]], dict[str, Any]]:
    """The pictures by prompt and fraction, and what fraction_row.json says of them."""
    score = clip_scorer(args.clip, args.device) if args.clip else None
    with replan(pipe, fraction=0.5):
        timed(pipe, args.prompts[0], args)  # warm
    cells = [(prompt, fraction) for prompt in args.prompts for fraction in args.fraction]
    seconds, pictures, taken = dict.fromkeys(cells, float("inf")), {}, {}
    for i in range(args.repeats):  # the whole figure each time: what else the machine does slows all of it alike
        for prompt, fraction in cells:
            with replan(pipe, fraction=fraction):
                pictures[prompt, fraction], took = timed(pipe, prompt, args)
            seconds[prompt, fraction] = min(seconds[prompt, fraction], took)
            taken[fraction] = stitched(pipe).route.last.counts.get("small", 0)
        print(f"{i + 1} of {args.repeats}", flush=True)
    grid = [[pictures[prompt, fraction] for fraction in args.fraction] for prompt in args.prompts]
    rows = []
    for prompt, row_of_pictures in zip(args.prompts, grid, strict=True):
        row = {"prompt": prompt, "seconds": [round(seconds[prompt, fraction], 3) for fraction in args.fraction]}
        if score:
            row["clip"] = [round(score(picture, prompt), 2) for picture in row_of_pictures]
        rows.append(row)
    said = {
        "provenance": provenance(args.device, str(args.loading["dtype"]).removeprefix("torch.")),
        "large": "tiny" if args.tiny else args.large,
        "small": "tiny" if args.tiny else args.small,
        **{key: getattr(args, key) for key in ("steps", "seed", "guidance", "repeats", "clip")},
        "fractions": args.fraction,
        "small_steps": [taken[fraction] for fraction in args.fraction],
        "rows": rows,
        "mean_seconds": mean_of([row["seconds"] for row in rows]),
    }
    if score:
        said["mean_clip"] = mean_of([row["clip"] for row in rows])
    if args.digits:
        said["pair"] = json.loads((args.digits / "pair.json").read_text())
    return grid, said


def mean_of(rows: list[list[float]]) -> list[float]:
    return [round(statistics.mean(column), 3) for column in zip(*rows, strict=True)]


def figure(grid: list[list[Image.Image]], said: dict[str, Any], cell: int) -> Image.Image:
    """Fractions above, prompts at the left, seconds (and CLIP scores) below each picture."""
    size = max(cell // 6, 13)
    font, gap, line = ImageFont.load_default(size), max(cell // 24, 3), size + size // 3
    left = int(1.6 * cell)
    lines = 2 if "mean_clip" in said else 1
    width = left + len(grid[0]) * (cell + gap) + gap
    top, high = 2 * line + 2 * gap, cell + lines * line + 2 * gap
    page = Image.new("RGB", (width, top + len(grid) * high), "white")
    draw = ImageDraw.Draw(page)
    middle = left + (width - left) // 2
    draw.text((middle, gap), "share of the steps that the small model takes, the first ones", GREY, font, anchor="ma")
    for j, fraction in enumerate(said["fractions"]):
        draw.text((left + j * (cell + gap) + cell // 2, gap + line), f"{fraction:g}", INK, font, anchor="ma")
    for i, (pictures, row) in enumerate(zip(grid, said["rows"], strict=True)):
        y = top + i * high
        text = wrapped(row["prompt"], font, left - 3 * gap)
        draw.multiline_text((2 * gap, y + cell // 2), text, INK, font, anchor="lm", spacing=size // 3)
        for j, picture in enumerate(pictures):
            x = left + j * (cell + gap)
            page.paste(picture.resize((cell, cell), Image.Resampling.LANCZOS), (x, y))
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline="#cccccc")
            below = [f"{row['seconds'][j]:.{1 if row['seconds'][j] >= 10 else 2}f} s"] + (
                [f"CLIP {row['clip'][j]:.1f}"] if lines == 2 else []
            )
            for k, label in enumerate(below):
                draw.text((x + cell // 2, y + cell + gap // 2 + k * line), label, GREY, font, anchor="ma")
    return page


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Lines no wider than `width` pixels, as far as words allow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    if args.digits and not (args.digits / "pair.json").exists():
        train_pair.train(args.digits)
    grid, said = measured(opened(args), args)
    args.out.mkdir(parents=True, exist_ok=True)
    page = figure(grid, said, args.cell)
    if args.palette:
        page = page.quantize(256, dither=Image.Dither.NONE)
    page.save(args.out / "fraction_row.png", optimize=True)
    (args.out / "fraction_row.json").write_text(json.dumps(said, indent=1) + "\n")
    print(args.out / "fraction_row.png")


if __name__ == "__main__":
    run(main)
