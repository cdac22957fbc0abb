"""Parity: every sampler against the diffusers scheduler of the same name, whole trajectories from the same noise.

Each pair is compared twice. `test_rule_…` compares the update rules in float64 to 1e-9: the scheduler is handed our
tables and kept from casting to float32, so that nothing but the rule can differ. `test_shipped_…` compares with the
scheduler as it comes, float32 tables and all, to 1e-5 of the largest magnitude.

All samplers here end at the clean image. So do schedulers with `final_sigmas_type="zero"` (DPM-Solver, Euler),
`set_alpha_to_one=True` (DDIM), and DDPM, Heun and the flow-matching ones always. With "sigma_min" or
`set_alpha_to_one=False` the last step stops short of it, and there is nothing to compare.
"""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

import hemstitch.sampling as sampling
from hemstitch.denoiser import NetDenoiser, Spec
from hemstitch.grid import timesteps
from hemstitch.process import Process
from hemstitch.samplers import DDIM, DDPM, Levels, init

# Of numpy 2, in the schedulers' own code.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CHANNELS, SIZE = 2, 6
RULE, SHIPPED = 1e-9, 1e-5

# ours -> diffusers' name, first and last beta
SCHEDULES = {
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),  # has no use for betas
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SPACINGS = ("leading", "trailing", "linspace")

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)


class Toy(nn.Module):
    """A fixed two-layer convolution that bends in x and waves in t. `rounding` is applied to t first."""

    def __init__(self, out=CHANNELS, rounding=None):
        super().__init__()
        draw = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.inner, self.outer = normal(8, CHANNELS, 3, 3) / 3, normal(out, 8, 3, 3) / 6
        self.frequency, self.phase = 3 * normal(8), normal(8)
        self.rounding = rounding

    def forward(self, x, t, y=None):
        t = t if self.rounding is None else self.rounding(t)
        wave = torch.sin(torch.outer(t.double() / 1000, self.frequency) + self.phase)[..., None, None]
        hidden = torch.conv2d(x, self.inner.to(x.dtype), padding=1)
        return torch.conv2d(torch.tanh(hidden + wave.to(x.dtype)), self.outer.to(x.dtype), padding=1)


class Uncast(torch.Tensor):
    """A float64 tensor that stays one: several schedulers cast their sample to float32 "to avoid precision issues"."""

    def to(self, *args, **kwargs):
        return self


def starting_noise(dtype):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(3, CHANNELS, SIZE, SIZE, generator=draw, dtype=torch.float64).to(dtype)


def build(kind, schedule, prediction, **options):
    name, first, last = SCHEDULES[schedule]
    if kind in (DDPMScheduler, DDIMScheduler):
        options["clip_sample"] = False
    return kind(
        beta_schedule=name,
        beta_start=first,
        beta_end=last,
        prediction_type=PREDICTIONS[prediction],
        **options,
    )


def exact(scheduler, process, steps):
    """Set the timesteps, with our tables in float64 in place of the scheduler's float32 ones."""
    scheduler.alphas_cumprod = process.alphas_cumprod()
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        square = scheduler.alphas_cumprod[scheduler.timesteps.long()]
        clean = torch.zeros(1, dtype=torch.float64)
        scheduler.sigmas = torch.cat([((1 - square) / square).sqrt(), clean])
    return scheduler


def reference(scheduler, net, noise, times=None):
    """The scheduler's own loop. times: what the network is told, where that is not the scheduler's own timesteps."""
    x = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
    if noise.dtype == torch.float64:
        x = x.as_subclass(Uncast)
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        told = t if times is None else times[i]
        x = scheduler.step(net(seen, told.expand(len(x))), t, x, return_dict=False)[0]
    return x.as_subclass(torch.Tensor)


def trajectory(scheduler, net, process, noise, sampler):
    """Ours, over the timesteps that the scheduler visits, from the noise as the scheduler scales it.

    On a linspace or trailing grid Euler and Heun start from sigma_T · noise, as if alpha_T were 0.
    """
    if isinstance(scheduler, EulerDiscreteScheduler | HeunDiscreteScheduler):
        scale = scheduler.init_noise_sigma / (scheduler.sigmas[0] ** 2 + 1) ** 0.5
        noise = noise * scale.to(noise.dtype)
    grid = torch.unique_consecutive(scheduler.timesteps)
    return generate(net, process, noise, grid, sampler)


