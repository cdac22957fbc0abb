"""Stable Diffusion 1.4 with BK-SDM-Tiny in its first steps: text to image, image to image, inpainting.

    python examples/stable_diffusion.py --fraction 0.2 0.4 0.6
    python examples/stable_diffusion.py --large nitrosocke/Ghibli-Diffusion --prompt "ghibli style, a castle in the sky"
    python examples/stable_diffusion.py --large Envvi/Inkpunk-Diffusion --prompt "a squirrel in a park, nvinkpunk"
    python examples/stable_diffusion.py --init-image photo.png --strength 0.7
    python examples/stable_diffusion.py --init-image photo.png --mask mask.png     # white is painted anew
    python examples/stable_diffusion.py --tiny

The stylised checkpoints are Stable Diffusion 1.x trained on: they share its latents, and any of its small models goes
first. The fraction is of the steps that run: with --strength 0.7 seven tenths of --steps do.
"""

from pathlib import Path

from common import Example, open_large, open_small, picture, pictures, run
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from hemstitch.bridge import stitch
from hemstitch.errors import HemstitchError

EXAMPLE = Example(
    family="sd",
    large="CompVis/stable-diffusion-v1-4",
    small="nota-ai/bk-sdm-tiny",
    prompt="a photograph of an astronaut riding a horse",
)
PIPELINES = {
    "sd": StableDiffusionPipeline,
    "sd_img2img": StableDiffusionImg2ImgPipeline,
    "sd_inpaint": StableDiffusionInpaintPipeline,
}


def main(given=None):
    parser = EXAMPLE.parser(__doc__)
    parser.add_argument("--init-image", type=Path, help="begin from this picture")
    parser.add_argument("--mask", type=Path, help="with --init-image: paint where this picture is white")
    parser.add_argument("--strength", type=float, help="share of the steps that run (0.8; with --mask 1)")
    args = EXAMPLE.read(parser, given)

    args.family, call = "sd", {"prompt": args.prompt}
    if args.init_image:
        strength = args.strength or (1.0 if args.mask else 0.8)
        call |= {"image": picture(args.init_image, args, "--init-image", side=512), "strength": strength}
        args.family = "sd_img2img"
    if args.mask:
        if not args.init_image:
            raise HemstitchError("--mask says where to paint a picture anew: give the picture, --init-image")
        call |= {"mask_image": picture(args.mask, args, "--mask", side=512)}
        args.family = "sd_inpaint"

    pipe = open_large(args, PIPELINES[args.family])
    small = open_small(args, UNet2DConditionModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    pictures(pipe, args, **call)


if __name__ == "__main__":
    run(main)
