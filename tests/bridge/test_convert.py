"""Members of other prediction types, schedules, variances: converted, against a denoiser that is known exactly."""

import diffusers
import pytest
import tiny
import torch
from diffusers import DDIMPipeline, UNet2DModel

from hemstitch import Process
from hemstitch.bridge import process_of, stitch, stitched
from hemstitch.bridge.convert import Adapter, null_labels
from hemstitch.errors import StitchError
from hemstitch.process import per_row

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


class Gaussian(UNet2DModel):
    """The exact network of N(mean, 0.5²) data under any process: what a perfectly trained one would answer."""

    def told(self, process, scale=1.0):
        self.process, self.scale = process, scale
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        process, mean, spread = self.process, 0.3, 0.5
        t = torch.as_tensor(timestep).reshape(-1).expand(len(sample)).double()
        t = t / self.scale
        alpha, sigma = (per_row(c, sample.double()) for c in process.alpha_sigma(t))
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        x0 = mean + gain * (sample.double() - alpha * mean)
        eps = (sample.double() - alpha * x0) / sigma
        output = process.target(x0, eps, t).to(sample.dtype)
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=output) if return_dict else (output,)


def gaussian(process, scale=1.0):
    return Gaussian(**dict(tiny.unet_uncond("small").config)).told(process, scale)


VP = Process("scaled_linear", "eps")
MEMBERS = {
    "v": (Process("scaled_linear", "v"), 1.0),
    "x0": (Process("scaled_linear", "x0"), 1.0),
    "linear schedule": (Process("linear", "eps"), 1.0),
    "cosine schedule, v": (Process("cosine", "v"), 1.0),
    "other betas": (Process("scaled_linear", "v", betas=(0.0005, 0.009)), 1.0),
    "flow": (Process("flow", "flow"), 1000.0),
}


def run(pipe, steps=12):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(pipe.scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


@pytest.mark.parametrize("kind", MEMBERS)
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_converted_exact_member_changes_nothing(kind, fraction):
    process, scale = MEMBERS[kind]
    pipe = DDIMPipeline(gaussian(VP), diffusers.DDIMScheduler(**SD))
    alone = run(pipe)
    stitch(pipe, gaussian(process, scale), fraction=fraction, processes={"small": process})
    # a process that ends earlier is asked at its own end, where the state has a little more signal
    assert torch.allclose(run(pipe), alone, atol=2e-3 if kind in ("linear schedule", "other betas") else 1e-4)
    assert stitched(pipe).route.last.counts["small"] == 12 * fraction


@pytest.mark.parametrize("kind", ["v", "linear schedule", "cosine schedule, v"])
def test_into_a_flow_pipeline_as_well(kind):
    process, scale = MEMBERS[kind]
    flow = Process("flow", "flow")
    pipe = DDIMPipeline(gaussian(VP), diffusers.DDIMScheduler())
    pipe.register_modules(unet=gaussian(flow, 1000.0), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    scheduler = pipe.scheduler
    scheduler.scale_model_input = lambda x, t: x
    alone = run(pipe)
    stitch(pipe, gaussian(process, scale), fraction=0.5, processes={"small": process})
    assert torch.allclose(run(pipe), alone, atol=5e-3)


def test_unconverted_it_would_be_wrong():
    process, scale = MEMBERS["v"]
    pipe = DDIMPipeline(gaussian(VP), diffusers.DDIMScheduler(**SD))
    alone = run(pipe)
    stitch(pipe, gaussian(process, scale), fraction=0.5)
    assert not torch.allclose(run(pipe), alone, atol=0.1)


def test_a_process_may_be_told_by_its_scheduler():
    pipe = tiny.build("sd")
    scheduler = diffusers.DDIMScheduler(**tiny.SD_BETAS, prediction_type="v_prediction")
    stitch(pipe, tiny.small("sd"), fraction=0.5, processes={"small": scheduler})
    assert stitched(pipe).adapters["small"].theirs == Process("scaled_linear", "v", betas=(0.00085, 0.012))
    assert tiny.run("sd", pipe, steps=4).isfinite().all()


@pytest.mark.parametrize(
    ("scheduler", "process"),
    [
        (diffusers.DDPMScheduler(), Process("linear", "eps", betas=(1e-4, 0.02))),
        (diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"), Process("cosine", "x0")),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), Process("flow", "flow")),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            Process("flow", "flow"),
        ),
    ],
)
def test_the_process_of_a_scheduler(scheduler, process):
    assert process_of(scheduler) == process
    if not process.is_flow:
        assert torch.allclose(process.alphas_cumprod().float(), scheduler.alphas_cumprod, rtol=2e-4)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (diffusers.EDMEulerScheduler(), "noise process of its own"),
        (diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "zero terminal SNR"),
        (diffusers.DDIMScheduler(trained_betas=[0.1] * 1000), "table of betas"),
        (diffusers.DDPMScheduler(beta_schedule="sigmoid"), "schedule 'sigmoid'"),
    ],
)
def test_schedulers_that_are_none_of_ours_are_refused(scheduler, says):
    pipe = tiny.build("sd")
    with pytest.raises(StitchError, match=says):
        stitch(pipe, tiny.small("sd"), fraction=0.5, processes={"small": scheduler})


@pytest.mark.parametrize("family", ["dit", "pixart_alpha"])
@pytest.mark.parametrize("which", ["small", "large"])
def test_a_learned_variance_is_cut_or_filled(family, which):
    pipe, make = tiny.build(family), tiny.MAKE[family]
    plain = tiny.run(family, pipe, steps=4)
    if which == "small":
        small = make("small", out_channels=4)
    else:
        small = make("small")
        pipe.transformer = make(out_channels=4)
    stitch(pipe, small, fraction=0.5)
    mixed = tiny.run(family, pipe, steps=4)
    assert mixed.isfinite().all()
    assert mixed.shape == plain.shape


def test_an_adapter_keeps_what_the_first_channels_say():
    output = torch.randn(2, 8, 4, 4)
    cut = Adapter(channels=4, out=4)(lambda **k: (output,), {}, "sample", None)[0]
    assert torch.equal(cut, output[:, :4])
    filled = Adapter(channels=4, out=8)(lambda **k: (output[:, :4],), {}, "sample", None)[0]
    assert torch.equal(filled[:, :4], output[:, :4])
    assert not filled[:, 4:].any()


def test_null_labels_are_the_networks_own():
    labels = torch.tensor([3, 1000, 7, 1000])
    assert null_labels(labels, 10).tolist() == [3, 10, 7, 10]
    assert null_labels(torch.tensor([3, 1000, 1000, 1000]), 2000).tolist() == [3, 1000, 2000, 2000]
    assert null_labels(torch.tensor([3, 1000]), 2000).tolist() == [3, 2000]
    assert null_labels(torch.tensor([3, 1000, 5]), 2000).tolist() == [3, 1000, 5]
