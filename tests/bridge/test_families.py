"""Every family of pipelines: stitched with fraction 0 or 1 it is the plain pipeline of that member, bit for bit."""

import pytest
import tiny
import torch
from calls import watched

from hemstitch.bridge import replan, stitch, stitched, unstitch
from hemstitch.errors import StitchError

STEPS = 4


def members_for(family):
    """(pipe, its own denoiser, another one, the other arguments of stitch)."""
    pipe = tiny.build(family)
    if family == "sdxl_controlnet":
        small = tiny.small(family)
        return pipe, small, {"controlnets": {"small": tiny.controlnet_for(small)}}
    if family == "sdxl_adapter":
        return pipe, tiny.thin(family), {}
    return pipe, tiny.small(family), {}


def run(family, pipe):
    return tiny.run(family, pipe, steps=STEPS)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_ends_are_the_plain_pipelines_and_the_middle_is_neither(family):
    pipe, small, more = members_for(family)
    slot = tiny.DENOISER[family]
    own, plain = getattr(pipe, slot), run(family, pipe)

    assert stitch(pipe, small, fraction=0, **more) is pipe
    assert torch.equal(run(family, pipe), plain)
    replan(pipe, fraction=0.5)
    middle = run(family, pipe)
    assert stitched(pipe).route.last.assignment == ("small", "small", "large", "large")
    assert torch.equal(run(family, pipe), middle)
    replan(pipe, fraction=1)
    small_alone = run(family, pipe)
    unstitch(pipe)
    assert getattr(pipe, slot) is own
    assert torch.equal(run(family, pipe), plain)

    setattr(pipe, slot, small)
    if family == "wan_two":
        pipe.transformer_2 = small
    if family == "sdxl_controlnet":
        pipe.controlnet = more["controlnets"]["small"]
    assert torch.equal(run(family, pipe), small_alone)
    assert not torch.equal(middle, plain)
    assert not torch.equal(middle, small_alone)


@pytest.mark.parametrize("family", ["sdxl_controlnet", "sdxl_adapter"])
def test_residuals_that_do_not_fit_are_refused_when_building(family):
    pipe = tiny.build(family)
    with pytest.raises(StitchError, match=r"does not fit the member 'small'.*\"drop\""):
        stitch(pipe, tiny.small(family), fraction=0.5)


def test_a_shallower_member_is_refused_too_where_the_unet_would_cut_the_residuals_silently():
    with pytest.raises(StitchError, match="places for residuals"):
        stitch(tiny.build("sdxl_controlnet"), tiny.thin("sdxl_controlnet"), fraction=0.5)


def test_another_kind_of_network_is_no_controlnet_and_nothing_changes():
    pipe, small = tiny.build("sdxl_controlnet"), tiny.small("sdxl_controlnet")
    own = pipe.unet
    for wrong in ("x", torch.nn.Linear(1, 1), tiny.small("sdxl")):
        with pytest.raises(StitchError, match="the pipeline's own is a ControlNetModel"):
            stitch(pipe, small, fraction=0.5, controlnets={"small": wrong})
        assert pipe.unet is own


@pytest.mark.parametrize("family", ["sdxl_controlnet", "sdxl_adapter"])
def test_dropped_residuals_reach_only_the_other_member(family):
    pipe = tiny.build(family)
    plain = run(family, pipe)
    small = tiny.small(family)
    stitch(pipe, small, fraction=1, residuals={"small": "drop"})
    dropped = run(family, pipe)
    without = tiny.build("sdxl")
    without.unet = small
    assert torch.allclose(dropped, tiny.run("sdxl", without, steps=STEPS), atol=1e-5)
    replan(pipe, fraction=0)
    assert torch.equal(run(family, pipe), plain)


def test_the_controlnet_changes_at_the_seam_with_its_unet():
    family = "sdxl_controlnet"
    pipe, small, more = members_for(family)
    stitch(pipe, small, fraction=0.5, **more)
    asked = []
    for name, net in pipe.controlnet.members.items():
        net.register_forward_hook(lambda *_, name=name: asked.append(name))
    run(family, pipe)
    assert asked == ["small"] * 2 + ["large"] * 2


def test_wan_with_two_transformers_keeps_its_boundary_behind_the_small_one():
    pipe = tiny.build("wan_two")
    high, low, small = pipe.transformer, pipe.transformer_2, tiny.small("wan_two")
    asked = []
    for name, net in {"high": high, "low": low, "small": small}.items():
        net.register_forward_hook(lambda *_, name=name: asked.append(name))
    tiny.run("wan_two", pipe, steps=10)
    plain = asked[::2]
    asked.clear()
    stitch(pipe, small, fraction=0.2)
    tiny.run("wan_two", pipe, steps=10)
    assert asked[::2] == ["small"] * 2 + plain[2:]
    assert {"high", "low"} <= set(plain[2:])
    unstitch(pipe)
    assert pipe.transformer is high
    assert pipe.transformer_2 is low


