"""Wan 2.1 text to video, 14 billion parameters, with the model of 1.3 billion in its first steps.

    python examples/wan.py --fraction 0.2 0.4 --keep active --lazy
    python examples/wan.py --two                        # Wan 2.2: a transformer for high noise and one for low
    python examples/wan.py --tiny

diffusers cleans Wan's prompts with ftfy: pip install ftfy.
Wan 2.2 A14B hands over between its two transformers at a noise level of its own. The fraction is of the whole run: the
1.3B model takes the first steps, the two divide those that are left. How much of either trajectory 1.3B can take has
not been measured here; on some video models small-first loses to other plans, so look before you trust it.
"""

import torch
from common import Example, open_large, open_small, pictures, run
from diffusers import WanPipeline, WanTransformer3DModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="wan",
    large="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    small="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    prompt="a cat walks on the grass, realistic",
    half=torch.bfloat16,
)
TWO = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"


def main(given=None):
    parser = EXAMPLE.parser(__doc__)
    parser.add_argument("--two", action="store_true", help=f"two transformers, {TWO} unless --large is given")
    parser.add_argument("--frames", type=int, default=33, help="1 more than a multiple of 4 (33)")
    args = EXAMPLE.read(parser, given)
    if args.two:
        args.family = "wan_two"
        args.large = TWO if args.large == EXAMPLE.large else args.large

    pipe = open_large(args, WanPipeline)
    small = open_small(args, WanTransformer3DModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)  # both transformers, where there are two
    pictures(pipe, args, prompt=args.prompt, height=480, width=832, num_frames=args.frames)


if __name__ == "__main__":
    run(main)
