"""What the examples share: arguments, opening models, one picture for each fraction.

Without --tiny the models come from the Hugging Face hub or from folders, by from_pretrained. With --tiny they are the
random networks of tiny.py: nothing is downloaded, a script runs in seconds, and its pictures are noise.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from hemstitch.bridge import Lazy, replan
from hemstitch.errors import HemstitchError, MissingExtraError

Arguments = argparse.Namespace


@dataclass(frozen=True)
class Example:
    """One script's defaults. `small` None: no small model is published, and `why_small` says what to give instead."""

    family: str  # of tiny.py
    large: str
    small: str | None = None
    why_small: str = ""
    prompt: str | None = None
    steps: int = 50
    half: torch.dtype = torch.float16  # on a GPU; float32 elsewhere

    def parser(self, doc: str | None) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        add = parser.add_argument
        add("--large", default=self.large, help=f"pipeline: hub id or folder ({self.large})")
        add("--small", default=self.small, help=f"denoiser, or pipeline to take it from ({self.small or 'required'})")
        fraction = "share of the steps that the small model takes, the first ones; several for several pictures (0.4)"
        add("--fraction", type=float, nargs="+", default=[0.4], help=fraction)
        add("--steps", type=int, default=self.steps, help=f"solver steps ({self.steps})")
        add("--seed", type=int, default=0)
        if self.prompt is not None:
            add("--prompt", default=self.prompt, help=f'("{self.prompt}")')
        add("--out", type=Path, default=Path("out"), help="folder for the pictures (out)")
        add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        add("--dtype", choices=["float32", "float16", "bfloat16"], help="half precision on a GPU, else float32")
        add("--variant", help='"fp16" fetches the half-precision files of repositories that have them')
        add("--offload", action="store_true", help="diffusers' model offloading: on the GPU only while it runs")
        add("--keep", choices=["both", "active"], default="both", help="active: only the model whose steps they are")
        add("--lazy", action="store_true", help="open the small model when its first step comes")
        add("--tiny", action="store_true", help="tiny random networks, on the CPU, offline")
        parser.set_defaults(family=self.family, name=Path(sys.argv[0]).stem or self.family)
        return parser

    def read(
        self,
        parser: argparse.ArgumentParser,
        given: Sequence[str] | None,
        small: Callable[[Arguments], str] | None = None,
    ) -> Arguments:
        """`small` gives the default of --small where it depends on other arguments."""
        args = parser.parse_args(given)
        args.small = small(args) if small else args.small
        if args.tiny:
            args.device, args.variant = "cpu", None
            if self.prompt is not None and args.prompt == self.prompt:
                args.prompt = tiny.PROMPT  # tiny tokenizers take few characters
        elif args.small is None:
            raise HemstitchError(f"--small is needed: {self.why_small}")
        half = self.half if args.device.startswith("cuda") else torch.float32
        args.loading = {"dtype": getattr(torch, args.dtype) if args.dtype else half}
        return args


def open_large(args: Arguments, cls: type[DiffusionPipeline], **more: Any) -> DiffusionPipeline:
    """The pipeline of the large model. `more` goes to from_pretrained."""
    if args.tiny:
        return tiny.build(args.family).to(args.loading["dtype"])
    with opening(args.large):
        return cls.from_pretrained(args.large, **args.loading, variant=args.variant, **more)


def open_small(args: Arguments, cls: type[nn.Module], make_tiny: Callable[[], nn.Module] | None = None) -> Any:
    """The small denoiser, or with --lazy what opens it: of a pipeline's folder or a folder of its own."""
    if args.tiny:
        net = (make_tiny() if make_tiny else tiny.small(args.family)).to(args.loading["dtype"])
        if not args.lazy:
            return net
        args.folder = tempfile.TemporaryDirectory()  # as long as args live
        source = args.folder.name
        net.save_pretrained(source)
    else:
        source = args.small
    return open_part(source, cls, "unet" if "UNet" in cls.__name__ else "transformer", args, lazy=args.lazy)


def open_part(source: str | Path, cls: type[nn.Module], part: str, args: Arguments, lazy: bool = False) -> Any:
    """`part` of the pipeline at `source`, or what lies at `source` itself."""
    more = dict(args.loading) | ({"variant": args.variant} if args.variant else {})
    with opening(source):
        if _has(source, part, cls):
            more["subfolder"] = part
        return Lazy(cls, source, **more) if lazy else cls.from_pretrained(source, **more)


@contextmanager
def opening(source: str | Path) -> Iterator[None]:
    """What goes wrong while `source` is opened is told with its name."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise HemstitchError(f"{source} could not be opened: {error}") from error


def _has(source: str | Path, part: str, cls: type[nn.Module]) -> bool:
    if Path(source).is_dir():
        return (Path(source) / part).is_dir()
    try:
        cls.load_config(source)  # one small file: networks by themselves, such as latent-consistency/lcm-sdxl, have it
    except OSError:
        return True
    return False


def place(pipe: DiffusionPipeline, args: Arguments) -> DiffusionPipeline:
    """Moves the stitched pipeline to the device, or has diffusers move its parts while they run."""
    if args.offload:
        pipe.enable_model_cpu_offload(device=args.device)
        return pipe
    return pipe.to(args.device)


def pictures(pipe: DiffusionPipeline, args: Arguments, **call: Any) -> list[Path]:
    """One picture for each of args.fraction, saved. `call` goes to the pipeline; with --tiny the smallest call does."""
    place(pipe, args)
    asked = {"num_inference_steps": args.steps, **call}
    if args.tiny:
        smallest = tiny.call_kwargs(args.family, args.steps)
        asked = {
            **smallest,
            **{k: v for k, v in call.items() if k in smallest and k not in ("height", "width", "num_frames")},
            "output_type": "pil",
        }
    accepted = inspect.signature(pipe.__call__).parameters
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    for fraction in args.fraction:
        asked["generator"] = torch.Generator(args.device).manual_seed(args.seed)
        with replan(pipe, fraction=fraction):
            began = time.perf_counter()
            result = pipe(**{key: value for key, value in asked.items() if key in accepted})
            seconds = time.perf_counter() - began  # the picture is on the CPU by now
        path = save(result, args.out / f"{args.name}-{fraction:g}")
        print(f"fraction {fraction:.2f}  {args.steps} steps  {seconds:6.2f} s  {path}", flush=True)
        written.append(path)
    return written


def save(result: Any, stem: Path) -> Path:
    """The pictures in a row as PNG, or the first video as an animated WebP of 16 frames a second."""
    if hasattr(result, "images"):
        path = stem.with_name(f"{stem.name}.png")
        width, height = result.images[0].size
        row = Image.new("RGB", (width * len(result.images), height))
        for i, image in enumerate(result.images):
            row.paste(image, (i * width, 0))
        row.save(path)
        return path
    path = stem.with_name(f"{stem.name}.webp")
    first, *others = result.frames[0]
    first.save(path, save_all=True, append_images=others, duration=1000 / 16, loop=0)
    return path


def picture(path: Path | None, args: Arguments, what: str, side: int) -> Any:
    """The picture at `path`, in RGB, `side` pixels square; with --tiny tiny, and noise where no path is given."""
    if path is None:
        if args.tiny:
            return tiny.picture()
        raise HemstitchError(f"{what} is needed: the path of a picture")
    side = tiny.SIZE if args.tiny else side
    return Image.open(path).convert("RGB").resize((side, side))


def run(main: Callable[[Sequence[str] | None], object]) -> None:
    """A script's end: bad input is one sentence and status 2."""
    try:
        main(None)
    except (HemstitchError, MissingExtraError, OSError) as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
