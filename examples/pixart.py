"""PixArt-α, or PixArt-Σ with --sigma, with a smaller PixArt transformer in its first steps.

python examples/pixart.py --small my-small-pixart --fraction 0.4
python examples/pixart.py --sigma --small my-small-pixart
python examples/pixart.py --tiny
"""

from common import Example, open_large, open_small, pictures, run
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="pixart_alpha",
    large="PixArt-alpha/PixArt-XL-2-512x512",
    why_small="we know of no published PixArt transformer smaller than XL; give the folder of one trained for the same "
    "latents and text encoder",
    prompt="a small cactus with a happy face in the Sahara desert",
    steps=20,
)
SIGMA = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"


def main(given=None):
    parser = EXAMPLE.parser(__doc__)
    parser.add_argument("--sigma", action="store_true", help=f"PixArt-Σ, {SIGMA} unless --large is given")
    args = EXAMPLE.read(parser, given)
    if args.sigma:
        args.family = "pixart_sigma"
        args.large = SIGMA if args.large == EXAMPLE.large else args.large

    pipe = open_large(args, PixArtSigmaPipeline if args.sigma else PixArtAlphaPipeline)
    small = open_small(args, PixArtTransformer2DModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    pictures(pipe, args, prompt=args.prompt)


if __name__ == "__main__":
    run(main)
