"""A stitched model is invisible: to its pipeline it is the pipeline's own denoiser; what changes one changes each."""

import threading
from copy import deepcopy

import pytest
import tiny
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    FluxTransformer2DModel,
    ModelMixin,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor

from hemstitch.bridge import StitchedModel, stitch, stitched, unstitch
from hemstitch.errors import StitchError


def sd(fraction=0.5, **more):
    return stitch(tiny.build("sd"), tiny.small("sd"), fraction=fraction, **more)


def test_it_is_what_its_members_are():
    pipe = tiny.build("sd")
    own = pipe.unet
    stitch(pipe, tiny.small("sd"), fraction=0.5)
    unet = pipe.unet
    assert isinstance(unet, StitchedModel)
    assert isinstance(unet, UNet2DConditionModel)
    assert isinstance(unet, ModelMixin)
    assert type(unet) in (UNet2DConditionModel,)
    assert type(unet) not in (FluxTransformer2DModel,)
    assert unet.config is own.config
    assert unet.dtype == own.dtype
    assert unet.device == own.device
    assert unet.conv_in is own.conv_in
    assert unet.attn_processors.keys() == own.attn_processors.keys()
    assert list(unet.members) == ["small", "large"]
    assert unet.own is own
    assert stitched(pipe) is unet
    assert unet.num_parameters() == sum(m.num_parameters() for m in unet.members.values())
    assert pipe.config.unet == ("hemstitch.bridge", "StitchedModel")


def test_sdxl_reads_the_networks_parts():
    pipe = stitch(tiny.build("sdxl"), tiny.small("sdxl"), fraction=0.5)
    assert pipe.unet.add_embedding is pipe.unet.own.add_embedding
    assert pipe.unet.config.addition_time_embed_dim == 8


def test_hooks_and_marks_of_a_member_are_not_the_wrappers():
    pipe = sd()
    for name in ("_hf_hook", "_diffusers_hook", "_old_forward", "_orig_mod", "peft_config", "_is_cached", "_tome_info"):
        assert not hasattr(pipe.unet, name)
        setattr(pipe.unet.own, name, object()) if name != "peft_config" else None
        assert not hasattr(pipe.unet, name)
    with pytest.raises(AttributeError, match="no_such_thing"):
        pipe.unet.no_such_thing  # noqa: B018


def test_what_is_set_on_it_is_set_on_the_members():
    pipe = sd()
    pipe.unet.encoder_hid_proj = None
    projection = torch.nn.Linear(2, 2)
    pipe.unet.encoder_hid_proj = projection
    assert all(member.encoder_hid_proj is projection for member in pipe.unet.members.values())
    pipe.unet.note = "mine"
    assert not hasattr(pipe.unet.own, "note")
    assert "note" in vars(pipe.unet)


def test_the_running_member_is_no_second_child():
    pipe = sd()
    names = set(pipe.unet.state_dict())
    tiny.run("sd", pipe)
    assert set(pipe.unet.state_dict()) == names


def test_methods_of_the_network_reach_every_member():
    pipe = sd()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert all(block.s1 == 0.9 for member in pipe.unet.members.values() for block in member.up_blocks)
    pipe.disable_freeu()
    assert all(block.s1 is None for member in pipe.unet.members.values() for block in member.up_blocks)
    pipe.enable_attention_slicing(1)
    pipe.disable_attention_slicing()
    pipe.unet.enable_gradient_checkpointing()
    assert all(member.is_gradient_checkpointing for member in pipe.unet.members.values())


def test_processors_go_to_the_members_that_have_their_place():
    pipe = sd()
    pipe.unet.set_attn_processor(AttnProcessor())
    for member in pipe.unet.members.values():
        assert all(isinstance(p, AttnProcessor) for p in member.attn_processors.values())
    pipe.unet.set_default_attn_processor()
    marked = AttnProcessor()
    pipe.unet.set_attn_processor(dict.fromkeys(pipe.unet.own.attn_processors, marked))
    for member in pipe.unet.members.values():
        shared = set(member.attn_processors) & set(pipe.unet.own.attn_processors)
        assert shared
        assert all(member.attn_processors[name] is marked for name in shared)


