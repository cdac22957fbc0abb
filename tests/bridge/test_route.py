"""Which member a call goes to: fractions, rules and plans, over what schedulers and pipelines do with their steps."""

import diffusers
import pytest
import tiny
import torch
from calls import watched
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, StableDiffusionImg2ImgPipeline

from hemstitch import Plan
from hemstitch.bridge import replan, stitch, stitched
from hemstitch.bridge.route import Choice
from hemstitch.errors import StitchError

NAMES = ("small", "large")


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
        ({"fraction": True}, "lies in 0..1"),
        ({"fraction": torch.tensor(0.5)}, "lies in 0..1"),
        ({"plan": ["small", "large"]}, "a plan is a hemstitch.Plan"),
        ({"fraction": 0.4, "processes": {"small": "v"}}, "a process is a hemstitch.Process"),
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
    assert choice.fractions == (("a", 0.25), ("b", 0.0), ("c", 0.75))
    assert choice == Choice.from_data(("a", "b", "c"), choice.to_data())
    assert Choice.of(NAMES, {"small": 0.4}, None).fractions == (("small", 0.4), ("large", 0.6))


def test_fractions_are_in_the_order_of_the_members_whatever_that_of_the_mapping():
    pipe, asked = sd({"large": 0.75, "small": 0.25})
    tiny.run("sd", pipe, steps=4)
    assert asked == ["small"] + ["large"] * 3


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    for fraction in (0.4, 0.7, 0.1):
        assert Choice.of(NAMES, np.float32(fraction), None) == Choice.of(NAMES, fraction, None)
    thirds = Choice.of(("a", "b", "c"), (1 / 3, 1 / 3), None)
    assert Plan.fractions(dict(thirds.fractions), 9).counts == {"a": 3, "b": 3, "c": 3}


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
    replan(pipe, fraction=0.5, rule="step")
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
@pytest.mark.parametrize(("family", "fraction"), [("sd", 0.5), ("sd_img2img", 0.2), ("sd_inpaint", 0.7)])
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


def test_a_changed_fraction_is_read_by_the_rule_of_before():
    pipe, _ = sd(0.5, rule="timestep")
    replan(pipe, fraction=0.3)
    assert stitched(pipe).route.choice.rule == "timestep"
    with replan(pipe, plan=Plan.explicit(["small"])):
        assert stitched(pipe).route.choice.rule == "step"
    assert stitched(pipe).route.choice.rule == "timestep"


def test_a_refused_change_leaves_the_stitch_as_it_was():
    pipe, _ = sd(0.5)
    model, choice = pipe.unet, pipe.unet.route.choice
    quantised = tiny.small("sd").to(torch.bfloat16)
    quantised.is_quantized = True
    for change in (
        lambda: stitch(pipe, tiny.thin("sd"), fraction=1.4),
        lambda: stitch(pipe, quantised, fraction=0.4),
        lambda: replan(pipe, fraction=7),
    ):
        with pytest.raises(StitchError):
            change()
        assert pipe.unet is model
        assert model.route.choice is choice


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


@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "dit"])
@pytest.mark.parametrize("kind", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler, None])
def test_a_run_that_was_broken_off_has_no_part_in_those_of_other_pipelines(family, kind):
    import inspect

    first = stitch(tiny.build(family), tiny.small(family), fraction=0.5)
    if family in ("sd", "dit") and kind:
        first.scheduler = kind(**tiny.SD_BETAS)
    more = {"requires_safety_checker": False} if family == "sd" else {}
    taken = inspect.signature(type(first).__init__).parameters
    scheduler = type(first.scheduler).from_config(first.scheduler.config)
    parts = {k: v for k, v in first.components.items() if k in taken}
    other = type(first)(**{**parts, "scheduler": scheduler}, **more)
    other.set_progress_bar_config(disable=True)
    asked, left = watched(first), []

    class EnoughError(Exception):
        pass

    def stop(*_):
        left.append(1)
        if len(left) == 3:
            raise EnoughError

    handle = stitched(first).own.register_forward_hook(stop)
    with pytest.raises(EnoughError):
        tiny.run(family, first, steps=8)
    handle.remove()
    for pipe in (other, first, other):
        asked.clear()
        tiny.run(family, pipe, steps=6)
        assert asked == ["small"] * 3 + ["large"] * 3
    replan(other, fraction=0)
    asked.clear()
    tiny.run(family, other, steps=4)
    assert asked == ["large"] * 4


def test_a_pipeline_called_within_another_run_of_the_same_network():
    first = stitch(tiny.build("flux"), tiny.small("flux"), fraction=0.5)
    scheduler = type(first.scheduler).from_config(first.scheduler.config)
    other = type(first)(**{**first.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    plain, asked, inner = tiny.run("flux", first, steps=4), watched(first), []

    def preview(pipe, i, t, values):
        before = len(asked)
        tiny.run("flux", other, steps=2)
        inner.append(asked[before:])
        del asked[before:]
        return values

    assert torch.equal(tiny.run("flux", first, steps=4, callback_on_step_end=preview), plain)
    assert asked == ["small"] * 2 + ["large"] * 2
    assert inner == [["small", "large"]] * 4


def test_one_network_called_from_two_threads():
    import threading

    first = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5)
    pipes = [first]
    for _ in range(2):
        scheduler = type(first.scheduler).from_config(first.scheduler.config)
        pipes.append(type(first)(**{**first.components, "scheduler": scheduler}, requires_safety_checker=False))
        pipes[-1].set_progress_bar_config(disable=True)
    expected = [tiny.run("sd", pipe, steps=6, seed=i) for i, pipe in enumerate(pipes)]
    found = [None] * len(pipes)

    def work(i):
        torch.set_num_threads(1)
        for _ in range(3):
            found[i] = tiny.run("sd", pipes[i], steps=6, seed=i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pipes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_schedule_that_is_gone_through_again_is_a_new_run():
    pipe, asked = sd(0.5)
    pipe.scheduler.set_timesteps(4)
    x, text = torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 32)
    for fraction in (0.5, 0.0, 1.0):
        replan(pipe, fraction=fraction)
        for t in pipe.scheduler.timesteps:
            pipe.unet(x, t, text)
    assert asked == ["small"] * 2 + ["large"] * 6 + ["small"] * 4


def test_a_pipeline_whose_time_runs_up():
    """As Lumina: the network is told 1 - t/1000, and the scheduler not where it begins."""
    pipe = tiny.build("flux")
    stitch(pipe, tiny.small("flux"), fraction=0.5)
    net, asked = pipe.transformer, watched(pipe)
    call = net.forward
    net.forward = lambda *a, timestep, **k: call(*a, timestep=1 - timestep, **k)
    pipe.scheduler.set_begin_index = lambda begin: None
    tiny.run("flux", pipe, steps=4)
    assert asked == ["small"] * 2 + ["large"] * 2


def test_the_schedulers_of_runs_gone_by_are_let_go():
    import gc
    import weakref

    pipe, _ = sd(0.5)
    seen = []
    for _ in range(4):
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**tiny.SD_BETAS)
        seen.append(weakref.ref(pipe.scheduler))
        tiny.run("sd", pipe, steps=2)
    gc.collect()
    assert [ref() is not None for ref in seen] == [False, False, False, True]


def test_an_adapters_run_cut_short_is_shared_as_it_is():
    pipe = stitch(tiny.build("sdxl_adapter"), tiny.thin("sdxl_adapter"), fraction=0.5)
    asked = watched(pipe)
    tiny.run("sdxl_adapter", pipe, steps=8, denoising_end=0.5)
    assert asked == ["small"] * 2 + ["large"] * 2


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
