"""Stable Diffusion XL with SSD-1B in its first steps.

python examples/sdxl.py --fraction 0 0.2 0.4 0.6 --variant fp16
python examples/sdxl.py --tiny
"""

from common import Example, open_large, open_small, pictures, run
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="sdxl",
    large="stabilityai/stable-diffusion-xl-base-1.0",
    small="segmind/SSD-1B",
    prompt="a photograph of an astronaut riding a horse on mars, high resolution",
)


def main(given=None):
    args = EXAMPLE.read(EXAMPLE.parser(__doc__), given)
    pipe = open_large(args, StableDiffusionXLPipeline)
    small = open_small(args, UNet2DConditionModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    pictures(pipe, args, prompt=args.prompt)


if __name__ == "__main__":
    run(main)
