"""Stable Diffusion 3.5 Large with 3.5 Medium in its first steps.

    python examples/sd3.py --fraction 0 0.2 0.4 --keep active --lazy
    python examples/sd3.py --tiny

Both repositories ask for their licence to be accepted first. Their latents, text encoders and flow are the same; how
much of the trajectory Medium can take has not been measured here.
"""

import torch
from common import Example, open_large, open_small, pictures, run
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="sd3",
    large="stabilityai/stable-diffusion-3.5-large",
    small="stabilityai/stable-diffusion-3.5-medium",
    prompt="a capybara holding a sign that reads Hello World",
    steps=28,
    half=torch.bfloat16,
)


def main(given=None):
    args = EXAMPLE.read(EXAMPLE.parser(__doc__), given)
    pipe = open_large(args, StableDiffusion3Pipeline)
    small = open_small(args, SD3Transformer2DModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    pictures(pipe, args, prompt=args.prompt, guidance_scale=4.5)


if __name__ == "__main__":
    run(main)