@pytest.mark.parametrize("family", ["sd", "sd3", "pixart_alpha"])
def test_fusing_the_projections_changes_no_result(family):
    pipe = stitch(tiny.build(family), tiny.small(family), fraction=0.5)
    plain = tiny.run(family, pipe)
    pipe.unet.fuse_qkv_projections() if family == "sd" else pipe.transformer.fuse_qkv_projections()
    fused = tiny.run(family, pipe)
    assert torch.allclose(fused, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


def test_only_limits_a_change_to_chosen_members():
    pipe = sd()
    with stitched(pipe).only("large"):
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert pipe.unet.own.up_blocks[0].s1 == 0.9
    assert getattr(pipe.unet.members["small"].up_blocks[0], "s1", None) is None
    with pytest.raises(StitchError, match="members are small, large"), stitched(pipe).only("tiny"):
        pass


def test_an_error_of_a_member_says_which():
    pipe = sd()
    with pytest.raises(ValueError, match="slice") as caught:
        pipe.unet.set_attention_slice([1, 2, 3, 4, 5])
    assert "member 'small'" in caught.value.__notes__[0]


def test_stitching_again_replaces_and_unstitching_restores():
    pipe = tiny.build("sd")
    own = pipe.unet
    stitch(pipe, tiny.small("sd"), fraction=0.5)
    stitch(pipe, tiny.thin("sd"), fraction=0.25)
    assert stitched(pipe).own is own
    unstitch(pipe)
    assert pipe.unet is own
    assert unstitch(pipe) is pipe
    with pytest.raises(StitchError, match="is not stitched"):
        stitched(pipe)


@pytest.mark.parametrize("make", [StableDiffusionImg2ImgPipeline.from_pipe, AutoPipelineForImage2Image.from_pipe])
def test_from_pipe_keeps_it(make):
    pipe = sd()
    other = make(pipe)
    assert other.unet is pipe.unet


def test_a_copy_finds_its_own_pipeline():
    pipe = sd()
    plain = tiny.run("sd", pipe)
    other = deepcopy(pipe)
    assert torch.equal(tiny.run("sd", other), plain)
    other.unet.own.conv_in.weight.data.zero_()
    assert not torch.equal(tiny.run("sd", other), plain)
    assert torch.equal(tiny.run("sd", pipe), plain)


def test_threads_each_with_a_pipeline_of_their_own_share_the_weights():
    first = tiny.build("sd")
    large, small = first.unet, tiny.small("sd")
    fractions = (0.0, 0.5, 1.0, 0.25)
    alone = []
    for fraction in fractions:
        alone.append(tiny.run("sd", stitch(first, small, fraction=fraction), steps=4))
        unstitch(first)
    found, pipes = [None] * len(fractions), []
    for fraction in fractions:
        pipes.append(tiny.build("sd"))
        pipes[-1].unet = large
        stitch(pipes[-1], small, fraction=fraction)

    def work(i):
        torch.set_num_threads(1)
        for _ in range(3):
            found[i] = tiny.run("sd", pipes[i], steps=4)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(fractions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("way", ["pipe", "model"])
def test_compiling_changes_no_result_and_breaks_no_graph(way):
    import torch._dynamo as dynamo

    pipe = stitch(tiny.build("dit"), tiny.small("dit"), fraction=0.5)
    plain = tiny.run("dit", pipe, steps=4)
    dynamo.reset()
    dynamo.utils.counters.clear()
    if way == "pipe":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        pipe.transformer.compile(backend="eager")
    assert torch.equal(tiny.run("dit", pipe, steps=4), plain)
    assert sum(dynamo.utils.counters["graph_break"].values()) == 0
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert stitched(pipe).route.last.counts == {"small": 2, "large": 2}
    unstitch(pipe)
    assert not isinstance(pipe.transformer, StitchedModel)
    dynamo.reset()


def test_members_are_cast_to_the_pipelines_precision_and_it_is_said_once(caplog):
    pipe = tiny.build("sd").to(dtype=torch.bfloat16)
    with caplog.at_level("WARNING", "hemstitch"):
        stitch(pipe, tiny.small("sd").train(), fraction=0.5)
        tiny.run("sd", pipe)
        tiny.run("sd", pipe)
    assert all(member.dtype == torch.bfloat16 and not member.training for member in pipe.unet.members.values())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("hemstitch")]
    assert len(said) == 2
    assert "torch.float32" in said[0]
    assert "training mode" in said[1]


def test_to_moves_and_casts_every_member():
    pipe = sd().to(dtype=torch.float64)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float64}
    assert tiny.run("sd", pipe, steps=2).isfinite().all()
    pipe.unet.float()
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (lambda: torch.nn.Linear(2, 2), "Linear, not a denoiser"),
        (lambda: tiny.build("sd"), "pass its unet or transformer"),
        (lambda: tiny.transformer_dit("small"), "cannot be stitched"),
        (lambda: tiny.unet_lcm("small"), "cannot be stitched"),
        (lambda: tiny.unet_sd("small", cross_attention_dim=64), "cannot be stitched"),
        (lambda: "some/path", "str, not a denoiser"),
        (lambda: None, "NoneType, not a denoiser"),
    ],
)
def test_what_cannot_be_a_member_is_refused(member, says):
    with pytest.raises(StitchError, match=says):
        stitch(tiny.build("sd"), member(), fraction=0.5)