def test_three_members_and_a_plan_in_any_order():
    from hemstitch import Plan

    pipe = tiny.build("sd")
    stitch(pipe, tiny.small("sd"), tiny.thin("sd"), fraction=(0.25, 0.5))
    run("sd", pipe)
    assert stitched(pipe).route.last.assignment == ("small", "medium", "medium", "large")
    plan = Plan.explicit(["large", "small", "large", "medium"])
    asked = []
    for name, net in stitched(pipe).members.items():
        net.register_forward_hook(lambda *_, name=name: asked.append(name))
    replan(pipe, plan=plan)
    run("sd", pipe)
    assert asked == list(plan.assignment)


@pytest.mark.parametrize("classes", [10, 1000, 1500])
def test_a_dit_of_any_number_of_classes_has_its_own_null_label(classes):
    pipe = tiny.build("dit")
    pipe.transformer = large = tiny.transformer_dit(classes=classes)
    small = tiny.transformer_dit("small", classes=classes)
    seen = []
    for net in (small, large):
        net.register_forward_pre_hook(lambda *a: seen.append(a[2]["class_labels"].tolist()), with_kwargs=True)
    stitch(pipe, small, fraction=0.5)
    picture = tiny.run("dit", pipe, steps=2, class_labels=[1, 7], guidance_scale=4.0)
    assert picture.isfinite().all()
    assert seen == [[1, 7, classes, classes]] * 2
    seen.clear()
    tiny.run("dit", pipe, steps=2, class_labels=[1, 7], guidance_scale=1.0)
    assert seen == [[1, 7]] * 2


def test_a_class_conditional_unet_in_a_loop_of_ones_own():
    from diffusers import DDIMPipeline, DDIMScheduler

    large, small = tiny.unet_class(), tiny.unet_class("small")
    pipe = stitch(DDIMPipeline(large, DDIMScheduler()), small, fraction=0.5)
    x, labels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 4])
    asked = []
    for name, net in stitched(pipe).members.items():
        net.register_forward_hook(lambda *_, name=name: asked.append(name))
    pipe.scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t, labels).sample, t, x).prev_sample
    assert asked == ["small"] * 3 + ["large"] * 3


# -- pipelines beyond the families: nothing is known about them but their calls ---------------------------------------


