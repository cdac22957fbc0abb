"""Where members lie: both on the device, only the one that runs, loaded when needed, off-loaded by diffusers."""

import pytest
import tiny
import torch
from diffusers import ModelMixin
from torch import nn

from hemstitch.bridge import Lazy, stitch, stitched, unstitch
from hemstitch.bridge.shelf import Shelf
from hemstitch.errors import StitchError


@pytest.fixture
def stored(tmp_path):
    """A small U-Net on disk."""
    tiny.small("sd").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


class Anywhere(nn.Module):
    """A network that only remembers where it was sent."""

    def __init__(self, where="cpu"):
        super().__init__()
        self.device = torch.device(where)

    def to(self, device):
        self.device = torch.device(device)
        return self


def test_only_one_member_lies_on_the_device():
    small, large = Anywhere(), Anywhere("cuda")
    shelf = Shelf(large)
    for member in (small, small, large, small):
        shelf.bring(member)
        other = large if member is small else small
        assert (member.device.type, other.device.type) == ("cuda", "cpu")


def test_a_member_that_another_pipeline_moved_is_brought_back():
    small, _large = Anywhere("cuda"), Anywhere()
    shelf = Shelf(small)
    small.to("cpu")
    shelf.bring(small)
    assert small.device.type == "cuda"


def test_stitching_puts_the_others_on_the_cpu():
    first, second, third = (Anywhere("cuda") for _ in range(3))
    Shelf(second).leave_only(second, [first, second, third])
    assert [member.device.type for member in (first, second, third)] == ["cpu", "cuda", "cpu"]


def test_on_the_cpu_nothing_moves():
    small, large = Anywhere(), Anywhere()
    shelf = Shelf(large)
    shelf.bring(small)
    shelf.place("cpu")
    shelf.bring(large)
    assert small.device == large.device == torch.device("cpu")


@pytest.mark.parametrize("family", ["sd", "dit", "flux", "wan_two", "sdxl_controlnet"])
def test_keep_active_changes_no_result(family):
    more = {"residuals": {"small": "drop"}} if family == "sdxl_controlnet" else {}
    pipe = stitch(tiny.build(family), tiny.small(family), fraction=0.5, **more)
    both = tiny.run(family, pipe, steps=4)
    pipe = stitch(tiny.build(family), tiny.small(family), fraction=0.5, keep="active", **more)
    assert torch.equal(tiny.run(family, pipe, steps=4), both)
    assert torch.equal(tiny.run(family, pipe.to("cpu"), steps=4), both)


def test_the_parameters_of_the_running_member_come_first():
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5, keep="active")
    small, large = pipe.unet.members.values()
    assert next(pipe.unet.parameters()) is next(large.parameters())
    seen = []
    for member in (small, large):
        member.register_forward_hook(lambda m, *_: seen.append(next(pipe.unet.parameters()) is next(m.parameters())))
    tiny.run("sd", pipe, steps=4)
    assert seen == [True] * 4
    assert sum(1 for _ in pipe.unet.parameters()) == sum(len(list(m.parameters())) for m in (small, large))


def test_model_cpu_offload_changes_no_result():
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5)
    plain = tiny.run("sd", pipe, steps=4)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(tiny.run("sd", pipe, steps=4), plain)
    for change in (unstitch, lambda pipe: stitch(pipe, tiny.thin("sd"), fraction=0.5)):
        with pytest.raises(StitchError, match="remove_all_hooks"):
            change(pipe)
    pipe.remove_all_hooks()
    unstitch(pipe)
    assert tiny.run("sd", pipe, steps=4).isfinite().all()


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offload_changes_no_result(offload_type):
    pipe = stitch(tiny.build("sd3"), tiny.small("sd3"), fraction=0.5)
    plain = tiny.run("sd3", pipe, steps=4)
    device = torch.device("cpu")
    groups = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    pipe.transformer.enable_group_offload(
        onload_device=device, offload_device=device, offload_type=offload_type, **groups
    )
    assert torch.equal(tiny.run("sd3", pipe, steps=4), plain)


