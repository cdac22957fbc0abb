"""LoRA and IP-Adapter on stitched pipelines: which members take them, and that taking them off leaves nothing."""

import logging

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

from hemstitch.bridge import Lazy, replan, stitch, stitched
from hemstitch.bridge.lora import fitting
from hemstitch.errors import StitchError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")  # a second adapter; an active one deleted

FAMILIES = ["sd", "sdxl", "sd3", "flux", "wan"]


@pytest.fixture(autouse=True)
def _quiet():
    import diffusers

    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    yield
    diffusers.logging.set_verbosity(before)


def lora_of(family, seed=4, net=None):
    """A random LoRA of a family's large denoiser (or of `net`), in peft's names with the pipeline's prefix."""
    return tiny.lora_for(net or tiny.MAKE[family](), tiny.DENOISER[family], seed=seed)


def stitched_pipe(family, kind="thin", fraction=0.5):
    return stitch(tiny.build(family), getattr(tiny, kind)(family), fraction=fraction)


def tuned(net):
    """How many layers of a network are LoRA's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(module, BaseTunerLayer) for module in net.modules())


def runs(family, pipe):
    """With the small member alone, both in turn, the large one alone."""
    found = []
    for fraction in (1.0, 0.5, 0.0):
        with replan(pipe, fraction=fraction):
            found.append(tiny.run(family, pipe, steps=2))
    return found


def ends(family, pipe):
    """A step of the small member, a step of the large one."""
    found = []
    for fraction in (1.0, 0.0):
        with replan(pipe, fraction=fraction):
            found.append(tiny.run(family, pipe, steps=1))
    return found


def differs(a, b):
    return [not torch.equal(x, y) for x, y in zip(a, b, strict=True)]


# Which members it goes to


@pytest.mark.parametrize("family", FAMILIES)
def test_a_member_with_fewer_layers_takes_those_it_has_and_a_narrower_one_none(family, caplog):
    pipe = stitch(
        tiny.build(family),
        tiny.small(family),
        tiny.thin(family),
        fraction=(0.25, 0.25),
        names=("small", "thin", "large"),
    )
    weights = lora_of(family)
    with caplog.at_level(logging.INFO, logger="hemstitch.bridge"):
        pipe.load_lora_weights(weights, adapter_name="style")
    said = stitched(pipe).fits["style"]
    members = stitched(pipe).members
    assert said["large"] == f"all {tuned(members['large'])} modules"
    assert said["thin"] == f"{tuned(members['thin'])} of {tuned(members['large'])} modules"
    assert 0 < tuned(members["thin"]) < tuned(members["large"])
    assert said["small"].startswith("none: ")
    assert tuned(members["small"]) == 0
    assert any("LoRA style" in line and said["thin"] in line and "small: none" in line for line in caplog.messages)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_through_the_stitch_it_is_what_diffusers_loads_into_the_members(family):
    weights, den = lora_of(family), tiny.DENOISER[family]
    pipe = stitched_pipe(family)
    pipe.load_lora_weights(dict(weights))
    small, large = ends(family, pipe)

    plain = tiny.build(family)
    plain.load_lora_weights(dict(weights))
    assert torch.equal(large, tiny.run(family, plain, steps=1))
    setattr(plain, den, tiny.thin(family))
    plain.load_lora_weights(dict(weights))
    assert torch.equal(small, tiny.run(family, plain, steps=1))


def test_one_that_fits_no_member_is_refused_and_leaves_nothing():
    pipe = stitched_pipe("sd")
    plain = tiny.run("sd", pipe)
    foreign = lora_of("sd", net=tiny.unet_sd(block_out_channels=(8, 24)))
    with pytest.raises(StitchError, match=r"fits no member \(small: none: .* large: none: "):
        pipe.load_lora_weights(foreign)
    assert tuned(pipe.unet) == 0
    assert pipe.get_list_adapters() == {}
    assert torch.equal(tiny.run("sd", pipe), plain)


def test_a_quantised_layer_is_judged_by_its_features_not_by_its_packed_weight():
    net = tiny.thin("wan")
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(torch.zeros(module.weight.numel() // 2, 1))
    kept, missing, misfits = fitting(net, lora_of("wan"), "transformer")
    assert (len(kept), len(missing), misfits) == (4, 4, [])


def test_what_fails_while_it_loads_leaves_no_member_with_a_part(monkeypatch):
    pipe = stitched_pipe("sd")
    plain = tiny.run("sd", pipe)

    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(stitched(pipe).members["large"], "load_lora_adapter", fail, raising=False)
    with pytest.raises(RuntimeError, match="no memory"):
        pipe.load_lora_weights(lora_of("sd"), adapter_name="a")
    assert tuned(pipe.unet) == 0
    assert torch.equal(tiny.run("sd", pipe), plain)


def test_one_for_the_text_encoder_alone_leaves_the_members_as_they_are():
    pipe = stitched_pipe("sd")
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{layer}.lora_A.weight": torch.randn(2, 32, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(32, 2, generator=generator),
    }
    plain = tiny.run("sd", pipe)
    pipe.load_lora_weights(weights, adapter_name="words")
    assert tuned(pipe.unet) == 0
    assert tuned(pipe.text_encoder) == 1
    assert stitched(pipe).fits == {}
    assert not torch.equal(tiny.run("sd", pipe), plain)


def test_a_lokr_is_refused_by_name():
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    with pytest.raises(StitchError, match="LoKr"):
        stitched_pipe("sd").unet.load_lora_adapter({f"{name}.lokr_w1": torch.ones(4, 4)}, prefix="unet")


def test_a_file_name_is_the_pipelines_to_read():
    with pytest.raises(StitchError, match="load_lora_weights"):
        stitched_pipe("sd").unet.load_lora_adapter("a/folder", prefix="unet")


# Changed and taken off


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_to_nothing_disabled_unloaded_the_result_is_the_plain_one(family):
    def run():
        return tiny.run(family, pipe, steps=2)  # a step of each member

    pipe = stitched_pipe(family)
    plain = run()
    pipe.load_lora_weights(lora_of(family), adapter_name="a")
    loaded = run()
    assert not torch.equal(loaded, plain)
    pipe.set_adapters(["a"], [0.0])
    assert torch.equal(run(), plain)
    pipe.set_adapters("a")
    assert torch.equal(run(), loaded)
    pipe.disable_lora()
    assert torch.equal(run(), plain)
    pipe.enable_lora()
    assert torch.equal(run(), loaded)
    assert pipe.get_active_adapters() == ["a"]
    assert pipe.get_list_adapters() == {tiny.DENOISER[family]: ["a"]}
    pipe.unload_lora_weights()
    assert torch.equal(run(), plain)
    assert tuned(getattr(pipe, tiny.DENOISER[family])) == 0
    assert stitched(pipe).fits == {}


def test_on_one_member_only_the_other_runs_as_before():
    pipe = stitched_pipe("flux", "small")
    plain = runs("flux", pipe)
    pipe.load_lora_weights(lora_of("flux"), adapter_name="a")
    assert differs(runs("flux", pipe), plain) == [False, True, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_it_gives_the_same_result_and_unfused_the_plain_one_but_for_rounding(family, assert_close):
    pipe, den = stitched_pipe(family), tiny.DENOISER[family]
    plain = tiny.run(family, pipe, steps=2)
    pipe.load_lora_weights(lora_of(family), adapter_name="a")
    loaded = tiny.run(family, pipe, steps=2)
    pipe.fuse_lora(components=[den])
    assert pipe.fused_loras == {"a"}
    assert_close(tiny.run(family, pipe, steps=2), loaded, 1e-3)
    pipe.unfuse_lora(components=[den])
    assert pipe.num_fused_loras == 0
    pipe.disable_lora()
    assert_close(tiny.run(family, pipe, steps=2), plain, 1e-3)


def test_two_adapters_mix_in_the_members_as_in_plain_pipes():
    weights = {"a": lora_of("wan", seed=1), "b": lora_of("wan", seed=2)}

    def mixed(pipe):
        for name, state in weights.items():
            pipe.load_lora_weights(dict(state), adapter_name=name)
        pipe.set_adapters(["b", "a"], [0.25, 0.75])
        return pipe

    pipe = mixed(stitched_pipe("wan"))
    small, _, large = runs("wan", pipe)
    assert torch.equal(large, tiny.run("wan", mixed(tiny.build("wan")), steps=2))
    alone = tiny.build("wan")
    alone.transformer = tiny.thin("wan")
    assert torch.equal(small, tiny.run("wan", mixed(alone), steps=2))
    assert pipe.get_active_adapters() == ["b", "a"]


def test_a_deleted_adapter_leaves_the_result_of_the_other():
    pipe = stitched_pipe("wan")
    pipe.load_lora_weights(lora_of("wan", seed=1), adapter_name="a")
    first = runs("wan", pipe)
    pipe.load_lora_weights(lora_of("wan", seed=2), adapter_name="b")
    assert differs(runs("wan", pipe), first) == [True] * 3
    pipe.delete_adapters("b")
    assert differs(runs("wan", pipe), first) == [False] * 3
    assert pipe.get_list_adapters() == {"transformer": ["a"]}
    assert list(stitched(pipe).fits) == ["a"]


def test_the_adapter_loaded_last_is_active_in_members_that_it_does_not_fit_too():
    pipe = stitched_pipe("wan")
    plain = runs("wan", pipe)
    pipe.load_lora_weights(lora_of("wan"), adapter_name="both")
    both = runs("wan", pipe)
    with stitched(pipe).only("large"):
        pipe.load_lora_weights(lora_of("wan", seed=9), adapter_name="large's")
    pipe.set_adapters("large's")
    assert differs(runs("wan", pipe), plain) == [False, True, True]
    pipe.set_adapters("both")
    assert differs(runs("wan", pipe), both) == [False] * 3

    # modules of the large one's second layer alone: the small one has none of them
    narrow = {name: value for name, value in lora_of("wan", seed=3).items() if "blocks.1." in name}
    pipe.load_lora_weights(narrow, adapter_name="narrow")
    assert stitched(pipe).fits["narrow"]["small"].startswith("none of ")
    assert differs(runs("wan", pipe), plain) == [False, True, True]
    pipe.delete_adapters("narrow")
    assert stitched(pipe).active_adapters() == pipe.get_active_adapters()
    assert not differs(runs("wan", pipe), both)[0]


def test_adapters_without_a_name_get_the_same_one_in_every_member():
    pipe = stitched_pipe("wan")
    with stitched(pipe).only("large"):
        pipe.load_lora_weights(lora_of("wan"))
    pipe.load_lora_weights(lora_of("wan", seed=2))
    assert pipe.get_list_adapters() == {"transformer": ["default_1", "default_0"]}
    assert list(stitched(pipe).members["small"].peft_config) == ["default_1"]


def test_a_name_in_use_is_refused_as_by_diffusers_and_kept_by_a_member_that_has_it():
    pipe = stitched_pipe("wan")
    with stitched(pipe).only("small"):
        pipe.load_lora_weights(lora_of("wan", seed=1), adapter_name="a")
    small = runs("wan", pipe)[0]
    pipe.load_lora_weights(lora_of("wan", seed=2), adapter_name="a")
    assert stitched(pipe).fits["a"]["small"] == "none: keeps the one of this name"
    assert torch.equal(runs("wan", pipe)[0], small)
    with pytest.raises(ValueError, match="already in use"):
        pipe.load_lora_weights(lora_of("wan", seed=3), adapter_name="a")


def test_an_adapter_is_swapped_in_the_members_that_have_it():
    pipe = stitched_pipe("wan", "small")
    pipe.load_lora_weights(lora_of("wan", seed=1), adapter_name="a")
    pipe.load_lora_weights(lora_of("wan", seed=2), adapter_name="a", hotswap=True)
    other = stitched_pipe("wan", "small")
    other.load_lora_weights(lora_of("wan", seed=2), adapter_name="a")
    assert differs(runs("wan", pipe), runs("wan", other)) == [False] * 3


# One LoRA a member


def test_each_member_has_a_lora_of_its_own_under_one_name():
    pipe = stitched_pipe("lcm", "small")
    plain = runs("lcm", pipe)
    loras = {"small": lora_of("lcm", net=tiny.small("lcm")), "large": lora_of("lcm")}
    for name, weights in loras.items():
        with stitched(pipe).only(name):
            pipe.load_lora_weights(dict(weights), adapter_name="lcm")
    assert {name: said.split()[0] for name, said in stitched(pipe).fits["lcm"].items()} == dict.fromkeys(loras, "all")
    small, both, large = runs("lcm", pipe)

    alone = tiny.build("lcm")
    alone.load_lora_weights(dict(loras["large"]))
    assert torch.equal(large, tiny.run("lcm", alone, steps=2))
    alone.unet = tiny.small("lcm")
    alone.load_lora_weights(dict(loras["small"]))
    assert torch.equal(small, tiny.run("lcm", alone, steps=2))
    assert not torch.equal(both, plain[1])

    with stitched(pipe).only("small"):
        pipe.set_adapters("lcm", 0.0)
    assert differs(runs("lcm", pipe), plain) == [False, True, True]
    with stitched(pipe).only("large"):
        pipe.unload_lora_weights()
    assert list(stitched(pipe).fits["lcm"]) == ["small"]
    assert differs(runs("lcm", pipe), plain) == [False] * 3


def test_a_members_lora_is_saved_alone(tmp_path):
    pipe = stitched_pipe("wan")
    pipe.load_lora_weights(lora_of("wan"), adapter_name="a")
    expected = runs("wan", pipe)[0]
    with pytest.raises(StitchError, match="one by one"):
        pipe.transformer.save_lora_adapter(tmp_path, adapter_name="a")
    with stitched(pipe).only("small"):
        pipe.transformer.save_lora_adapter(tmp_path, adapter_name="a")
    net = tiny.thin("wan")
    net.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix=None)
    pipe.unload_lora_weights()
    pipe = stitch(tiny.build("wan"), net, fraction=1.0)
    assert torch.equal(tiny.run("wan", pipe, steps=2), expected)


# Files and formats


def test_a_saved_lora_with_its_configuration_is_loaded_from_its_folder(tmp_path):
    weights = lora_of("wan")
    pipe = stitched_pipe("wan")
    pipe.load_lora_weights(dict(weights), adapter_name="a")
    expected = runs("wan", pipe)
    type(pipe).save_lora_weights(
        tmp_path,
        transformer_lora_layers={name.removeprefix("transformer."): value for name, value in weights.items()},
        weight_name="style.safetensors",
        transformer_lora_adapter_metadata=stitched(pipe).members["large"].peft_config["a"].to_dict(),
    )
    pipe = stitched_pipe("wan")
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    assert set(stitched(pipe).fits["style"]) == {"small", "large"}
    assert differs(runs("wan", pipe), expected) == [False] * 3


def kohya(weights, alpha):
    """The same LoRA in the names of kohya's scripts."""
    state = {}
    for name, value in weights.items():
        module, factor = name.removeprefix("unet.").rsplit(".lora_", 1)
        stem = "lora_unet_" + module.replace(".", "_")
        state[f"{stem}.lora_{'down' if factor[0] == 'A' else 'up'}.weight"] = value
        state[f"{stem}.alpha"] = torch.tensor(alpha)
    return state