def test_compiled_modules_are_refused_and_keep_their_place():
    pipe = tiny.build("sd")
    small = tiny.small("sd")
    with pytest.raises(StitchError, match=r"pipe\.unet\.compile"):
        stitch(pipe, torch.compile(small), fraction=0.5)
    pipe.unet = compiled = torch.compile(pipe.unet)
    with pytest.raises(StitchError, match=r"pipe\.unet\.compile"):
        stitch(pipe, small, fraction=0.5)
    assert pipe.unet is compiled


def test_a_network_whose_time_is_not_known_is_refused():
    class Timeless(UNet2DConditionModel):
        def forward(self, sample, moment):
            return sample

    pipe = tiny.build("sd")
    config = dict(pipe.unet.config)
    pipe.unet = Timeless(**config)
    with pytest.raises(StitchError, match="takes sample, moment"):
        stitch(pipe, Timeless(**config), fraction=0.5)


def test_a_stitched_model_is_pickled():
    import pickle

    pipe = sd()
    plain = tiny.run("sd", pipe)
    pipe.unet = pickle.loads(pickle.dumps(pipe.unet))
    assert isinstance(pipe.unet, StitchedModel)
    assert torch.allclose(tiny.run("sd", pipe), plain, atol=1e-5)


def test_a_loaded_or_copied_one_in_a_loop_of_ones_own_is_told_its_pipeline_by_asking_for_it():
    pipe = deepcopy(sd())
    pipe.scheduler.set_timesteps(2)
    x, text = torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 32)
    with pytest.raises(StitchError, match=r"ask stitched\(pipe\) first"):
        pipe.unet(x, pipe.scheduler.timesteps[0], text)
    stitched(pipe)(x, pipe.scheduler.timesteps[0], text)


def test_a_controlnet_that_came_later_is_not_cut_silently():
    from diffusers import StableDiffusionXLControlNetPipeline

    pipe = tiny.build("sdxl")
    own = pipe.unet
    stitch(pipe, tiny.thin("sdxl"), fraction=0.5)
    other = StableDiffusionXLControlNetPipeline(
        **dict(pipe.components.items()), controlnet=tiny.controlnet_for(own), add_watermarker=False
    )
    other.set_progress_bar_config(disable=True)
    with pytest.raises(StitchError, match="places for them"):
        tiny.run("sdxl_controlnet", other, steps=4)


def test_the_own_denoiser_and_stitched_ones_are_no_members():
    pipe = tiny.build("sd")
    small = tiny.small("sd")
    with pytest.raises(StitchError, match="stands for two members"):
        stitch(pipe, small, small, fraction=(0.25, 0.25))
    with pytest.raises(StitchError, match="denoiser of this NoneType"):
        stitch(None, small, fraction=0.5)
    assert unstitch(None) is None
    with pytest.raises(StitchError, match="own denoiser itself"):
        stitch(pipe, pipe.unet, fraction=0.5)
    with pytest.raises(StitchError, match="stitched itself"):
        stitch(pipe, sd().unet, fraction=0.5)
    with pytest.raises(StitchError, match="another denoiser besides"):
        stitch(pipe, fraction=0.5)
    with pytest.raises(StitchError, match="name the 5 members"):
        stitch(pipe, *[tiny.small("sd") for _ in range(4)], fraction=(0.1, 0.1, 0.1, 0.1))


def test_a_pipeline_without_a_known_denoiser_is_named():
    class Prior:
        def __init__(self):
            self.prior = tiny.unet_sd()
            self.scheduler = tiny.sd_scheduler()

    with pytest.raises(StitchError, match=r"component=, one of prior"):
        stitch(Prior(), tiny.small("sd"), fraction=0.5)
    pipe = stitch(Prior(), tiny.small("sd"), fraction=0.5, component="prior")
    pipe.scheduler.set_timesteps(2)
    t = pipe.scheduler.timesteps
    asked = []
    for name, net in stitched(pipe).members.items():
        net.register_forward_hook(lambda *_, name=name: asked.append(name))
    for i in range(2):
        pipe.prior(torch.zeros(1, 4, 16, 16), t[i], torch.zeros(1, 4, 32))
    assert asked == ["small", "large"]


def test_a_pipeline_spread_over_devices_or_off_loaded_already_is_refused():
    pipe = tiny.build("sd")
    pipe.hf_device_map = {"unet": "cpu"}
    with pytest.raises(StitchError, match="device_map"):
        stitch(pipe, tiny.small("sd"), fraction=0.5)
    pipe = tiny.build("sd")
    pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(StitchError, match="remove_all_hooks"):
        stitch(pipe, tiny.small("sd"), fraction=0.5)
    pipe.remove_all_hooks()
    stitch(pipe, tiny.small("sd"), fraction=0.5)
