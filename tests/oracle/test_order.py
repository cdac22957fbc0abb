"""Oracle: on a Gaussian mixture, whose best denoiser is known, every sampler converges at its declared order."""

import itertools
import math

import pytest
import torch

import hemstitch.sampling as sampling
from hemstitch.data.mixture import Mixture, MixtureDenoiser
from hemstitch.process import Process
from hemstitch.samplers import DDIM, SAMPLERS, DPMpp2M, Heun
from hemstitch.stitch.plan import Plan
from hemstitch.stitch.stitched import Stitched

LINEAR, FLOW = Process("linear"), Process("flow", "flow")
COSINE, SCALED = Process("cosine", "v"), Process("scaled_linear", "x0")
MIXTURE = Mixture.random(3, 1, 2, seed=1)
OTHER = Mixture.random(3, 1, 2, seed=2)
DETERMINISTIC = [name for name in SAMPLERS if name != "ddpm"]


def solve(model, sampler, intervals, process):
    """The sample after a grid uniform in log-SNR with so many intervals (and the step to clean, common to all)."""
    low, high = -5.0, 6.0
    times = process.time_of(torch.linspace(low, high, intervals + 1, dtype=torch.float64))
    noise = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sampling.generate(model, noise=noise, steps=intervals + 1, grid=times, sampler=sampler)


def measured_order(make_model, sampler, process, counts=(64, 128, 256)):
    """log2 of how much successive halvings of the step change the result (Richardson)."""
    ends = [solve(make_model(n), sampler, n, process) for n in counts]
    coarse, fine = (float((a - b).norm()) for a, b in itertools.pairwise(ends))
    return math.log2(coarse / fine)


@pytest.mark.parametrize("process", [LINEAR, COSINE, SCALED, FLOW], ids=lambda p: p.schedule)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order(name, process):
    order = measured_order(lambda n: MixtureDenoiser(MIXTURE, process), name, process)
    assert order == pytest.approx(SAMPLERS[name].order, abs=0.15)


@pytest.mark.parametrize("process", [LINEAR, FLOW], ids=lambda p: p.schedule)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_across_a_seam_between_networks(name, process):
    """The members disagree: the right-hand side jumps at the seam, which lies at the same log-SNR on every grid."""

    def model(intervals):
        members = {"a": MixtureDenoiser(OTHER, process), "b": MixtureDenoiser(MIXTURE, process)}
        return Stitched(members, Plan.steps_each({"a": intervals // 2, "b": intervals // 2 + 1}))

    assert measured_order(model, name, process) == pytest.approx(SAMPLERS[name].order, abs=0.15)


@pytest.mark.parametrize(("first", "second"), [(FLOW, LINEAR), (LINEAR, FLOW), (COSINE, SCALED)])
@pytest.mark.parametrize("sampler", [DDIM(), DPMpp2M(), Heun()], ids=lambda s: type(s).__name__)
def test_order_across_processes(sampler, first, second):
    def model(intervals):
        members = {"a": MixtureDenoiser(MIXTURE, first), "b": MixtureDenoiser(MIXTURE, second)}
        return Stitched(members, Plan.steps_each({"a": intervals // 2, "b": intervals // 2 + 1}))

    assert measured_order(model, sampler, second) == pytest.approx(sampler.order, abs=0.15)


def test_hand_over_between_processes_is_exact_for_an_exact_denoiser():
    """Asked through another process at equal log-SNR, the best denoiser gives the same answer."""
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)
    direct = MixtureDenoiser(MIXTURE, FLOW)(x, t)
    handed = Stitched({"a": MixtureDenoiser(MIXTURE, LINEAR)}, Plan.explicit(["a"]), process=FLOW)(x, t)
    torch.testing.assert_close(handed.x0, direct.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(handed.eps, direct.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [LINEAR, FLOW], ids=lambda p: p.schedule)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_recovers_mean_and_covariance(process, variance):
    from hemstitch.samplers import DDPM

    num, gaps = 4000, []
    for steps in (10, 40, 250):
        samples = sampling.generate(
            MixtureDenoiser(MIXTURE, process), num=num, steps=steps, grid="trailing", sampler=DDPM(variance)
        )
        flat = samples.double().flatten(1)
        covariance = torch.cov(flat.T)
        gaps.append((float((flat.mean(0) - MIXTURE.mean).norm()), float((covariance - MIXTURE.covariance).norm())))
    assert gaps[-1][1] < gaps[0][1] / 2
    # four dimensions: the estimate's own standard error is about |cov| * sqrt(2 * 4 / num)
    assert gaps[-1][0] < 4 * math.sqrt(float(MIXTURE.covariance.trace()) / num)
    assert gaps[-1][1] < 4 * float(MIXTURE.covariance.norm()) * math.sqrt(4 / num)


def test_heun_needs_a_first_level_with_some_signal():
    """As its docstring says: of the cosine schedule's last level, sigma/alpha of 2e4, its first step makes nonsense."""
    model = MixtureDenoiser(MIXTURE, COSINE)
    noise = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = sampling.generate(model, noise=noise, steps=1000, sampler="ddim")

    def error(sampler, grid):
        return float((sampling.generate(model, noise=noise, steps=10, sampler=sampler, grid=grid) - exact).norm())

    later = COSINE.time_of(torch.linspace(-8.0, 9.0, 10, dtype=torch.float64)).tolist()
    assert error("heun", later) < error("ddim", "released") < 0.1 * error("heun", "released")