def test_kohyas_file_with_its_alphas_is_loaded_as_into_plain_pipes(tmp_path):
    save_file(kohya(lora_of("sd"), alpha=0.5), tmp_path / "kohya.safetensors")

    def load(pipe):
        pipe.load_lora_weights(tmp_path, weight_name="kohya.safetensors", adapter_name="k")
        return {m.scaling["k"] for m in pipe.unet.modules() if hasattr(m, "scaling")}

    pipe = stitched_pipe("sd")
    assert load(pipe) == {0.5 / 2}
    assert stitched(pipe).fits["k"] == {"small": "16 of 24 modules", "large": "all 24 modules"}
    small, large = ends("sd", pipe)
    plain = tiny.build("sd")
    load(plain)
    assert torch.equal(large, tiny.run("sd", plain, steps=1))
    plain.unet = tiny.thin("sd")
    load(plain)
    assert torch.equal(small, tiny.run("sd", plain, steps=1))


def test_alphas_scale_the_members_that_they_belong_to():
    weights = lora_of("sd")
    alphas = {name.replace("lora_A.weight", "alpha"): 0.5 for name in weights if "lora_A" in name}
    pipe = stitched_pipe("sd")
    pipe.unet.load_lora_adapter(weights, prefix="unet", network_alphas=alphas, adapter_name="a")
    for member in stitched(pipe).members.values():
        assert {m.scaling["a"] for m in member.modules() if hasattr(m, "scaling")} == {0.25}