def test_perturbed_attention_guidance():
    from diffusers import StableDiffusionPAGPipeline

    pipe = StableDiffusionPAGPipeline(
        **tiny.build("sd").components, pag_applied_layers="down", requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    stitch(pipe, tiny.small("sd"), fraction=0.5)
    asked = watched(pipe)
    plain = tiny.run("sd", pipe, steps=4, pag_scale=0.0)
    assert not torch.allclose(tiny.run("sd", pipe, steps=4, pag_scale=3.0), plain)
    assert asked == (["small"] * 2 + ["large"] * 2) * 2


def test_several_controlnets_for_each_member():
    from diffusers import MultiControlNetModel

    pipe, small = tiny.build("sdxl_controlnet"), tiny.small("sdxl")
    pipe.controlnet = MultiControlNetModel([pipe.controlnet, tiny.controlnet_for(pipe.unet, seed=5)])
    two = MultiControlNetModel([tiny.controlnet_for(small, seed=seed) for seed in (6, 7)])
    stitch(pipe, small, fraction=0.5, controlnets={"small": two})
    asked = watched(pipe)
    pictures = {"image": [tiny.picture(), tiny.picture(1)], "controlnet_conditioning_scale": [0.5, 0.5]}
    assert tiny.run("sdxl_controlnet", pipe, steps=4, **pictures).isfinite().all()
    assert asked == ["small"] * 2 + ["large"] * 2


def test_a_transformers_controlnet_fits_any_depth_of_its_width():
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline

    plain = tiny.build("sd3")
    net = SD3ControlNetModel.from_transformer(
        plain.transformer, num_layers=1, num_extra_conditioning_channels=0, load_weights_from_transformer=False
    )
    parts = {k: v for k, v in plain.components.items() if k not in ("image_encoder", "feature_extractor")}
    pipe = StableDiffusion3ControlNetPipeline(**parts, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(StitchError, match="16 wide, the pipeline's own 32"):
        stitch(pipe, tiny.small("sd3"), fraction=0.5)
    stitch(pipe, tiny.thin("sd3"), fraction=0.5)
    asked = watched(pipe)
    assert tiny.run("sd3", pipe, steps=4, control_image=tiny.picture()).isfinite().all()
    assert asked == ["small"] * 2 + ["large"] * 2


def test_animated_pipelines():
    from diffusers import AnimateDiffPipeline, MotionAdapter, UNetMotionModel

    def moving(unet):
        adapter = MotionAdapter(
            block_out_channels=unet.config.block_out_channels,
            motion_layers_per_block=unet.config.layers_per_block,
            motion_norm_num_groups=2,
            motion_num_attention_heads=4,
        )
        return adapter, UNetMotionModel.from_unet2d(unet, adapter).eval()

    plain = tiny.build("sd")
    adapter, unet = moving(plain.unet)
    parts = {name: plain.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipe = AnimateDiffPipeline(**parts, unet=unet, motion_adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    stitch(pipe, moving(tiny.small("sd"))[1], fraction=0.5)
    asked = watched(pipe)
    assert tiny.run("sd", pipe, steps=4, num_frames=2).isfinite().all()
    assert asked == ["small"] * 2 + ["large"] * 2


@pytest.mark.parametrize(("component", "calls"), [("transformer", 4), ("transformer_2", 6)])
def test_one_of_wans_two_transformers(component, calls):
    pipe = tiny.build("wan_two")
    other = pipe.transformer_2 if component == "transformer" else pipe.transformer
    stitch(pipe, tiny.small("wan"), fraction=0.5, component=component)
    assert other in (pipe.transformer, pipe.transformer_2)
    asked = watched(pipe)
    tiny.run("wan_two", pipe, steps=10)
    small = 4 if component == "transformer" else 1  # five steps of the ten, four of them before the boundary
    assert asked == ["small"] * 2 * small + ["large"] * 2 * (calls - small)


def test_stable_cascade_whose_scheduler_keeps_no_count_and_whose_time_is_a_ratio():
    from diffusers import DDPMWuerstchenScheduler, StableCascadePriorPipeline, StableCascadeUNet

    def prior(width):
        torch.manual_seed(width)
        return StableCascadeUNet(
            conditioning_dim=32,
            block_out_channels=(width, 2 * width),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_image_in_channels=32,
            clip_text_in_channels=32,
            clip_text_pooled_in_channels=32,
            clip_seq=4,
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(1, 1),
            block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
            switch_level=(False,),
        )

    pipe = StableCascadePriorPipeline(
        tokenizer=tiny.clip_tokenizer(),
        text_encoder=tiny.clip_text(projection=32),
        prior=prior(16),
        scheduler=DDPMWuerstchenScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    stitch(pipe, prior(8), fraction=0.5, component="prior")
    for steps in (4, 2, 1):
        asked = watched(pipe)
        pipe("a", height=256, width=256, num_inference_steps=steps, output_type="pt")
        assert asked == ["small"] * (steps // 2) + ["large"] * (steps - steps // 2)


def test_hunyuan_dit_in_half_precision():
    """It casts its timesteps to bfloat16, where neighbours are equal, and DDPM's scheduler keeps no index."""
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    def net(layers):
        torch.manual_seed(layers)
        return HunyuanDiT2DModel(
            sample_size=16,
            num_layers=layers,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        ).to(torch.bfloat16)

    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "safety_checker"))
    pipe = HunyuanDiTPipeline(
        **parts,
        vae=tiny.vae(),
        transformer=net(2),
        scheduler=DDPMScheduler(),
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.vae_scale_factor = 8
    pipe.set_progress_bar_config(disable=True)
    stitch(pipe, net(1), fraction=0.5)
    asked = watched(pipe)
    texts = {"": (77, torch.bfloat16), "_2": (256, torch.bfloat16)}
    prompts = {}
    for end, (length, dtype) in texts.items():
        for sign in ("", "negative_"):
            prompts[f"{sign}prompt_embeds{end}"] = torch.randn(1, length, 32).to(dtype)
            prompts[f"{sign}prompt_attention_mask{end}"] = torch.ones(1, length)
    pipe(
        **prompts,
        height=128,
        width=128,
        num_inference_steps=30,
        output_type="latent",
        use_resolution_binning=False,
    )
    assert asked == ["small"] * 15 + ["large"] * 15


def test_what_a_step_was_given_is_not_kept_till_the_end():
    """The pipeline's variables are looked at once: a copy of them must not hold the residuals of that step."""
    import weakref

    pipe = stitch(
        tiny.build("sdxl_controlnet"), tiny.small("sdxl_controlnet"), fraction=0.5, residuals={"small": "drop"}
    )
    given, alive = [], []

    def look(module, args, kwargs):
        alive.append([sum(ref() is not None for ref in refs) for refs in given])
        given.append([weakref.ref(x) for x in kwargs["down_block_additional_residuals"]])

    pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    run("sdxl_controlnet", pipe)
    assert alive == [[], [0], [0, 0], [0, 0, 0]]
