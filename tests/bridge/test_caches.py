"""Caches on stitched pipelines: one for each member, which begins anew at each seam and each run.

What they give is compared with a plain pipeline, whose denoiser a callback replaces by another cached one at the seam.
"""

import logging
import sys
from functools import cache

import pytest
import tiny
import torch

from hemstitch import Plan
from hemstitch.bridge import enable_cache_dit, enable_deepcache, replan, stitch, stitched, unstitch
from hemstitch.errors import MissingExtraError, StitchError

STEPS = 4
SEAMS = (2, 1, 0, STEPS)  # after a run at 2: none may see the one before


@pytest.fixture(autouse=True)
def _quiet():
    import diffusers

    cache_dit = logging.getLogger("CACHE_DIT")
    before = diffusers.logging.get_verbosity(), cache_dit.disabled
    diffusers.logging.set_verbosity_error()
    cache_dit.disabled = True
    yield
    diffusers.logging.set_verbosity(before[0])
    cache_dit.disabled = before[1]


def stitched_pipe(family, seam=2, **more):
    return stitch(tiny.build(family), tiny.small(family), fraction=seam / STEPS, **more)


def run(family, pipe, seam=None):
    if seam is not None:
        replan(pipe, fraction=seam / STEPS)
    return tiny.run(family, pipe, steps=STEPS)


@cache
def plain_pipe(family):
    """One for the whole module: its denoiser is given for each run."""
    return tiny.build(family)


def by_hand(family, enable, seam, again=STEPS):
    """The small denoiser up to the seam and the large one behind it, each cached by enable(pipe, net).

    From step `again` on another small one, whose cache has seen nothing.
    """
    pipe, slot = plain_pipe(family), tiny.DENOISER[family]
    small, large, small_again = tiny.small(family), tiny.MAKE[family](), tiny.small(family)
    for net in (small, large, small_again):
        enable(pipe, net)
    turns = [small] * seam + [large] * (again - seam) + [small_again] * (STEPS - again)

    def swap(pipe, step, t, tensors):
        if step + 1 < STEPS:
            setattr(pipe, slot, turns[step + 1])
        return tensors

    setattr(pipe, slot, turns[0])
    return tiny.run(family, pipe, steps=STEPS, callback_on_step_end=swap)


# diffusers' own caches


def broadcast(pipe):
    from diffusers.hooks import PyramidAttentionBroadcastConfig

    blocks = ("transformer_blocks", "single_transformer_blocks", "blocks")
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(-1, 1001),
        cross_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=blocks,
        cross_attention_block_identifiers=blocks,
        current_timestep_callback=lambda: 500,
    )


def first_block(pipe):
    from diffusers.hooks import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=0.5)


def taylor(pipe):
    from diffusers.hooks import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32)


def magnitude(pipe):
    from diffusers.hooks import MagCacheConfig

    return MagCacheConfig(threshold=10.0, max_skip_steps=1, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS)


def spectral(pipe):
    from diffusers.hooks import SeaCacheConfig

    return SeaCacheConfig(threshold=10.0, max_consecutive_cached=1)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("flux", broadcast),
        ("flux", first_block),
        ("flux", taylor),
        ("flux", magnitude),
        ("wan", broadcast),
        ("wan", magnitude),
        ("wan", spectral),
    ],
)
def test_a_cache_of_diffusers_begins_anew_at_each_seam(family, config):
    pipe = stitched_pipe(family)
    uncached = run(family, pipe)
    pipe.transformer.enable_cache(config(pipe))
    assert not torch.equal(run(family, pipe), uncached)
    for seam in SEAMS:
        expected = by_hand(family, lambda pipe, net: net.enable_cache(config(pipe)), seam)
        assert torch.equal(run(family, pipe, seam), expected), seam
    pipe.transformer.disable_cache()
    assert torch.equal(run(family, pipe, 2), uncached)


@pytest.mark.parametrize("config", [broadcast, taylor])
def test_a_member_that_runs_twice_has_forgotten_its_first_steps(config):
    pipe = stitched_pipe("flux")
    pipe.transformer.enable_cache(config(pipe))
    replan(pipe, plan=Plan(("small", "large", "small", "small")))
    expected = by_hand("flux", lambda pipe, net: net.enable_cache(config(pipe)), 1, 2)
    assert torch.equal(tiny.run("flux", pipe, steps=STEPS), expected)