# Members that are not loaded yet


def test_a_lazy_member_is_loaded_for_its_lora_and_keeps_it(tmp_path):
    tiny.thin("wan").save_pretrained(tmp_path)
    pipe = stitch(tiny.build("wan"), Lazy(tiny.WanTransformer3DModel, tmp_path), fraction=0.5, keep="active")
    pipe.load_lora_weights(lora_of("wan"), adapter_name="a")
    loaded = stitched(pipe).members["small"]
    alone = tiny.build("wan")
    alone.transformer = tiny.WanTransformer3DModel.from_pretrained(tmp_path)
    alone.load_lora_weights(lora_of("wan"))
    small = tiny.run("wan", alone, steps=2)
    for _ in range(2):
        assert torch.allclose(runs("wan", pipe)[0], small, atol=1e-5)  # files do not lie aligned in memory: rounding
    assert stitched(pipe).members["small"] is loaded


def test_what_concerns_other_members_does_not_load_a_lazy_one(tmp_path):
    tiny.thin("wan").save_pretrained(tmp_path)
    pipe = stitch(tiny.build("wan"), Lazy(tiny.WanTransformer3DModel, tmp_path), fraction=0.5)
    with stitched(pipe).only("large"):
        pipe.load_lora_weights(lora_of("wan"), adapter_name="a")
    pipe.set_adapters("a", 0.5)
    pipe.disable_lora()
    pipe.enable_lora()
    pipe.fuse_lora(components=["transformer"])
    pipe.unfuse_lora(components=["transformer"])
    pipe.delete_adapters("a")
    pipe.unload_lora_weights()
    assert isinstance(stitched(pipe).members["small"], Lazy)


