"""An unconditional latent diffusion model (LDMPipeline, a UNet2DModel) with a smaller U-Net in its first steps.

python examples/ldm.py --small my-small-unet --steps 200
python examples/ldm.py --tiny
"""

from common import Example, open_large, open_small, pictures, run
from diffusers import LDMPipeline, UNet2DModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="ldm",
    large="CompVis/ldm-celebahq-256",
    why_small="we know of no published smaller U-Net for this autoencoder's latents; train a UNet2DModel on them, with "
    "the noise schedule of the pipeline's scheduler, and give its folder",
    steps=200,
)


def main(given=None):
    args = EXAMPLE.read(EXAMPLE.parser(__doc__), given)
    pipe = open_large(args, LDMPipeline)
    small = open_small(args, UNet2DModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    pictures(pipe, args)


if __name__ == "__main__":
    run(main)
