"""Members of other prediction types, schedules, variances: converted, against a denoiser that is known exactly."""

import diffusers
import pytest
import tiny
import torch
from diffusers import DDIMPipeline, UNet2DModel

from hemstitch import Process
from hemstitch.bridge import process_of, replan, stitch, stitched
from hemstitch.bridge.convert import Adapter, null_labels
from hemstitch.errors import StitchError
from hemstitch.process import handed_back, per_row

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
        (diffusers.DDPMWuerstchenScheduler(), "noise process of its own"),
        (diffusers.IPNDMScheduler(), "noise process of its own"),
        (diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0), "by a shift"),
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
    cut = Adapter(channels=4, out=4)(lambda **k: (output,), {}, "sample", "timestep", None)[0]
    assert torch.equal(cut, output[:, :4])
    filled = Adapter(channels=4, out=8)(lambda **k: (output[:, :4],), {}, "sample", "timestep", None)[0]
    assert torch.equal(filled[:, :4], output[:, :4])
    assert not filled[:, 4:].any()


def test_null_labels_are_the_networks_own():
    labels = torch.tensor([3, 1000, 7, 1000])
    assert null_labels(labels, 10).tolist() == [3, 10, 7, 10]
    assert null_labels(torch.tensor([3, 1000, 1000, 1000]), 2000).tolist() == [3, 1000, 2000, 2000]
    assert null_labels(torch.tensor([3, 1000]), 2000).tolist() == [3, 2000]
    assert null_labels(torch.tensor([3, 1000, 5]), 2000).tolist() == [3, 1000, 5]


def exact(process, x, t):
    """(x_0, eps) of N(0.3, 0.5²) data, known."""
    alpha, sigma = (per_row(c, x) for c in process.alpha_sigma(t))
    x0 = 0.3 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.3)
    return x0, (x - alpha * x0) / sigma


def test_beyond_its_clean_end_a_members_eps_holds():
    """SD's schedule ends at more noise than DDPM's: there its x_0 would tell little of the noise that is left."""
    ours, theirs = Process("linear"), Process("scaled_linear")
    t = torch.arange(0.0, 8.0).double()
    x0 = 0.3 + 0.5 * torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    x = ours.add_noise(x0, torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(1)).double(), t)
    t_theirs = theirs.time_of(ours.log_snr(t))
    (alpha, sigma), (alpha_theirs, sigma_theirs) = ours.alpha_sigma(t), theirs.alpha_sigma(t_theirs)
    said = exact(theirs, per_row(((alpha_theirs**2 + sigma_theirs**2) / (alpha**2 + sigma**2)).sqrt(), x) * x, t_theirs)
    back_x0, back_eps = handed_back(ours, theirs, t, x, *said)
    true_x0, true_eps = exact(ours, x, t)

    def off(a, b):
        return float((a - b).norm() / b.norm())

    assert (ours.log_snr(t) > theirs.log_snr_range[1]).any()
    assert off(back_x0, true_x0) < 0.01
    assert off(back_eps, true_eps) < 1.0
    x0_kept = (x - per_row(alpha, x) * said[0]) / per_row(sigma, x)
    assert off(x0_kept, true_eps) > 2 * off(back_eps, true_eps)
    assert torch.allclose(per_row(alpha, x) * back_x0 + per_row(sigma, x) * back_eps, x)


def test_packed_latents_have_their_channels_last():
    tokens = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.9, 0.3])
    ours, theirs = Process("flow", "flow"), Process("flow", "x0")
    adapter = Adapter(channels=4, out=4, theirs=theirs, unit_time=True, packed=True)

    def member(sample, timestep):
        return (0.5 * sample,)

    flat = {"sample": tokens, "timestep": t}
    plane = {"sample": tokens.permute(0, 2, 1)[..., None], "timestep": t}
    got = adapter(member, flat, "sample", "timestep", ours)[0]
    planes = Adapter(channels=4, out=4, theirs=theirs, unit_time=True)
    expected = planes(member, plane, "sample", "timestep", ours)[0]
    assert torch.allclose(got, expected[..., 0].permute(0, 2, 1))
    x0 = 0.5 * tokens
    assert torch.allclose(got, (tokens - x0) / t.reshape(2, 1, 1), atol=1e-6)  # (x - x_0)/t, the velocity of the flow


@pytest.mark.parametrize("family", ["flux", "sd3", "wan", "sd_inpaint9"])
def test_converted_members_in_the_pipelines_themselves(family):
    theirs = Process("flow", "x0") if family != "sd_inpaint9" else Process("scaled_linear", "v")
    pipe = tiny.build(family)
    plain = tiny.run(family, pipe, steps=4)
    stitch(pipe, tiny.small(family), fraction=0.5, processes={"small": theirs})
    mixed = tiny.run(family, pipe, steps=4)
    assert mixed.isfinite().all()
    assert mixed.shape == plain.shape
    replan(pipe, fraction=0)
    assert torch.equal(tiny.run(family, pipe, steps=4), plain)


def test_networks_that_count_time_otherwise_are_not_converted():
    from diffusers import ChromaTransformer2DModel, FluxPipeline

    def net(layers):
        return ChromaTransformer2DModel(
            in_channels=16,
            num_layers=layers,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )

    pipe = tiny.build("flux")
    assert isinstance(pipe, FluxPipeline)
    pipe.transformer = net(2)
    with pytest.raises(StitchError, match=r"processes= is for .*ChromaTransformer2DModel"):
        stitch(pipe, net(1), fraction=0.5, processes={"small": Process("flow", "x0")})
    pipe = tiny.build("wan")
    pipe.register_to_config(expand_timesteps=True)
    with pytest.raises(StitchError, match="every patch"):
        stitch(pipe, tiny.small("wan"), fraction=0.5, processes={"small": Process("flow", "x0")})


def test_what_lies_beside_the_latents_is_left_as_it_is():
    """An inpainting U-Net's mask and masked picture."""
    seen = {}

    def member(sample, timestep):
        seen.update(x=sample, t=timestep)
        return (sample[:, :4],)

    x = torch.randn(2, 9, 4, 4)
    adapter = Adapter(channels=4, out=4, theirs=Process("linear", "eps"))
    adapter(member, {"sample": x, "timestep": torch.tensor(500)}, "sample", "timestep", Process("scaled_linear"))
    assert torch.equal(seen["x"][:, 4:], x[:, 4:])
    assert seen["t"].tolist() != [500.0, 500.0]
