"""FLUX.1 [dev] with Flux.1 Lite, 8 of its 12 billion parameters, in its first steps.

    python examples/flux.py --fraction 0 0.2 0.4 --keep active --lazy
    python examples/flux.py --tiny

FLUX.1 [dev] asks for its licence to be accepted first. Lite was distilled from it and takes the same latents and texts;
how much of the trajectory it can take has not been measured here.
"""

import torch
from common import Example, open_large, open_small, pictures, run
from diffusers import FluxPipeline, FluxTransformer2DModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="flux",
    large="black-forest-labs/FLUX.1-dev",
    small="Freepik/flux.1-lite-8B",
    prompt="a cat holding a sign that says hello world",
    steps=28,
    half=torch.bfloat16,
)


def main(given=None):
    args = EXAMPLE.read(EXAMPLE.parser(__doc__), given)
    pipe = open_large(args, FluxPipeline)
    small = open_small(args, FluxTransformer2DModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    pictures(pipe, args, prompt=args.prompt, guidance_scale=3.5)


if __name__ == "__main__":
    run(main)
