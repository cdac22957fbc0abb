"""DiT-XL/2 with a smaller DiT in its first steps, by class of ImageNet.

    hemstitch convert dit_s_256.pt dit-s --to diffusers
    python examples/dit.py --small dit-s --classes 207 360 387 --fraction 0 0.4
    python examples/dit.py --tiny

`hemstitch convert` takes a run of `hemstitch train` as well as released files.
"""

from common import Example, open_large, open_small, pictures, run
from diffusers import DiTPipeline, DiTTransformer2DModel

from hemstitch.bridge import stitch

EXAMPLE = Example(
    family="dit",
    large="facebook/DiT-XL-2-256",
    why_small="we know of no small DiT published as a diffusers folder. T-Stitch's authors link the weights of DiT-S "
    "and DiT-B (dit/README.md of NVlabs/T-Stitch); `hemstitch convert dit_s_256.pt dit-s --to diffusers` makes one",
)


def main(given=None):
    parser = EXAMPLE.parser(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[207, 360, 387], help="0..999 (207 360 387)")
    args = EXAMPLE.read(parser, given)
    pipe = open_large(args, DiTPipeline)
    small = open_small(args, DiTTransformer2DModel)
    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    pictures(pipe, args, class_labels=args.classes)


if __name__ == "__main__":
    run(main)
