"""Latent consistency: four steps of LCM-SDXL, the first of them by LCM-SSD-1B; or LCM-LoRA on both members.

    python examples/lcm.py --fraction 0 0.25 0.5 --variant fp16
    python examples/lcm.py --lora --fraction 0.25       # SDXL and SSD-1B, each with its LCM-LoRA; needs peft
    python examples/lcm.py --tiny

Few steps make coarse fractions: with --steps 4 they are quarters.
"""

from importlib.util import find_spec

import tiny
from common import Example, open_large, open_part, open_small, pictures, run
from diffusers import LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from hemstitch.bridge import stitch, stitched
from hemstitch.errors import HemstitchError

EXAMPLE = Example(
    family="sdxl",
    large="stabilityai/stable-diffusion-xl-base-1.0",
    small=None,  # below: it depends on --lora
    prompt="a close-up photograph of an old fisherman in the rain",
    steps=4,
)
LARGE_UNET = "latent-consistency/lcm-sdxl"
SMALL = {False: "latent-consistency/lcm-ssd-1b", True: "segmind/SSD-1B"}
LORAS = {"large": "latent-consistency/lcm-lora-sdxl", "small": "latent-consistency/lcm-lora-ssd-1b"}


def main(given=None):
    parser = EXAMPLE.parser(__doc__)
    parser.set_defaults(fraction=[0.25])
    parser.add_argument("--lora", action="store_true", help="LCM-LoRA on both members instead of LCM U-Nets")
    args = EXAMPLE.read(parser, given, small=lambda known: known.small or SMALL[known.lora])
    if args.lora and find_spec("peft") is None:
        raise HemstitchError("--lora loads adapters with peft, which is not installed: pip install peft")

    guided = None if args.lora else 32  # width of the guidance embedding of a tiny LCM U-Net
    if args.tiny:
        pipe = tiny.build("sdxl")
        pipe.unet = tiny.unet_sdxl(time_cond_proj_dim=guided)
    elif args.lora:
        pipe = open_large(args, StableDiffusionXLPipeline)
    else:
        unet = open_part(LARGE_UNET, UNet2DConditionModel, "unet", args)
        pipe = open_large(args, StableDiffusionXLPipeline, unet=unet)
    small = open_small(args, UNet2DConditionModel, lambda: tiny.unet_sdxl("small", 11, time_cond_proj_dim=guided))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)

    pipe = stitch(pipe, small, fraction=args.fraction[0], keep=args.keep)
    if args.lora:
        for name, lora in LORAS.items():
            with stitched(pipe).only(name):  # an adapter for each; without this line both members would take both
                source = tiny.lora_for(stitched(pipe).members[name], "unet") if args.tiny else lora
                pipe.load_lora_weights(source, adapter_name=f"lcm-{name}")
    pictures(pipe, args, prompt=args.prompt, guidance_scale=1.0 if args.lora else 8.0)


if __name__ == "__main__":
    run(main)