# Wan 2.2: two denoisers


def test_each_of_wans_two_denoisers_has_its_lora():
    pipe = stitched_pipe("wan_two")
    plain = runs("wan_two", pipe)
    weights = lora_of("wan_two")
    pipe.load_lora_weights(dict(weights), adapter_name="high")
    with pipe.transformer_2.only("large"):
        pipe.load_lora_weights(dict(weights), adapter_name="low", load_into_transformer_2=True)
    assert pipe.transformer_2.fits["low"] == {"large": f"all {tuned(pipe.transformer_2.members['large'])} modules"}
    assert differs(runs("wan_two", pipe), plain) == [True] * 3
    pipe.unload_lora_weights()
    assert differs(runs("wan_two", pipe), plain) == [False] * 3


# IP-Adapter


def ip_adapter_of(unet, image_width=24, seed=5):
    """A random IP-Adapter for a U-Net: the picture's embedding as four tokens, and keys and values for each layer."""
    generator = torch.Generator().manual_seed(seed)
    width = unet.config.cross_attention_dim

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    projection = {
        "proj.weight": random(4 * width, image_width),
        "proj.bias": random(4 * width),
        "norm.weight": random(width),
        "norm.bias": random(width),
    }
    layers = {}
    for name in unet.attn_processors:
        if not name.endswith("attn1.processor"):
            number = 1 + len(layers)  # 1, 3, 5, …: there are two to a layer
            out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            layers[f"{number}.to_k_ip.weight"] = random(out, width)
            layers[f"{number}.to_v_ip.weight"] = random(out, width)
    return {"image_proj": projection, "ip_adapter": layers}