def test_a_run_that_was_broken_off_leaves_the_next_nothing():
    def stop(pipe, step, t, tensors):
        raise KeyboardInterrupt

    pipe = stitched_pipe("flux")
    pipe.transformer.enable_cache(broadcast(pipe))
    expected = run("flux", pipe)
    with pytest.raises(KeyboardInterrupt):
        tiny.run("flux", pipe, steps=STEPS, seed=1, callback_on_step_end=stop)
    assert torch.equal(run("flux", pipe), expected)


@pytest.mark.parametrize("config", [first_block, magnitude])
def test_at_the_ends_a_cached_stitch_is_the_cached_plain_pipe(config):
    pipe, plain = stitched_pipe("flux"), tiny.build("flux")
    for each in (pipe, plain):
        each.transformer.enable_cache(config(each))
    assert torch.equal(run("flux", pipe, 0), run("flux", plain))
    plain.transformer = tiny.small("flux")
    plain.transformer.enable_cache(config(plain))
    assert torch.equal(run("flux", pipe, STEPS), run("flux", plain))


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_cache_applied_to_a_denoiser_without_cache_contexts_begins_anew_too(family):
    from diffusers.hooks import apply_pyramid_attention_broadcast as apply

    pipe, slot = stitched_pipe(family), tiny.DENOISER[family]
    uncached = run(family, pipe)
    apply(getattr(pipe, slot), broadcast(pipe))
    assert not torch.equal(run(family, pipe), uncached)
    for seam in SEAMS[:2]:
        expected = by_hand(family, lambda pipe, net: apply(net, broadcast(pipe)), seam)
        assert torch.equal(run(family, pipe, seam), expected), seam


def test_a_cache_is_enabled_on_one_member_only():
    pipe = stitched_pipe("flux")
    uncached = {seam: run("flux", pipe, seam) for seam in (0, STEPS)}
    with stitched(pipe).only("large"):
        pipe.transformer.enable_cache(first_block(pipe))
    assert [m.is_cache_enabled for m in stitched(pipe).members.values()] == [False, True]
    assert torch.equal(run("flux", pipe, STEPS), uncached[STEPS])
    assert not torch.equal(run("flux", pipe, 0), uncached[0])


@pytest.mark.parametrize("family", ["flux", "wan"])
def test_cache_contexts_of_the_pipeline_are_those_of_the_member_that_runs(family, monkeypatch):
    pipe = stitched_pipe(family)
    entered = []
    for name, member in stitched(pipe).members.items():

        def watched(context, *, _name=name, _original=member.cache_context, **more):
            entered.append((_name, context))
            return _original(context, **more)

        monkeypatch.setattr(member, "cache_context", watched, raising=False)
    run(family, pipe)
    contexts = ["cond"] if family == "flux" else ["cond", "uncond"]
    assert entered == [(name, context) for name in ["small"] * 2 + ["large"] * 2 for context in contexts]


# Token merging


def merge(denoiser_or_pipe):
    import tomesd

    tomesd.apply_patch(denoiser_or_pipe, ratio=0.5, max_downsample=2, use_rand=False)


def test_tokens_are_merged_in_all_members_and_a_removed_patch_leaves_nothing():
    import tomesd

    pipe = stitched_pipe("sd")
    unmerged = [run("sd", pipe, seam) for seam in (0, 2, STEPS)]
    merge(pipe)
    merged = [run("sd", pipe, seam) for seam in (0, 2, STEPS)]
    assert not any(torch.equal(a, b) for a, b in zip(merged, unmerged, strict=True))
    for got, net in ((merged[0], tiny.unet_sd()), (merged[2], tiny.small("sd"))):
        plain = plain_pipe("sd")
        plain.unet = net
        merge(plain)
        assert torch.equal(got, run("sd", plain))
    tomesd.remove_patch(pipe)
    assert all(torch.equal(run("sd", pipe, seam), was) for seam, was in zip((0, 2, STEPS), unmerged, strict=True))


def test_tokens_are_merged_in_one_member_only():
    import tomesd

    pipe = stitched_pipe("sd")
    large = stitched(pipe).members["large"]
    unmerged = [run("sd", pipe, seam) for seam in (0, STEPS)]
    merge(large)
    assert not torch.equal(run("sd", pipe, 0), unmerged[0])
    assert torch.equal(run("sd", pipe, STEPS), unmerged[1])
    tomesd.remove_patch(large)
    assert torch.equal(run("sd", pipe, 0), unmerged[0])


def test_tokens_are_merged_in_a_member_of_another_prediction_type():
    pipe = stitched_pipe("sd", processes={"small": tiny.DDIMScheduler(**tiny.SD_BETAS, prediction_type="v_prediction")})
    unmerged = run("sd", pipe)
    merge(stitched(pipe).members["small"])
    assert not torch.equal(run("sd", pipe), unmerged)