def test_a_lazy_member_is_loaded_when_it_runs_and_stays(stored):
    pipe = tiny.build("sd")
    expected = tiny.run("sd", stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5), steps=4)
    stitch(pipe, Lazy(type(pipe.unet), stored), fraction=0.0)
    tiny.run("sd", pipe, steps=4)
    assert isinstance(pipe.unet.members["small"], Lazy)  # it had no step
    stitch(pipe, Lazy(type(pipe.unet.own), stored), fraction=0.5)
    assert torch.allclose(tiny.run("sd", pipe, steps=4), expected, atol=1e-5)
    assert isinstance(pipe.unet.members["small"], nn.Module)


def test_under_keep_active_a_lazy_member_is_released_at_the_seam(stored):
    pipe = tiny.build("sd")
    stitch(pipe, Lazy(type(pipe.unet), stored), fraction=0.5, keep="active")
    there = []

    def look(pipe, i, t, values):
        there.append(isinstance(pipe.unet.members["small"], nn.Module))
        return values

    for _ in range(2):
        tiny.run("sd", pipe, steps=4, callback_on_step_end=look)
    assert there == [True, True, False, False] * 2


def test_a_lazy_member_that_was_changed_is_held(stored):
    pipe = tiny.build("sd")
    stitch(pipe, Lazy(type(pipe.unet), stored), fraction=0.5, keep="active")
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    tiny.run("sd", pipe, steps=4)
    small = pipe.unet.members["small"]
    assert isinstance(small, nn.Module)
    assert small.up_blocks[0].s1 == 0.9


def test_a_lazy_member_is_cast_to_the_pipelines_precision(stored):
    pipe = tiny.build("sd").to(dtype=torch.bfloat16)
    stitch(pipe, Lazy(type(pipe.unet), stored), fraction=0.5)
    tiny.run("sd", pipe, steps=2)
    assert pipe.unet.members["small"].dtype == torch.bfloat16


def test_a_lazy_member_is_checked_by_its_configuration_alone(tmp_path):
    tiny.unet_sd("small", cross_attention_dim=64).save_config(tmp_path)
    pipe = tiny.build("sd")
    with pytest.raises(StitchError, match="text width"):
        stitch(pipe, Lazy(type(pipe.unet), tmp_path), fraction=0.5)
    pipe = tiny.build("sdxl_controlnet")
    tiny.small("sdxl").save_config(tmp_path)
    with pytest.raises(StitchError, match="controlnet does not fit"):
        stitch(pipe, Lazy(type(pipe.unet), tmp_path), fraction=0.5)


def test_lazy_takes_a_folder_of_its_own_class(stored, tmp_path):
    pipe = tiny.build("ddim")
    with pytest.raises(StitchError, match="holds a UNet2DConditionModel, not a UNet2DModel"):
        stitch(pipe, Lazy(type(pipe.unet), stored), fraction=0.5)


def test_a_lazy_member_that_cannot_be_loaded_says_which(stored):
    pipe = tiny.build("sd")
    stitch(pipe, Lazy(type(pipe.unet), stored), fraction=0.5)
    (stored / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model") as caught:
        tiny.run("sd", pipe)
    assert "a lazy member of a stitched model" in caught.value.__notes__[0]


def test_lazy_takes_a_model_class():
    with pytest.raises(StitchError, match="model class"):
        Lazy(ModelMixin, "somewhere")
    with pytest.raises(StitchError, match="model class"):
        Lazy("UNet2DConditionModel", "somewhere")


@pytest.mark.parametrize("family", ["wan_two", "sd"])
def test_one_member_at_a_time_lies_on_the_device(family, monkeypatch):
    """No device is at hand: where members are sent is written down instead."""
    pipe = stitch(tiny.build(family), tiny.small(family), fraction=0.3, keep="active")
    model = stitched(pipe)
    nets = {"small": model.members["small"], "large": model.own}
    if family == "wan_two":
        nets["second"] = pipe.transformer_2.own
    there = {id(model.own)}

    def send(self, *args, **kwargs):
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        (there.add if device.type == "cuda" else there.discard)(id(self))
        return self

    monkeypatch.setattr(type(model.own), "to", send)
    model._shelf.device = torch.device("cuda")
    seen = []
    for name, net in nets.items():
        net.register_forward_hook(lambda m, *_, name=name: seen.append((name, there == {id(m)})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "device", torch.device("cpu"))  # latents stay here
        for _ in range(2):
            tiny.run(family, pipe, steps=10)
    assert {name for name, _ in seen} == set(nets)
    assert all(alone for _, alone in seen)
