"""Solver steps and places, against what the schedulers themselves know before each call."""

import diffusers
import pytest
import torch

from hemstitch.bridge.steps import place_of, schedule_of, view_of
from hemstitch.errors import StitchError

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SINGLESTEP = dict(lower_order_final=True, **BETAS)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
KINDS = {
    "ddim": lambda: diffusers.DDIMScheduler(**BETAS),
    "ddpm": lambda: diffusers.DDPMScheduler(**BETAS),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS),
    "euler karras": lambda: diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, **BETAS),
    "euler ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**BETAS),
    "kdpm2": lambda: diffusers.KDPM2DiscreteScheduler(**BETAS),
    "kdpm2 ancestral": lambda: diffusers.KDPM2AncestralDiscreteScheduler(**BETAS),
    "lms": lambda: diffusers.LMSDiscreteScheduler(**BETAS),
    "pndm": lambda: diffusers.PNDMScheduler(**BETAS),
    "plms": lambda: diffusers.PNDMScheduler(skip_prk_steps=True, **BETAS),
    "dpm++ 2m": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS),
    "dpm++ singlestep 2": lambda: diffusers.DPMSolverSinglestepScheduler(solver_order=2, **SINGLESTEP),
    "dpm++ singlestep 3": lambda: diffusers.DPMSolverSinglestepScheduler(solver_order=3, **SINGLESTEP),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**BETAS),
    "unipc flow": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
    "deis": lambda: diffusers.DEISMultistepScheduler(**BETAS),
    "lcm": lambda: diffusers.LCMScheduler(**BETAS),
    "tcd": lambda: diffusers.TCDScheduler(**BETAS),
    "flow euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(),
    "ipndm": lambda: diffusers.IPNDMScheduler(),
    "edm euler": lambda: diffusers.EDMEulerScheduler(),
}


def begins_a_step(scheduler, first):
    """What a scheduler's own state says just before a call: whether a solver step begins here."""
    if hasattr(scheduler, "state_in_first_order"):
        return bool(scheduler.state_in_first_order)
    if isinstance(scheduler, diffusers.PNDMScheduler):
        runge_kutta = 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)
        if scheduler.counter < runge_kutta:
            return scheduler.counter % 4 == 0
        return not (scheduler.counter == 1 and scheduler.cur_sample is not None)
    if getattr(scheduler, "order_list", None):
        return first or scheduler.order_list[scheduler.step_index] == 1
    return True


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 13])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("middle", [False, True], ids=["whole", "img2img"])
def test_steps_and_places_are_those_of_the_scheduler_itself(kind, steps, middle):
    scheduler = KINDS[kind]()
    if kind == "pndm" and steps < 4:
        with pytest.raises(ValueError, match=r"\d"):  # with Runge-Kutta it takes no fewer
            scheduler.set_timesteps(steps)
        return
    scheduler.set_timesteps(steps)
    begin = steps // 2 * scheduler.order if middle else 0
    if begin >= len(scheduler.timesteps):
        begin = 0
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    schedule = schedule_of(scheduler, begin)
    x = torch.ones(1, 1, 2, 2)
    starts = []
    for place, t in enumerate(scheduler.timesteps[begin:], begin):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        assert place_of(scheduler, t) == place
        assert place_of(scheduler, t.expand(3)) == place
        if begins_a_step(scheduler, place == begin):
            starts.append(place)
        x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
        assert schedule.step_of(place) == len(starts) - 1
    assert list(schedule.starts) == starts
    assert schedule.steps <= steps + 1
    assert schedule.times == [float(scheduler.timesteps[start]) for start in starts]


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "plms"])
def test_without_an_index_a_timestep_that_is_no_view_is_placed_by_value(kind):
    scheduler = KINDS[kind]()
    scheduler.set_timesteps(7)
    times = scheduler.timesteps.tolist()
    for t in scheduler.timesteps:
        assert place_of(scheduler, t.clone()) == times.index(int(t))
        assert place_of(scheduler, t.clone().expand(3)) == times.index(int(t))
        assert place_of(scheduler, int(t)) == times.index(int(t))


@pytest.mark.parametrize("kind", ["flow euler", "unipc flow", "heun", "euler"])
def test_with_an_index_it_is_placed_by_that_whatever_is_passed(kind):
    scheduler = KINDS[kind]()
    scheduler.set_timesteps(7)
    scheduler.set_begin_index(2)
    x = torch.ones(1, 1, 2, 2)
    for place, t in enumerate(scheduler.timesteps[2:], 2):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        assert place_of(scheduler, 1 - t / 1000) == place  # as Lumina passes it
        x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]


def test_before_its_first_step_an_index_is_believed_for_the_first_timestep_only():
    """A pipeline that steps copies of its scheduler leaves its own at the beginning for ever."""
    scheduler = KINDS["flow euler"]()
    scheduler.set_timesteps(6)
    times = scheduler.timesteps
    for guise in (times[0].clone(), times[0] / 1000, 1 - times[0] / 1000, (times[0] / 1000).bfloat16()):
        assert place_of(scheduler, guise) == 0
    assert [place_of(scheduler, t.clone()) for t in times[1:]] == [None] * 5


def test_a_timestep_rounded_to_half_precision_is_found_by_its_value():
    scheduler = KINDS["ddpm"]()
    scheduler.set_timesteps(30)
    times = scheduler.timesteps
    rounded = times.to(torch.bfloat16)
    for t in rounded:
        assert rounded[place_of(scheduler, t)] == t


def test_a_last_timestep_of_one_is_not_taken_for_the_first_divided():
    scheduler = KINDS["flow euler"]()
    scheduler.set_timesteps(8)
    scheduler.timesteps[-1] = 1.0
    assert place_of(scheduler, scheduler.timesteps[0] / 1000) == 0


def test_a_view_is_of_its_own_schedule():
    base = torch.arange(20.0)
    schedule, other = base[4:14:2], torch.arange(20.0)
    assert [view_of(schedule, t) for t in schedule] == [0, 1, 2, 3, 4]
    assert view_of(schedule, schedule[3].expand(7)) == 3
    assert view_of(schedule, other[4]) is None
    assert view_of(schedule, base.to(torch.int64)[4]) is None
    assert view_of(torch.zeros(2, dtype=torch.int32).view(torch.float32), torch.zeros(0)) is None
    assert view_of(schedule, 6.0) is None
    assert view_of(base.view(torch.int32), base[3]) is None  # another dtype, whatever the memory


def test_heuns_two_calls_at_one_timestep_belong_to_different_steps():
    scheduler = KINDS["heun"]()
    scheduler.set_timesteps(5)
    t = scheduler.timesteps
    assert t[1] == t[2]
    schedule = schedule_of(scheduler)
    assert [schedule.step_of(place_of(scheduler, t[i])) for i in (0, 1, 2, 3)] == [0, 0, 1, 1]


def test_a_foreign_timestep_has_no_place():
    scheduler = KINDS["ddim"]()
    scheduler.set_timesteps(4)
    assert place_of(scheduler, 333) is None


def test_a_run_begins_within_its_schedule():
    scheduler = KINDS["ddim"]()
    scheduler.set_timesteps(4)
    with pytest.raises(StitchError, match="begins at one of the 4"):
        schedule_of(scheduler, 4)