# DeepCache


def deepcache(pipe, net, **parameters):
    from DeepCache import DeepCacheSDHelper

    class One:
        unet = net
        scheduler = property(lambda self: pipe.scheduler)

    helper = DeepCacheSDHelper(pipe=One())
    helper.set_params(**parameters)
    helper.enable()


def forwards(model):
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize(
    ("family", "interval", "branch"), [("sd", 2, 0), ("sd", 3, 1), ("sdxl", 3, 0), ("sd_img2img", 2, 0)]
)
def test_deepcache_begins_anew_at_each_seam(family, interval, branch):
    parameters = {"cache_interval": interval, "cache_branch_id": branch}
    pipe = stitched_pipe(family)
    uncached = run(family, pipe)
    disable = enable_deepcache(pipe, **parameters)
    assert not torch.equal(run(family, pipe), uncached)
    for seam in SEAMS[:2] if family == "sd" else SEAMS[1:2]:
        expected = by_hand(family, lambda pipe, net: deepcache(pipe, net, **parameters), seam)
        assert torch.equal(run(family, pipe, seam), expected), seam
    disable()
    assert torch.equal(run(family, pipe, 2), uncached)
    assert forwards(pipe.unet) == []


def test_at_the_ends_deepcache_is_that_of_the_plain_pipe():
    from DeepCache import DeepCacheSDHelper

    pipe = stitched_pipe("sd")
    enable_deepcache(pipe, cache_interval=2)
    for seam, net in ((0, tiny.unet_sd()), (STEPS, tiny.small("sd"))):
        plain = plain_pipe("sd")
        plain.unet = net
        helper = DeepCacheSDHelper(pipe=plain)
        helper.set_params(cache_interval=2, cache_branch_id=0)
        helper.enable()
        assert torch.equal(run("sd", pipe, seam), run("sd", plain))


def test_with_deepcache_a_member_that_runs_twice_has_forgotten_its_first_steps():
    pipe = stitched_pipe("sd")
    enable_deepcache(pipe, cache_interval=3)
    replan(pipe, plan=Plan(("small", "large", "small", "small")))
    expected = by_hand("sd", lambda pipe, net: deepcache(pipe, net, cache_interval=3), 1, 2)
    assert torch.equal(tiny.run("sd", pipe, steps=STEPS), expected)


def test_deepcache_is_enabled_on_one_member_only():
    pipe = stitched_pipe("sd")
    uncached = {seam: run("sd", pipe, seam) for seam in (0, STEPS)}
    with stitched(pipe).only("large"):
        enable_deepcache(pipe)
    assert torch.equal(run("sd", pipe, STEPS), uncached[STEPS])
    assert not torch.equal(run("sd", pipe, 0), uncached[0])


def test_deepcache_serves_a_member_of_another_prediction_type_but_not_of_another_noise():
    v = {"small": tiny.DDIMScheduler(**tiny.SD_BETAS, prediction_type="v_prediction")}
    pipe = stitched_pipe("sd", processes=v)
    uncached = run("sd", pipe)
    enable_deepcache(pipe)
    assert not torch.equal(run("sd", pipe), uncached)
    pipe = stitched_pipe("sd", processes={"small": tiny.DDIMScheduler(beta_schedule="squaredcos_cap_v2")})
    with pytest.raises(StitchError, match=r"'small' has a noise schedule of its own"):
        enable_deepcache(pipe)
    with stitched(pipe).only("large"):
        enable_deepcache(pipe)
    run("sd", pipe)


def test_deepcache_is_switched_off_once_and_on_again():
    pipe = stitched_pipe("sd")
    disable = enable_deepcache(pipe)
    cached = run("sd", pipe)
    with pytest.raises(StitchError, match="on already"):
        enable_deepcache(pipe)
    disable()
    disable()
    disable = enable_deepcache(pipe)
    assert torch.equal(run("sd", pipe), cached)
    large = unstitch(pipe).unet
    disable()
    assert forwards(large) == []


def test_deepcaches_own_helper_is_refused_on_a_stitched_pipe():
    from DeepCache import DeepCacheSDHelper

    pipe = stitched_pipe("sd")
    uncached = run("sd", pipe)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    with pytest.raises(StitchError, match=r"hemstitch\.bridge\.enable_deepcache"):
        helper.enable()
    assert torch.equal(run("sd", pipe), uncached)


