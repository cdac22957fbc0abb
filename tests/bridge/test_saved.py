"""A stitched pipeline is saved and loaded like any other, with its members and its plan."""

import json

import pytest
import tiny
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline

from hemstitch import Plan, Process
from hemstitch.bridge import Lazy, replan, stitch, stitched
from hemstitch.errors import StitchError


def loaded(folder, how=DiffusionPipeline, **more):
    pipe = how.from_pretrained(folder, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("family", ["sd", "sdxl_controlnet", "dit", "flux", "wan_two"])
def test_a_round_trip_keeps_members_plan_and_result(family, tmp_path):
    pipe = tiny.build(family)
    more = {"residuals": {"small": "drop"}} if family == "sdxl_controlnet" else {}
    stitch(pipe, tiny.small(family), fraction=0.5, **more)
    plain = tiny.run(family, pipe, steps=4)
    pipe.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert stitched(again).route.choice == stitched(pipe).route.choice
    assert list(stitched(again).members) == ["small", "large"]
    assert torch.allclose(tiny.run(family, again, steps=4), plain, rtol=1e-4, atol=1e-5)  # loaded weights lie otherwise
    replan(again, fraction=0)
    assert not torch.allclose(tiny.run(family, again, steps=4), plain, rtol=1e-4, atol=1e-5)


def test_a_controlnet_per_member_is_kept(tmp_path):
    family = "sdxl_controlnet"
    pipe, small = tiny.build(family), tiny.small(family)
    stitch(pipe, small, fraction=0.5, controlnets={"small": tiny.controlnet_for(small)})
    plain = tiny.run(family, pipe, steps=4)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(tiny.run(family, loaded(tmp_path), steps=4), plain)


@pytest.mark.parametrize("how", [StableDiffusionPipeline, DiffusionPipeline, AutoPipelineForText2Image])
def test_every_way_of_loading_finds_it(how, tmp_path):
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5)
    plain = tiny.run("sd", pipe, steps=4)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(tiny.run("sd", loaded(tmp_path, how), steps=4), plain)
    half = loaded(tmp_path, how, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}


def test_a_plan_and_a_process_are_kept(tmp_path):
    pipe = tiny.build("sd")
    plan = Plan.explicit(["large", "small", "large"])
    stitch(pipe, tiny.small("sd"), plan=plan, processes={"small": Process("scaled_linear", "v")}, keep="active")
    plain = tiny.run("sd", pipe, steps=3)
    pipe.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert stitched(again).route.choice.plan == Plan.from_json(plan.to_json())
    assert stitched(again).keep == "active"
    assert stitched(again).adapters == stitched(pipe).adapters
    assert torch.equal(tiny.run("sd", again, steps=3), plain)


def test_a_variant_is_found(tmp_path):
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5)
    plain = tiny.run("sd", pipe)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert torch.equal(tiny.run("sd", loaded(tmp_path, variant="fp16")), plain)


def test_sharded_members_are_found(tmp_path):
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5)
    plain = tiny.run("sd", pipe)
    pipe.unet.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    pipe.save_pretrained(tmp_path / "pipe", max_shard_size="50KB")
    assert list((tmp_path / "sharded" / "member.1").glob("*.index.json"))
    assert torch.equal(tiny.run("sd", loaded(tmp_path / "pipe")), plain)


def test_a_lazy_member_is_saved_and_let_go(tmp_path):
    tiny.small("sd").save_pretrained(tmp_path / "small")
    pipe = tiny.build("sd")
    stitch(pipe, Lazy(type(pipe.unet), tmp_path / "small"), fraction=0.5)
    pipe.save_pretrained(tmp_path / "pipe")
    assert isinstance(stitched(pipe).members["small"], Lazy)
    assert torch.equal(tiny.run("sd", loaded(tmp_path / "pipe")), tiny.run("sd", pipe))


def test_device_map_is_refused(tmp_path):
    stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5).save_pretrained(tmp_path)
    for device_map in ("cpu", "balanced"):
        with pytest.raises(StitchError, match="device_map"):
            DiffusionPipeline.from_pretrained(tmp_path, device_map=device_map)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format=99), "newer version"),
        (lambda d: d.pop("choice"), "damaged"),
        (lambda d: d.update(members=[]), "damaged"),
        (lambda d: d["members"][0].update(library="os", **{"class": "system"}), "not a diffusers model class"),
        (lambda d: d["members"][0].update({"class": "StableDiffusionPipeline"}), "not a diffusers model class"),
        (lambda d: d["choice"].update(fractions={"small": 7, "large": -6}), "0..1"),
        (lambda d: d.update(keep="none"), "keep is one of"),
        (lambda d: d.update(adapters={"small": {"evil": 1}}), "damaged"),
        (lambda d: d.update(dropped=["nope"]), "the members are small, large"),
        (lambda d: d["members"].pop(), "damaged"),
        (lambda d: d["members"][0].update(name="large"), "damaged"),
        (lambda d: d["members"][0].update(name="tiny"), "fractions name small"),
        (lambda d: d["members"].append(dict(d["members"][0], name="third")), "incomplete"),
        (lambda d: d["choice"].update(plan='{"rule": "", "steps": 1, "assignment": [["x", 1]]}'), "plan names x"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(change, says, tmp_path):
    stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5).unet.save_pretrained(tmp_path)
    from hemstitch.bridge import StitchedModel

    data = json.loads((tmp_path / "config.json").read_text())
    change(data)
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(StitchError, match=says):
        StitchedModel.from_pretrained(tmp_path)
    with pytest.raises(StitchError, match=r"holds no config\.json"):
        StitchedModel.from_pretrained(tmp_path / "nowhere")
