"""Stable Diffusion XL under a T2I-Adapter, with SSD-1B in its first steps.

    python examples/sdxl_t2i_adapter.py --control canny --image edges.png --prompt "a bird on a branch"
    python examples/sdxl_t2i_adapter.py --tiny

--image is what the adapter was trained on: edges, a sketch, line art, a depth map or a drawn pose, made beforehand. An
adapter gives one residual for each block of the U-Net; where blocks are as wide as SDXL's, as SSD-1B's are, they fit.
"""

from pathlib import Path

import tiny
from common import Example, open_large, open_small, picture, pictures, run
from diffusers import StableDiffusionXLAdapterPipeline, T2IAdapter, UNet2DConditionModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="sdxl_adapter",
    large="stabilityai/stable-diffusion-xl-base-1.0",
    small="segmind/SSD-1B",
    prompt="a bird on a branch, photograph",
)
ADAPTERS = {
    "canny": "TencentARC/t2i-adapter-canny-sdxl-1.0",
    "sketch": "TencentARC/t2i-adapter-sketch-sdxl-1.0",
    "lineart": "TencentARC/t2i-adapter-lineart-sdxl-1.0",
    "depth": "TencentARC/t2i-adapter-depth-midas-sdxl-1.0",
    "pose": "TencentARC/t2i-adapter-openpose-sdxl-1.0",
}


def main(given=None):
    parser = EXAMPLE.parser(__doc__)
    parser.add_argument("--control", choices=ADAPTERS, default="canny")
    parser.add_argument("--image", type=Path, help="the edges, sketch, depth map or pose to follow")
    parser.add_argument("--residuals", choices=["drop"], help="drop: the small U-Net runs without the adapter")
    args = EXAMPLE.read(parser, given)
    image = picture(args.image, args, "--image", side=1024)

    more = {} if args.tiny else {"adapter": T2IAdapter.from_pretrained(ADAPTERS[args.control], **args.loading)}
    pipe = open_large(args, StableDiffusionXLAdapterPipeline, **more)
    small = open_small(args, UNet2DConditionModel, lambda: tiny.thin("sdxl_adapter"))
    residuals = {"small": "drop"} if args.residuals else None
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep, residuals=residuals)
    pictures(pipe, args, prompt=args.prompt, image=image)


if __name__ == "__main__":
    run(main)