def generate(net, process, noise, grid, sampler, steps=None):
    """Ours. grid: a name, with steps; or the times."""
    model = NetDenoiser(net, process, Spec(CHANNELS, SIZE))
    return sampling.generate(model, noise=noise, steps=steps or len(grid), grid=grid, sampler=sampler)


def stepwise(net, process, x, grid, sampler, noises):
    """Ours, with the noise of each step given."""
    model = NetDenoiser(net, process, Spec(CHANNELS, SIZE))
    state = init(x, Levels.of(process, timesteps(process, len(grid), grid)))
    for noise in noises:
        state = sampler.step(state, model(state.x, state.t), noise=noise)
    assert state.done.all()
    return state.x


@every_schedule
def test_tables(schedule):
    scheduler, process = build(DDPMScheduler, schedule, "eps"), Process(schedule)
    ours, theirs = process.alphas_cumprod(), torch.cumprod(1 - scheduler.betas.double(), 0)
    # Theirs come of float32 betas. What rounding cosine's last, 0.999, does to 1 - beta is a 1e-5 part of it.
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[-1], theirs[-1], rtol=2e-5, atol=0)


@cache
def scheduler_of(kind, spacing, T):
    return kind(num_train_timesteps=T, timestep_spacing=spacing)


class TestGrids:
    TRAIN = pytest.mark.parametrize("T", [50, 1000, 4000])
    SCHEDULERS = (DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler)
    USUAL = (1, 2, 3, 4, 5, 8, 10, 12, 15, 16, 18, 20, 25, 28, 30, 32, 40, 50)

    @staticmethod
    def both(kind, spacing, T, steps):
        scheduler = scheduler_of(kind, spacing, T)
        scheduler.set_timesteps(steps)
        ours = timesteps(Process(timesteps=T), steps, spacing)
        return ours, torch.unique_consecutive(scheduler.timesteps).double()

    @TRAIN
    @pytest.mark.parametrize("kind", SCHEDULERS)
    def test_leading(self, kind, T):
        for steps in range(1, T + 1, max(1, T // 100)):
            ours, theirs = self.both(kind, "leading", T, steps)
            assert torch.equal(ours, theirs), steps

    @pytest.mark.parametrize("kind", [*SCHEDULERS, DPMSolverMultistepScheduler])
    def test_trailing(self, kind):
        for steps in (*self.USUAL, 100, 125, 200, 250, 333, 500, 1000):
            ours, theirs = self.both(kind, "trailing", 1000, steps)
            assert torch.equal(ours, theirs), steps

    @pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
    def test_linspace(self, kind):
        # steps=1 is the one exception: theirs visits t = 0, where there is hardly any noise to remove; ours T-1.
        assert [float(g) for g in self.both(kind, "linspace", 1000, 1)] == [999, 0]
        for steps in (*self.USUAL[1:], 100, 125, 200, 250, 333, 500, 1000):
            ours, theirs = self.both(kind, "linspace", 1000, steps)
            assert torch.equal(ours, theirs), steps

    @TRAIN
    @pytest.mark.parametrize("spacing", ["trailing", "linspace"])
    def test_any_number_of_steps_agrees_but_for_ties(self, spacing, T):
        """Half-way times go up or down as floating point has it, on either side. Nothing else is a timestep off.

        And some trailing grids of diffusers have a step too many, by a rounding error: to t = -1, which indexes its
        tables from the end.
        """
        for steps in range(2, min(T, 1000) + 1):
            ours, theirs = self.both(DDPMScheduler, spacing, T, steps)
            theirs = theirs[theirs >= 0]
            i = torch.arange(steps)
            twice, divisor = (2 * T * i, steps) if spacing == "trailing" else (2 * (T - 1) * i, steps - 1)
            tie = (twice % divisor == 0) & (twice // divisor % 2 == 1)
            assert torch.equal(ours[~tie], theirs[~tie]), steps
            assert (ours - theirs).abs().max() <= 1, steps

    @pytest.mark.parametrize("kind", [EulerDiscreteScheduler, HeunDiscreteScheduler])
    def test_euler_and_heun_do_not_round_linspace(self, kind):
        """Between timesteps they interpolate sigma, we log-SNR: only whole timesteps are the same noise level."""
        ours, theirs = self.both(kind, "linspace", 1000, 10)  # a stride of 111
        assert torch.equal(ours, theirs)
        ours, theirs = self.both(kind, "linspace", 1000, 20)
        assert 0 < (ours - theirs).abs().max() <= 0.5

    @pytest.mark.parametrize("spacing", ["leading", "linspace"])
    def test_dpm_solver_counts_its_end_as_a_step(self, spacing):
        """Its grids of K steps are those of K+1 without the last, t = 0: they end higher, then step to clean."""
        _, theirs = self.both(DPMSolverMultistepScheduler, spacing, 1000, 20)
        ours = timesteps(Process(), 21, spacing)
        assert ours[-1] == 0
        assert torch.equal(ours[:-1], theirs)

    def test_flow_matching_with_the_sigmas_that_pipelines_pass_is_trailing(self):
        for steps in self.USUAL:
            scheduler = FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
            ours = timesteps(Process("flow", "flow"), steps, "trailing")
            torch.testing.assert_close(scheduler.sigmas[:-1].double(), ours, rtol=1e-7, atol=0)


# Deterministic samplers: scheduler, our sampler. Ten steps make a linspace of whole timesteps.
# DDIM's linspace is missing: it takes t - ⌊T/K⌋ for the timestep after t, which on that grid it is for K = T alone.
# For the same reason trailing agrees only when K divides T.
PAIRS = [
    (DDIMScheduler, "ddim"),
    (DPMSolverMultistepScheduler, "dpmpp_2m"),
    (EulerDiscreteScheduler, "euler"),
    (HeunDiscreteScheduler, "heun"),
]
CASES = [
    pytest.param(kind, sampler, spacing, id=f"{sampler}-{spacing}")
    for kind, sampler in PAIRS
    for spacing in SPACINGS
    if (sampler, spacing) != ("ddim", "linspace")
]


@every_schedule
@every_prediction
@pytest.mark.parametrize(("kind", "sampler", "spacing"), CASES)
def test_rule(kind, sampler, spacing, schedule, prediction, assert_close):
    process, net, noise = Process(schedule, prediction), Toy(), starting_noise(torch.float64)
    scheduler = exact(build(kind, schedule, prediction, timestep_spacing=spacing), process, 10)
    theirs = reference(scheduler, net, noise)
    ours = trajectory(scheduler, net, process, noise, sampler)
    assert_close(ours, theirs, RULE)


def lost_in_float32(sampler, spacing, schedule, prediction):
    """Whether the scheduler, as shipped, is itself further than 1e-5 from the rule that `test_rule` holds it to.

    Euler and Heun keep x / alpha in float32. Cosine's x_T / alpha_T is 2e4, whose rounding alone is 1e-3, where x_T is
    what remains of it (predictions of x_0 and v; those of eps end as large as they begin).
    Heun averages (x - x_0) / sigma, which at t = 0 shows how 1 - alphas_cumprod came out in float32: 2e-4 off
    (linear), 5e-4 (cosine).
    """
    from_the_top = schedule == "cosine" and spacing != "leading"
    if sampler == "euler":
        return from_the_top and prediction != "eps"
    if sampler == "heun":
        return from_the_top or (prediction == "x0" and spacing != "trailing")
    return False


@every_schedule
@every_prediction
@pytest.mark.parametrize(("kind", "sampler", "spacing"), CASES)
def test_shipped(kind, sampler, spacing, schedule, prediction, assert_close):
    process, net, noise = Process(schedule, prediction), Toy(), starting_noise(torch.float32)
    scheduler = build(kind, schedule, prediction, timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    theirs = reference(scheduler, net, noise)
    ours = trajectory(scheduler, net, process, noise, sampler)
    assert theirs.dtype == ours.dtype == torch.float32
    if not lost_in_float32(sampler, spacing, schedule, prediction):
        assert_close(ours, theirs, SHIPPED)
        return
    true = trajectory(scheduler, net, process, noise.double(), sampler)
    gap = (theirs - true).abs().max() / true.abs().max()
    assert gap > SHIPPED, "no longer lost: take this case out of lost_in_float32"
    # Ours in float32 is near the rule, if not to 1e-5 where Heun weighs a change of eps by sigma_T / alpha_T.
    assert_close(ours.double(), true, min(1e-4, float(gap)))


class TestDDIM:
    @every_schedule
    def test_rule_on_linspace_where_it_visits_every_timestep(self, schedule, assert_close):
        betas = None if schedule == "cosine" else SCHEDULES[schedule][1:]
        process = Process(schedule, timesteps=50, betas=betas)
        options = {"num_train_timesteps": 50, "timestep_spacing": "linspace"}
        scheduler = exact(build(DDIMScheduler, schedule, "eps", **options), process, 50)
        net, noise = Toy(), starting_noise(torch.float64)
        theirs = reference(scheduler, net, noise)
        assert_close(generate(net, process, noise, "linspace", "ddim", 50), theirs, RULE)

    def test_rule_with_an_offset(self, assert_close):
        """The grid of Stable Diffusion: leading, one up. It is none of ours by name, and goes in as times."""
        process, net, noise = Process("scaled_linear"), Toy(), starting_noise(torch.float64)
        scheduler = exact(build(DDIMScheduler, "scaled_linear", "eps", steps_offset=1), process, 7)
        assert scheduler.timesteps[-1] == 1
        theirs = reference(scheduler, net, noise)
        assert_close(trajectory(scheduler, net, process, noise, "ddim"), theirs, RULE)

    @every_schedule
    @every_prediction
    @pytest.mark.parametrize("spacing", ["leading", "trailing"])
    @pytest.mark.parametrize("eta", [0.7, 1.0])
    def test_rule_with_noise(self, eta, spacing, schedule, prediction, assert_close):
        process, net, x = Process(schedule, prediction), Toy(), starting_noise(torch.float64)
        scheduler = exact(build(DDIMScheduler, schedule, prediction, timestep_spacing=spacing), process, 10)
        draw = torch.Generator().manual_seed(2)
        noises = [torch.randn(x.shape, generator=draw, dtype=x.dtype) for _ in range(10)]
        ours = stepwise(net, process, x, scheduler.timesteps, DDIM(eta), noises)
        for t, noise in zip(scheduler.timesteps, noises, strict=True):
            output = net(x, t.expand(len(x)))
            x = scheduler.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
        assert_close(ours, x, RULE)


class TestDDPM:
    """The noise is drawn by the scheduler and, from the same generator, again for us."""

    @staticmethod
    def both(scheduler, process, net, sampler):
        x, shape = starting_noise(torch.float64), (3, CHANNELS, SIZE, SIZE)
        again = torch.Generator().manual_seed(2)
        noises = [randn_tensor(shape, generator=again, dtype=x.dtype) for _ in scheduler.timesteps]
        ours = stepwise(net, process, x, scheduler.timesteps, sampler, noises)
        draw = torch.Generator().manual_seed(2)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.expand(len(x))), t, x, generator=draw).prev_sample
        return ours, x

    @every_schedule
    @every_prediction
    @pytest.mark.parametrize("spacing", ["leading", "linspace"])
    @pytest.mark.parametrize("variance", ["small", "large", "learned"])
    def test_rule(self, variance, spacing, schedule, prediction, assert_close):
        learned = variance == "learned"
        process, net = Process(schedule, prediction, learned), Toy(CHANNELS * (1 + learned))
        name = "learned_range" if learned else f"fixed_{variance}"
        options = {"variance_type": name, "timestep_spacing": spacing}
        scheduler = exact(build(DDPMScheduler, schedule, prediction, **options), process, 10)
        assert_close(*self.both(scheduler, process, net, DDPM(variance)), RULE)

    @every_schedule
    def test_rule_where_the_grid_ends_above_zero(self, schedule, assert_close):
        """A trailing grid does. With the small variance, zero there, both then give the mean.

        With the large one, and in part with a learned one, the scheduler noises the clean image itself: it leaves the
        noise out at t = 0 only, where we leave it out of the step to clean.
        """
        process, net = Process(schedule, "v"), Toy()
        scheduler = exact(build(DDPMScheduler, schedule, "v", timestep_spacing="trailing"), process, 7)
        assert scheduler.timesteps[-1] > 0
        assert_close(*self.both(scheduler, process, net, DDPM("small")), RULE)

    def test_rule_on_the_released_grid(self, assert_close):
        process, net = Process(learned_variance=True), Toy(2 * CHANNELS)
        scheduler = build(DDPMScheduler, "linear", "eps", variance_type="learned_range")
        scheduler.alphas_cumprod = process.alphas_cumprod()
        scheduler.set_timesteps(timesteps=timesteps(process, 25, "released").int().tolist())
        assert_close(*self.both(scheduler, process, net, DDPM()), RULE)

    def test_shipped(self, assert_close):
        """Its tables in float32, the sample in float64."""
        process, net = Process(learned_variance=True), Toy(2 * CHANNELS)
        scheduler = build(DDPMScheduler, "linear", "eps", variance_type="learned_range")
        scheduler.set_timesteps(10)
        assert_close(*self.both(scheduler, process, net, DDPM()), SHIPPED)


class TestDPMSolver:
    @every_schedule
    @pytest.mark.parametrize("steps", [1, 2, 14, 15, 40])
    def test_rule_at_any_length(self, steps, schedule, assert_close):
        """The last step is first order: up to 14 steps by `lower_order_final`, beyond because it ends clean."""
        process, net, noise = Process(schedule, "v"), Toy(), starting_noise(torch.float64)
        scheduler = build(DPMSolverMultistepScheduler, schedule, "v", timestep_spacing="trailing")
        theirs = reference(exact(scheduler, process, steps), net, noise)
        assert_close(trajectory(scheduler, net, process, noise, "dpmpp_2m"), theirs, RULE)

    @pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
    @every_prediction
    def test_uniform_log_snr(self, schedule, prediction, assert_close):
        """Its `use_lu_lambdas` is our "logsnr". It tells the network whole timesteps, so here both networks round.

        The scheduler gets our tables, since all its levels hang on the last one, 1 - alphas_cumprod at t = 0, which is
        2e-4 off in float32; its sigmas stay float32. Not for cosine, whose timesteps it truncates: 999 may become 998.
        """
        process, net, noise = Process(schedule, prediction), Toy(rounding=torch.round), starting_noise(torch.float32)
        scheduler = build(DPMSolverMultistepScheduler, schedule, prediction, use_lu_lambdas=True)
        scheduler.alphas_cumprod = process.alphas_cumprod()
        scheduler.set_timesteps(12)
        theirs = reference(scheduler, net, noise)
        assert_close(generate(net, process, noise, "logsnr", "dpmpp_2m", 12), theirs, SHIPPED)

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_rule_on_the_flow_process(self, shift, assert_close):
        """The scheduler truncates its timesteps to integers; both networks are told T·sigma itself."""
        process, net, noise = Process("flow", "flow"), Toy(), starting_noise(torch.float64)
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction"
        )
        scheduler.set_timesteps(12)
        scheduler.sigmas = scheduler.sigmas.double()
        grid = scheduler.sigmas[:-1]
        theirs = reference(scheduler, net, noise, times=process.network_time(grid))
        assert_close(generate(net, process, noise, grid, "dpmpp_2m"), theirs, RULE)


FLOW = [
    pytest.param(FlowMatchEulerDiscreteScheduler, "euler", id="euler"),
    pytest.param(FlowMatchEulerDiscreteScheduler, "ddim", id="ddim"),
    pytest.param(FlowMatchHeunDiscreteScheduler, "heun", id="heun"),
]


@pytest.mark.parametrize(("kind", "sampler"), FLOW)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, RULE), (torch.float32, SHIPPED)])
def test_flow_matching(kind, sampler, shift, dtype, tolerance, assert_close):
    """The scheduler's sigma is our t. Its grid, T·sigma from T to 1, is none of ours by name."""
    process, net, noise = Process("flow", "flow"), Toy(), starting_noise(dtype)
    scheduler = kind(shift=shift)
    scheduler.set_timesteps(12)
    scheduler.sigmas = scheduler.sigmas.to(dtype)
    grid = torch.unique_consecutive(scheduler.sigmas)[:-1]
    assert len(grid) == 12
    theirs = reference(scheduler, net, noise)
    assert_close(generate(net, process, noise, grid, sampler), theirs, tolerance)
