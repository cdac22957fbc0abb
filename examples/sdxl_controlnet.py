"""Stable Diffusion XL under a ControlNet, with SSD-1B in its first steps.

    python examples/sdxl_controlnet.py --control canny --image edges.png --prompt "a bird on a branch"
    python examples/sdxl_controlnet.py --control pose --image skeleton.png --residuals drop
    python examples/sdxl_controlnet.py --tiny

--image is what the ControlNet was trained on: edges, a depth map or a drawn pose, made beforehand (the controlnet_aux
package makes all three). SSD-1B has its U-Net's skip connections where SDXL has them, and a ControlNet of SDXL fits it.
A small U-Net that it does not fit is refused until one way is chosen: --residuals drop, or --small-controlnet.
"""

from pathlib import Path

import tiny
from common import Example, open_large, open_small, picture, pictures, run
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, UNet2DConditionModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="sdxl_controlnet",
    large="stabilityai/stable-diffusion-xl-base-1.0",
    small="segmind/SSD-1B",
    prompt="a bird on a branch, photograph",
)
CONTROLNETS = {
    "canny": "diffusers/controlnet-canny-sdxl-1.0",
    "depth": "diffusers/controlnet-depth-sdxl-1.0",
    "pose": "thibaud/controlnet-openpose-sdxl-1.0",
}


def tiny_small(misfit: bool) -> UNet2DConditionModel:
    """Like SSD-1B fewer transformer blocks; or also fewer skip connections."""
    return tiny.thin("sdxl") if misfit else tiny.unet_sdxl(seed=11, transformer_layers_per_block=(1, 1))


def main(given=None):
    parser = EXAMPLE.parser(__doc__)
    parser.add_argument("--control", choices=CONTROLNETS, default="canny")
    parser.add_argument("--controlnet", help="another ControlNet than that of --control: hub id or folder")
    parser.add_argument("--image", type=Path, help="the edges, depth map or pose to follow")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--residuals", choices=["drop"], help="drop: the small U-Net runs without the ControlNet")
    way.add_argument("--small-controlnet", help="a ControlNet for the small U-Net: hub id or folder; tiny with --tiny")
    args = EXAMPLE.read(parser, given)
    image = picture(args.image, args, "--image", side=1024)

    small = open_small(args, UNet2DConditionModel, lambda: tiny_small(bool(args.residuals or args.small_controlnet)))
    if args.tiny:
        pipe = tiny.build("sdxl_controlnet")
        own = args.small_controlnet and tiny.controlnet_for(tiny.thin("sdxl"))
    else:
        net = ControlNetModel.from_pretrained(args.controlnet or CONTROLNETS[args.control], **args.loading)
        pipe = open_large(args, StableDiffusionXLControlNetPipeline, controlnet=net)
        own = args.small_controlnet and ControlNetModel.from_pretrained(args.small_controlnet, **args.loading)

    pipe = stitch(
        pipe,
        small,
        fraction=args.fraction[0],
        keep=args.keep,
        residuals={"small": "drop"} if args.residuals else None,
        controlnets={"small": own} if own else None,
    )
    pictures(pipe, args, prompt=args.prompt, image=image)


if __name__ == "__main__":
    run(main)
