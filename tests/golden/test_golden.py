"""Parity with the released implementations, on their own outputs."""

import pytest
import torch

import hemstitch.sampling as sampling
from hemstitch.denoiser import Guided
from hemstitch.grid import timesteps
from hemstitch.models import NetConfig, layers
from hemstitch.models.dtr import sliding_window
from hemstitch.models.switch_dit import switch_prior
from hemstitch.process import Process
from hemstitch.recipe import TrainRecipe
from hemstitch.samplers import Levels, init, sampler_of
from hemstitch.stitch.plan import Plan
from hemstitch.stitch.stitched import Stitched
from hemstitch.train.objective import Objective
from hemstitch.train.weighting import WEIGHTINGS

NETS = ["dit", "small", "dtr", "switch"]
ROWS = [0, 1, 100, 250, 500, 750, 900, 999]
PROCESS = Process("linear", "eps", learned_variance=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_alphas(golden, schedule):
    expected = golden[f"alphas_cumprod.{schedule}"]
    torch.testing.assert_close(Process(schedule).alphas_cumprod(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [10, 25])
def test_grid(golden, steps):
    assert timesteps(PROCESS, steps).flip(0).long().tolist() == golden[f"grid{steps}"].tolist()


@pytest.mark.parametrize("name", NETS)
def test_positions(golden, assert_close, name):
    expected = golden[f"{name}/pos_embed"]
    assert_close(layers.sincos_positions(expected.shape[-1], 4)[None], expected)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_network(golden, golden_nets, assert_close, name):
    assert_close(golden_nets[name](golden["x"], golden["t"], golden["y"]), golden[f"{name}.out"])


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_guidance(golden, golden_denoisers, assert_close, name):
    """Rows 0 and 1 of the golden output are the labelled ones, 2 and 3 the null ones with the same guided eps."""
    channels = 3 if name in ("dit", "small") else None
    guided = Guided(golden_denoisers[name], 4.0, channels)
    prediction = guided(golden["x"][:2], torch.full((2,), 500.0), golden["y"][:2])
    expected = golden[f"{name}.cfg4"]
    assert_close(prediction.eps, expected[:2, :4])
    assert_close(2 * prediction.variance - 1, expected[:2, 4:])
    assert_close(prediction.eps[:, : channels or 4], expected[2:, : channels or 4])


def test_mask_and_prior(golden):
    assert torch.equal(sliding_window(1000, 32, 4.0, 0.8)[ROWS], golden["dtr.mask"])
    assert torch.equal(switch_prior(NetConfig("switch_dit", depth=3))[ROWS], golden["switch.prior"])


@torch.no_grad()
def test_prior_loss(golden, golden_nets):
    """The released matching permutes ties at random: any of its draws is right."""
    loss = float(golden_nets["switch"].prior_loss(golden["t"]))
    draws = golden["switch.prior_loss_20_draws"]
    assert float(draws.min()) - 1e-6 <= loss <= float(draws.max()) + 1e-6


def _sample(model, golden, steps, sampler, **options):
    return sampling.generate(
        model,
        golden["yz"],
        noise=golden["z"],
        steps=steps,
        sampler=sampler,
        guidance=1.5,
        guidance_channels=3,
        **options,
    )


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim(golden, golden_denoisers, assert_close, steps):
    samples = _sample(golden_denoisers["dit"], golden, steps, "ddim")
    assert_close(samples, golden[f"sample.dit.ddim{steps}"])


@torch.no_grad()
def test_ddpm_with_the_recorded_noise(golden, golden_denoisers, assert_close):
    denoiser = Guided(golden_denoisers["dit"], 1.5, 3)
    state = init(golden["z"], Levels.of(PROCESS, timesteps(PROCESS, 10)))
    for noise in golden["noise.ddpm10"]:
        state = sampler_of("ddpm").step(state, denoiser(state.x, state.t, golden["yz"]), noise)
    assert_close(state.x, golden["sample.dit.ddpm10"])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.4, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("steps", [10, 25])
def test_stitched(golden, golden_denoisers, assert_close, steps, fraction):
    plan = Plan.released("timestep", {"small": fraction, "dit": 1 - fraction}, timesteps(PROCESS, steps).tolist())
    model = Stitched({name: golden_denoisers[name] for name in ("small", "dit")}, plan)
    assert_close(_sample(model, golden, steps, "ddim"), golden[f"stitch.ddim{steps}.{fraction}"])


def test_stitched_three(golden, golden_denoisers, assert_close):
    """In the released code each member guides in its own way: the DiTs 3 channels, DTR all 4."""
    fractions = {"small": 0.3, "dit": 0.4, "dtr": 0.3}
    plan = Plan.released("timestep", fractions, timesteps(PROCESS, 10).tolist())
    channels = {"small": 3, "dit": 3, "dtr": None}
    model = Stitched({name: Guided(golden_denoisers[name], 1.5, channels[name]) for name in fractions}, plan)
    samples = sampling.generate(model, golden["yz"], noise=golden["z"], steps=10)
    assert_close(samples, golden["stitch3.ddim10.0.3_0.4_0.3"])


@torch.no_grad()
def test_hybrid_loss(golden, golden_nets, assert_close):
    losses = Objective(golden_nets["dit"], PROCESS)(golden["x"], golden["tt"], golden["eps"], golden["y"])
    assert_close(losses.mse, golden["loss.mse"])
    assert_close(losses.vb, golden["loss.vb"])
    assert_close(losses.noise, golden["loss.loss"])


@pytest.mark.parametrize(("weighting", "name"), [("constant", "constant"), ("min_snr", "min_snr_5")])
@torch.no_grad()
def test_switch_loss(golden, golden_nets, assert_close, weighting, name):
    objective = Objective(golden_nets["switch"], PROCESS, WEIGHTINGS[weighting](TrainRecipe()))
    losses = objective(golden["x"], golden["tt"], golden["eps"], golden["y"])
    assert_close(losses.mse, golden[f"switchloss.{name}.mse"])
    assert_close(losses.noise, golden[f"switchloss.{name}.loss"])