def test_what_deepcache_refuses_leaves_no_member_with_it():
    pipe = stitched_pipe("sd")
    uncached = run("sd", pipe)
    large = stitched(pipe).members["large"]
    middle, large.mid_block = large.mid_block, None
    with pytest.raises(AttributeError):
        enable_deepcache(pipe)
    large.mid_block = middle
    assert forwards(pipe.unet) == []
    assert torch.equal(run("sd", pipe), uncached)
    enable_deepcache(pipe)


def test_deepcache_is_refused_on_a_transformer():
    with pytest.raises(StitchError, match=r"U-Net's skip branches; this pipeline has a FluxTransformer2DModel"):
        enable_deepcache(stitched_pipe("flux"))


# cache-dit


def block_cache(pipe=None, net=None):
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=1, residual_diff_threshold=0.9
    )
    if net is not None:
        cache_dit.enable_cache(net, cache_config=config)
    return config


def attributes(model):
    return {name: {*vars(module), *module._modules} for name, module in model.named_modules()}


@pytest.mark.parametrize("family", ["flux", "wan"])
def test_cache_dit_begins_anew_at_each_seam_and_leaves_nothing(family):
    pipe = stitched_pipe(family)
    uncached = run(family, pipe)
    before, call = attributes(pipe.transformer), type(pipe).__call__
    disable = enable_cache_dit(pipe, cache_config=block_cache())
    assert not torch.equal(run(family, pipe), uncached)
    for seam in SEAMS:
        assert torch.equal(run(family, pipe, seam), by_hand(family, block_cache, seam)), seam
    with pytest.raises(StitchError, match="on already"):
        enable_cache_dit(pipe)
    disable()
    assert torch.equal(run(family, pipe, 2), uncached)
    assert attributes(pipe.transformer) == before
    assert type(pipe).__call__ is call


def test_cache_dit_leaves_no_module_behind():
    pipe = stitched_pipe("dit")
    uncached, before = run("dit", pipe), attributes(pipe.transformer)
    disable = enable_cache_dit(pipe, cache_config=block_cache())
    cached = run("dit", pipe)
    assert not torch.equal(cached, uncached)
    assert torch.equal(run("dit", pipe), cached)
    disable()
    assert torch.equal(run("dit", pipe), uncached)
    assert attributes(pipe.transformer) == before


def test_cache_dit_is_enabled_on_one_member_only():
    pipe = stitched_pipe("flux")
    uncached = {seam: run("flux", pipe, seam) for seam in (0, STEPS)}
    with stitched(pipe).only("large"):
        disable = enable_cache_dit(pipe, cache_config=block_cache())
    assert torch.equal(run("flux", pipe, STEPS), uncached[STEPS])
    assert not torch.equal(run("flux", pipe, 0), uncached[0])
    disable()


def test_cache_dit_caches_both_of_wans_denoisers():
    pipe = stitched_pipe("wan_two", 0)
    uncached = run("wan_two", pipe)
    disable = enable_cache_dit(pipe, cache_config=block_cache())
    plain = tiny.build("wan_two")
    block_cache(net=plain.transformer)
    one = run("wan_two", plain)
    plain = tiny.build("wan_two")
    for net in (plain.transformer, plain.transformer_2):
        block_cache(net=net)
    both = run("wan_two", plain)
    assert not torch.equal(both, one)
    assert torch.equal(run("wan_two", pipe), both)
    disable()
    assert torch.equal(run("wan_two", pipe), uncached)


def test_cache_dits_own_call_is_refused_on_a_stitched_pipe():
    import cache_dit

    pipe = stitched_pipe("flux")
    uncached, call = run("flux", pipe), type(pipe).__call__
    with pytest.raises(StitchError, match=r"hemstitch\.bridge\.enable_cache_dit"):
        cache_dit.enable_cache(pipe, cache_config=block_cache())
    cache_dit.disable_cache(pipe)
    assert type(pipe).__call__ is call
    assert torch.equal(run("flux", pipe), uncached)
    disable = enable_cache_dit(pipe, cache_config=block_cache())
    assert torch.equal(run("flux", pipe), by_hand("flux", block_cache, 2))
    disable()


# Packages that are not there


@pytest.mark.parametrize(
    ("enable", "module", "package"),
    [(enable_deepcache, "DeepCache", "DeepCache"), (enable_cache_dit, "cache_dit", "cache-dit")],
)
def test_an_absent_package_is_named_with_its_extra(enable, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package}(.|\n)*hemstitch\[caches\]"):
        enable(None)
