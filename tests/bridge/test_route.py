"""Which member a call goes to: fractions, rules and plans, over what schedulers and pipelines do with their steps."""

import diffusers
import pytest
import tiny
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, StableDiffusionImg2ImgPipeline

from hemstitch import Plan
from hemstitch.bridge import replan, stitch, stitched
from hemstitch.bridge.route import Choice
from hemstitch.errors import StitchError

NAMES = ("small", "large")


def watched(pipe):
    """The members' names, call by call."""
    asked = []
    for name, net in stitched(pipe).members.items():
        net.register_forward_hook(lambda *_, name=name: asked.append(name))
    return asked


def sd(fraction=0.5, **more):
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=fraction, **more)
    return pipe, watched(pipe)


# -- what is chosen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), "0.4", True and "half"])
def test_a_fraction_lies_between_0_and_1(fraction):
    with pytest.raises(StitchError, match=r"fraction"):
        stitch(tiny.build("sd"), tiny.small("sd"), fraction=fraction)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "say how the steps are shared"),
        ({"fraction": 0.4, "plan": Plan.explicit(["small", "large"])}, "one of the two"),
        ({"fraction": (0.4, 0.2)}, "give 1 fractions"),
        ({"fraction": {"tiny": 1.0}}, "fractions name tiny"),
        ({"fraction": {"small": 0.7, "large": 0.7}}, "sum to 1"),
        ({"fraction": 0.4, "rule": "index"}, "rules are step, timestep"),
        ({"plan": Plan.explicit(["small", "base"])}, "plan names base"),
        ({"plan": Plan.explicit(["small", "large"]), "rule": "timestep"}, "a plan has none"),
        ({"fraction": 0.4, "keep": "one"}, "keep is one of both, active"),
        ({"fraction": 0.4, "names": ["a"]}, "2 different strings"),
        ({"fraction": 0.4, "names": ["a", "a"]}, "2 different strings"),
        ({"fraction": 0.4, "component": "prior"}, "no network 'prior'"),
        ({"fraction": 0.4, "residuals": {"large": "drop"}}, "residuals is for small"),
        ({"fraction": 0.4, "residuals": {"small": "cut"}}, "residuals say"),
        ({"fraction": 0.4, "controlnets": {"small": None}}, "no ControlNet"),
        ({"fraction": 0.4, "processes": {"base": None}}, "processes is for small"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_the_fix(more, says):
    pipe = tiny.build("sd")
    own = pipe.unet
    with pytest.raises(StitchError, match=says):
        stitch(pipe, tiny.small("sd"), **more)
    assert pipe.unet is own


def test_a_mapping_may_leave_members_out():
    choice = Choice.of(("a", "b", "c"), {"c": 0.75, "a": 0.25}, None)
    assert dict(choice.fractions) == {"b": 0.0, "c": 0.75, "a": 0.25}
    assert choice == Choice.from_data(choice.to_data())


def test_the_rules_are_those_of_the_released_code():
    pipe, asked = sd(0.5, rule="started")
    tiny.run("sd", pipe, steps=4)
    assert asked == ["small"] * 3 + ["large"]  # i/K <= r
    replan(pipe, fraction=0.5, rule="completed")
    asked.clear()
    tiny.run("sd", pipe, steps=5)
    assert asked == ["small"] * 2 + ["large"] * 3  # (i + 1)/K <= r
    replan(pipe, fraction=0.3, rule="timestep")
    asked.clear()
    tiny.run("sd", pipe, steps=10)
    times = pipe.scheduler.timesteps.tolist()
    assert asked == ["small" if 1 - t / 1000 <= 0.3 else "large" for t in times]


def test_by_timestep_img2img_begins_behind_the_seam():
    pipe, asked = sd(0.5, rule="timestep")
    img2img = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    tiny.run("sd_img2img", img2img, steps=10, strength=0.4)
    assert set(asked) == {"large"}
    replan(pipe, fraction=0.5)
    asked.clear()
    tiny.run("sd_img2img", img2img, steps=10, strength=0.4)
    assert asked == ["small"] * 2 + ["large"] * 2  # by step it is half of the 4 that are left


def test_log_sigmas_are_no_times():
    pipe, _ = sd(0.5, rule="timestep")
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(StitchError, match='rule="step"'):
        tiny.run("sd", pipe, steps=4)


def test_a_plan_is_for_its_own_number_of_steps():
    pipe, asked = sd(None, plan=Plan.explicit(["large", "small", "small"]))
    tiny.run("sd", pipe, steps=3)
    assert asked == ["large", "small", "small"]
    with pytest.raises(StitchError, match="plan is for 3 solver steps and this run takes 4"):
        tiny.run("sd", pipe, steps=4)
    tiny.run("sd", pipe, steps=3)  # nothing is left behind


# -- solver steps ----------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "heun": diffusers.HeunDiscreteScheduler,
    "kdpm2": diffusers.KDPM2DiscreteScheduler,
    "kdpm2 ancestral": diffusers.KDPM2AncestralDiscreteScheduler,
    "plms": lambda **k: diffusers.PNDMScheduler(skip_prk_steps=True, **k),
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpm++ singlestep": lambda **k: diffusers.DPMSolverSinglestepScheduler(solver_order=3, **k),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("family", ["sd", "sd_img2img", "sd_inpaint"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7])
def test_a_seam_never_splits_a_solver_step(kind, family, fraction):
    pipe = stitch(tiny.build(family), tiny.small(family), fraction=fraction)
    pipe.scheduler = SCHEDULERS[kind](**tiny.SD_BETAS)
    asked = watched(pipe)
    more = {} if family == "sd" else {"strength": 0.6}
    tiny.run(family, pipe, steps=10, **more)
    run = stitched(pipe).route.run
    by_step = {}
    for place, name in enumerate(asked, run.schedule.begin):
        by_step.setdefault(run.schedule.step_of(place), set()).add(name)
    assert len(asked) == run.schedule.end - run.schedule.begin
    assert all(len(names) == 1 for names in by_step.values())
    small = int(fraction * len(by_step) + 1e-9)
    assert [names.pop() for names in by_step.values()] == ["small"] * small + ["large"] * (len(by_step) - small)


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_the_fraction_is_of_the_steps_that_img2img_takes(strength):
    pipe, asked = sd(0.5)
    img2img = AutoPipelineForImage2Image.from_pipe(pipe)
    tiny.run("sd_img2img", img2img, steps=10, strength=strength)
    K = int(10 * strength)
    assert asked == ["small"] * (K // 2) + ["large"] * (K - K // 2)


def test_a_run_cut_short_by_denoising_end_is_shared_as_it_is():
    pipe = stitch(tiny.build("sdxl"), tiny.small("sdxl"), fraction=0.5)
    asked = watched(pipe)
    tiny.run("sdxl", pipe, steps=10, denoising_end=0.8)
    assert asked == ["small"] * 4 + ["large"] * 4
    asked.clear()
    tiny.run("sdxl", pipe, steps=10)
    assert asked == ["small"] * 5 + ["large"] * 5


# -- pipelines -------------------------------------------------------------------------------------------------------


def test_the_plan_may_change_between_calls_and_for_one():
    pipe, asked = sd(0.5)
    with replan(pipe, fraction=1.0):
        tiny.run("sd", pipe, steps=2)
    tiny.run("sd", pipe, steps=2)
    replan(pipe, fraction=0.0)
    tiny.run("sd", pipe, steps=2)
    assert asked == ["small", "small", "small", "large", "large", "large"]


def test_a_run_under_way_ends_as_it_began():
    pipe, asked = sd(0.5)

    def change(pipe, i, t, values):
        replan(pipe, fraction=1.0)
        return values

    tiny.run("sd", pipe, steps=4, callback_on_step_end=change)
    assert asked == ["small"] * 2 + ["large"] * 2
    asked.clear()
    tiny.run("sd", pipe, steps=4)
    assert asked == ["small"] * 4


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_callback_that_replaces_the_scheduler_is_refused(family):
    pipe = stitch(tiny.build(family), tiny.small(family), fraction=0.5)

    def swap(pipe, i, t, values):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        return values

    with pytest.raises(StitchError, match="scheduler was replaced"):
        tiny.run(family, pipe, steps=4, callback_on_step_end=swap)
    tiny.run(family, pipe, steps=4)


def test_an_interrupted_run_leaves_nothing_behind():
    pipe, asked = sd(0.5)
    plain = tiny.run("sd", pipe, steps=4)

    def stop(pipe, i, t, values):
        if i == 1:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        tiny.run("sd", pipe, steps=8, callback_on_step_end=stop)
    asked.clear()
    assert torch.equal(tiny.run("sd", pipe, steps=4), plain)
    assert asked == ["small"] * 2 + ["large"] * 2


def test_pipelines_that_share_the_network_are_each_followed():
    pipe, asked = sd(0.5)
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.scheduler = diffusers.EulerDiscreteScheduler(**tiny.SD_BETAS)
    tiny.run("sd", pipe, steps=4)
    tiny.run("sd_img2img", other, steps=10, strength=0.6)
    tiny.run("sd", pipe, steps=2)
    assert asked == ["small"] * 2 + ["large"] * 2 + ["small"] * 3 + ["large"] * 3 + ["small", "large"]
    inpaint = AutoPipelineForInpainting.from_pipe(pipe)
    asked.clear()
    tiny.run("sd_inpaint", inpaint, steps=4, strength=0.5)
    assert asked == ["small", "large"]


def test_a_pipeline_that_makes_a_scheduler_of_its_own_is_followed():
    pipe = stitch(tiny.build("ddim"), tiny.small("ddim"), fraction=0.5)
    asked = watched(pipe)
    other = diffusers.DDIMPipeline(**pipe.components)
    assert other.scheduler is not pipe.scheduler
    tiny.run("ddim", other, steps=4)
    assert asked == ["small"] * 2 + ["large"] * 2


@pytest.mark.parametrize("family", ["flux", "wan", "pixart_alpha"])
def test_runs_of_different_lengths_follow_each_other(family):
    pipe = stitch(tiny.build(family), tiny.small(family), fraction=0.5)
    for steps in (4, 2, 6):
        tiny.run(family, pipe, steps=steps)
        assert stitched(pipe).route.last.counts == {"small": steps // 2, "large": steps // 2}


def test_fluxs_timesteps_in_half_precision_still_tell_the_steps():
    pipe = stitch(tiny.build("flux"), tiny.small("flux"), fraction=0.5).to(dtype=torch.bfloat16)
    asked = watched(pipe)
    tiny.run("flux", pipe, steps=60)  # in bfloat16 many of the sixty are equal
    assert asked == ["small"] * 30 + ["large"] * 30


def test_wans_timesteps_per_patch_are_placed_by_the_scheduler():
    pipe = tiny.build("wan")
    pipe.register_to_config(expand_timesteps=True)
    stitch(pipe, tiny.small("wan"), fraction=0.5)
    asked = watched(pipe)
    tiny.run("wan", pipe, steps=4)
    assert asked == ["small"] * 4 + ["large"] * 4  # with and without the prompt


def test_sd3s_skipped_layers_ask_the_same_member_again():
    pipe = stitch(tiny.build("sd3"), tiny.small("sd3"), fraction=0.5)
    asked = watched(pipe)
    tiny.run(
        "sd3", pipe, steps=4, skip_guidance_layers=[0], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
    )
    assert asked == sorted(asked, reverse=True)
    assert asked.count("small") > 2
    assert asked.count("large") > 2


def test_a_timestep_outside_the_schedule_is_refused():
    pipe, _ = sd(0.5)
    pipe.scheduler.set_timesteps(4)
    x, text = torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 32)
    with pytest.raises(StitchError, match="333 is not among those"):
        pipe.unet(x, 333, text)
    with pytest.raises(StitchError, match="pass it"):
        pipe.unet(x)
    pipe.unet(x, pipe.scheduler.timesteps[0], text)


def test_without_a_pipeline_it_says_what_is_missing():
    from copy import deepcopy

    pipe, _ = sd(0.5)
    alone = deepcopy(pipe.unet)
    with pytest.raises(StitchError, match="does not know its pipeline"):
        alone(torch.zeros(1, 4, 16, 16), 1, torch.zeros(1, 4, 32))
