"""On a GPU: placement, off-loading and the places of calls. Skipped where there is none."""

import pytest
import tiny
import torch
from calls import watched

from hemstitch.bridge import Lazy, stitch, stitched

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def close(a, b):
    return torch.allclose(a.cpu().float(), b.cpu().float(), rtol=1e-2, atol=1e-2 * float(b.abs().max()))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_family_on_the_gpu(family):
    more = {"residuals": {"small": "drop"}} if family in ("sdxl_controlnet", "sdxl_adapter") else {}
    pipe = tiny.build(family).to("cuda")
    plain = tiny.run(family, pipe, steps=4)
    stitch(pipe, tiny.small(family), fraction=0.0, **more)  # the small one is moved to the pipeline's device
    assert torch.equal(tiny.run(family, pipe, steps=4), plain)
    stitch(pipe, tiny.small(family), fraction=0.5, **more)
    asked = watched(pipe)
    tiny.run(family, pipe, steps=4)
    calls = len(asked) // 4 if family != "wan_two" else 2
    assert asked[: 2 * calls] == ["small"] * 2 * calls
    assert "small" not in asked[2 * calls :]


@pytest.mark.parametrize("family", ["sd", "dit", "flux", "wan_two"])
def test_keep_active_has_one_member_there(family):
    pipe = tiny.build(family).to("cuda")
    small = tiny.small(family)
    stitch(pipe, small, fraction=0.5)
    both = tiny.run(family, pipe, steps=4)
    stitch(pipe, small, fraction=0.5, keep="active")
    nets = {**stitched(pipe).members}
    if family == "wan_two":
        nets["second"] = pipe.transformer_2.own
    seen = []

    def look(module, *_):
        seen.append([name for name, net in nets.items() if next(net.parameters()).is_cuda and net is not module])

    for net in nets.values():
        net.register_forward_hook(look)
    for _ in range(2):
        assert close(tiny.run(family, pipe, steps=4), both)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("keep", ["both", "active"])
def test_model_off_loading(keep):
    plain = tiny.run("sd", stitch(tiny.build("sd").to("cuda"), tiny.small("sd"), fraction=0.5), steps=4)
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5, keep=keep)
    pipe.enable_model_cpu_offload()
    for _ in range(2):
        assert close(tiny.run("sd", pipe, steps=4), plain)
    assert {p.device.type for p in pipe.unet.parameters()} == {"cpu"}


def test_off_loading_two_transformers():
    plain = tiny.run("wan_two", stitch(tiny.build("wan_two").to("cuda"), tiny.small("wan"), fraction=0.2), steps=10)
    pipe = stitch(tiny.build("wan_two"), tiny.small("wan"), fraction=0.2)
    pipe.enable_model_cpu_offload()
    for _ in range(2):
        assert close(tiny.run("wan_two", pipe, steps=10), plain)


@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_off_loading(offload_type):
    plain = tiny.run("sd3", stitch(tiny.build("sd3").to("cuda"), tiny.small("sd3"), fraction=0.5), steps=4)
    pipe = stitch(tiny.build("sd3"), tiny.small("sd3"), fraction=0.5)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name != "transformer":
            part.to("cuda")
    groups = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cuda"), offload_device=torch.device("cpu"), offload_type=offload_type, **groups
    )
    assert close(tiny.run("sd3", pipe, steps=4), plain)


def test_a_lazy_member_goes_to_the_gpu(tmp_path):
    tiny.small("sd").save_pretrained(tmp_path)
    pipe = tiny.build("sd").to("cuda", torch.bfloat16)
    for keep in ("both", "active"):
        stitch(pipe, Lazy(type(pipe.unet if keep == "both" else pipe.unet.own), tmp_path), fraction=0.5, keep=keep)
        assert tiny.run("sd", pipe, steps=4).isfinite().all()
        assert pipe.unet.dtype == torch.bfloat16


def test_a_pipeline_moved_after_the_stitch():
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5).to("cuda")
    assert {p.device.type for p in pipe.unet.parameters()} == {"cuda"}
    plain = tiny.run("sd", pipe, steps=4)
    pipe = stitch(tiny.build("sd"), tiny.small("sd"), fraction=0.5, keep="active").to("cuda")
    assert close(tiny.run("sd", pipe, steps=4), plain)


def test_no_call_within_a_run_waits_for_the_gpu():
    pipe = stitch(tiny.build("flux").to("cuda"), tiny.small("flux"), fraction=0.5)
    model = stitched(pipe)
    route, waits = type(model.route).at, []

    def at(self, t, net):
        begun = bool(self._runs) and self._runs[-1].schedule.timesteps is pipe.scheduler.timesteps
        torch.cuda.set_sync_debug_mode("error" if begun else "default")
        try:
            waits.append(begun)
            return route(self, t, net)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.route), "at", at)
        tiny.run("flux", pipe, steps=4)
    assert waits == [False, True, True, True]