def load_ip_adapter(pipe, weights=None):
    pipe.load_ip_adapter(
        weights or ip_adapter_of(tiny.unet_sd()), subfolder="", weight_name="", image_encoder_folder=None
    )


def picture_runs(pipe):
    """As `runs`, led by a picture."""
    embeds = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(6))
    found = []
    for fraction in (1.0, 0.5, 0.0):
        with replan(pipe, fraction=fraction):
            found.append(tiny.run("sd", pipe, steps=2, ip_adapter_image_embeds=[embeds]))
    return found


def test_an_ip_adapter_on_the_large_member_leads_its_steps_only():
    pipe = stitched_pipe("sd", "small")
    plain = runs("sd", pipe)
    with stitched(pipe).only("large"):
        load_ip_adapter(pipe)
    led = picture_runs(pipe)
    assert differs(led, plain) == [False, True, True]
    alone = tiny.build("sd")
    load_ip_adapter(alone)
    embeds = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(6))
    assert torch.equal(led[2], tiny.run("sd", alone, steps=2, ip_adapter_image_embeds=[embeds]))
    pipe.set_ip_adapter_scale(0.0)
    assert differs(picture_runs(pipe), plain) == [False] * 3
    pipe.unload_ip_adapter()
    assert differs(runs("sd", pipe), plain) == [False] * 3


def test_an_ip_adapter_on_two_members_of_one_architecture_leads_and_scales_both():
    pipe = stitch(tiny.build("sd"), tiny.unet_sd(seed=11), fraction=0.5)
    plain = runs("sd", pipe)
    load_ip_adapter(pipe)
    led = picture_runs(pipe)
    assert differs(led, plain) == [True] * 3
    pipe.set_ip_adapter_scale(0.5)
    assert differs(picture_runs(pipe), led) == [True] * 3
    pipe.set_ip_adapter_scale(0.0)
    assert differs(picture_runs(pipe), plain) == [False] * 3
    pipe.unload_ip_adapter()
    assert differs(runs("sd", pipe), plain) == [False] * 3


@pytest.mark.parametrize("kind", ["small", "thin"])
def test_an_ip_adapter_that_does_not_fit_is_refused_by_the_members_name(kind):
    pipe = stitched_pipe("sd", kind)
    plain = runs("sd", pipe)
    with pytest.raises(StitchError, match=r"does not fit the member 'small'.*only\('large'\)"):
        load_ip_adapter(pipe)
    with stitched(pipe).only("small"), pytest.raises(StitchError, match=r"own denoiser 'large'"):
        load_ip_adapter(pipe)
    assert pipe.unet.encoder_hid_proj is None
    assert differs(runs("sd", pipe), plain) == [False] * 3
