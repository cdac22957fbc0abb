"""Oracle: denoisers known in closed form. Invariance: the loop is sampling's own, batches change nothing."""

import pytest
import torch

from hemstitch import Guided, HemstitchError, NetConfig, NetDenoiser, Plan, Process, Spec, StitchError, build, generate
from hemstitch.analyze.agreement import Band, cosine, relative_distance
from hemstitch.analyze.study import Samples, study
from hemstitch.analyze.trajectory import visits
from hemstitch.data.mixture import Mixture, MixtureDenoiser
from hemstitch.grid import timesteps
from hemstitch.samplers import SAMPLERS
from hemstitch.sampling import prepare, sample
from hemstitch.seeds import keys, normal

LINEAR, FLOW = Process("linear"), Process("flow", "flow")
LABELS = torch.arange(6) % 5


def point(seed, process=LINEAR, size=6):
    """The best denoiser of data that are one image (all but exactly): it foresees that image from anywhere."""
    mean = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixture = Mixture(mean, torch.tensor([1e-9], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    return MixtureDenoiser(mixture, process), mean


def network(seed, size=8):
    spec = Spec(2, size, 5, null_label=True)
    torch.manual_seed(seed)
    config = NetConfig(
        input_size=spec.size,
        channels=spec.channels,
        patch=4,
        width=16,
        depth=1,
        heads=2,
        num_classes=spec.num_classes,
        learned_variance=False,
    )
    net = build(config)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return NetDenoiser(net.eval(), LINEAR, spec)


@pytest.fixture(scope="module")
def members():
    return {"small": network(0), "large": network(1)}


def studied(members, num=6, labels=LABELS, plan=None, batch=32, seed=0, **look):
    for turn in study(members, Samples(num, labels, seed, batch), plan, **look):
        last = turn
    assert last.done == last.total
    return last.study


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_visits_are_the_samples_own_trajectory(members, sampler):
    options = {"steps": 5, "sampler": sampler, "guidance": 1.5, "seeds": [(0, i) for i in range(6)]}
    seen = list(visits(prepare(members["large"], LABELS, **options)))
    expected = list(sample(members["large"], LABELS, **options))
    assert [v.index for v in seen] == list(range(6))
    assert torch.equal(seen[0].x, normal(keys(options["seeds"]), 0, (2, 8, 8)))
    for visit, step in zip(seen[1:], expected, strict=True):
        assert torch.equal(visit.x, step.x)
    assert seen[-1].prediction is None
    asked = Guided(members["large"], 1.5)(seen[2].x, seen[2].t, LABELS)
    assert torch.equal(seen[2].prediction.x0, asked.x0)  # about x, even where a sampler asks twice


def test_identical_members_agree_everywhere():
    found = studied({"a": network(3), "b": network(3)}, steps=4, guidance=2.0)
    one, none = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for like in (found.x0["a"], found.eps["a"]):
        for values, expected in ((like.cosine, one), (like.distance, none)):
            assert torch.equal(values.mean, expected)
            assert torch.equal(values.low, expected)
            assert torch.equal(values.high, expected)
    assert torch.equal(found.latents["a"].mean, torch.ones(5, dtype=torch.float64))
    assert torch.equal(found.spectra["a"].x, found.spectra["b"].x)
    assert found.reference == "b"
    assert set(found.latents) == set(found.x0) == set(found.eps) == {"a"}


def test_two_known_images():
    """x0 of either member is its image wherever it is asked, so that likeness has a closed form at every step."""
    (a, mean_a), (b, mean_b) = point(1), point(2)
    found = studied({"a": a, "b": b}, num=4, labels=None, steps=6)
    torch.testing.assert_close(found.x0["a"].cosine.mean, cosine(mean_a, mean_b).expand(6))
    torch.testing.assert_close(found.x0["a"].distance.high, ((mean_a - mean_b).norm() / mean_b.norm()).expand(6))
    torch.testing.assert_close(found.latents["a"].mean[[0, -1]], torch.cat([torch.ones(1), cosine(mean_a, mean_b)]))
    for spectra in found.spectra.values():
        for band in ("low", "middle", "high"):
            torch.testing.assert_close(spectra.power[band], torch.ones(6, dtype=torch.float64), rtol=1e-4, atol=0)
            assert float(spectra.unsettled[band].max()) < 1e-4
    torch.testing.assert_close(found.t, timesteps(LINEAR, 6))
    torch.testing.assert_close(found.log_snr, LINEAR.log_snr(found.t))


def test_across_processes_equal_denoisers_agree():
    """The same data learned under the linear interpolant and under DDPM's process: one trajectory, that of the last."""
    mixture = Mixture.random(3, 1, 6, seed=1)
    members = {"flow": MixtureDenoiser(mixture, FLOW), "linear": MixtureDenoiser(mixture, LINEAR)}
    found = studied(members, num=4, labels=None, steps=6)
    assert found.foreign == ("flow",)
    one = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(found.latents["flow"].low[:-1], one, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.eps["flow"].cosine.low, one, rtol=0, atol=1e-5)
    assert float(found.x0["flow"].distance.high.max()) < 1e-4


def test_predictions_are_about_the_references_latents_and_guided(members):
    found = studied(members, steps=4, guidance=3.0)
    x = normal(keys([(0, i) for i in range(6)]), 0, (2, 8, 8))
    t = timesteps(LINEAR, 4)[:1].expand(6)
    with torch.no_grad():
        small, large = (Guided(members[name], 3.0)(x, t, LABELS) for name in ("small", "large"))
    expected = Band.of(cosine(small.eps, large.eps)[None])
    torch.testing.assert_close(found.eps["small"].cosine.mean[:1], expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.eps["small"].cosine.low[:1], expected.low, rtol=1e-5, atol=1e-6)
    end = [generate(m, LABELS, steps=4, guidance=3.0) for m in members.values()]
    torch.testing.assert_close(found.latents["small"].mean[-1], cosine(*end).mean(), rtol=1e-5, atol=1e-6)
    assert float(found.latents["small"].mean[-1]) < 0.999


def test_batches_change_nothing(members):
    whole, parts = (studied(members, steps=3, batch=batch) for batch in (6, 4))
    for ours, theirs in ((whole.latents, parts.latents), (whole.eps["small"].__dict__, parts.eps["small"].__dict__)):
        for name in ours:
            torch.testing.assert_close(ours[name].low, theirs[name].low, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.spectra["small"].gap, parts.spectra["small"].gap, rtol=1e-4, atol=1e-8)
    other = studied(members, steps=3, seed=1)
    assert not torch.allclose(other.latents["small"].mean, whole.latents["small"].mean, rtol=1e-5)


def test_a_plan_follows_its_member_until_the_seam(members):
    found = studied(members, plan=Plan.steps_each({"small": 2, "large": 2}))
    assert found.steps == 4
    small, plan = found.latents["small"].mean, found.latents["the plan"].mean
    assert torch.equal(small[:3], plan[:3])
    assert not torch.allclose(small[3:], plan[3:], rtol=1e-6)
    assert set(found.x0) == {"small"}
    assert set(found.spectra) == {"small", "large", "the plan"}
    alone = studied(members, plan=Plan.explicit(["large"] * 4))
    assert torch.equal(alone.latents["the plan"].low, torch.ones(5, dtype=torch.float64))


def test_one_model_has_nothing_to_be_compared_with():
    found = studied({"only": network(1)}, steps=3)
    assert found.latents == found.x0 == found.eps == {}
    assert found.spectra["only"].x.shape == (4, 7)
    assert found.spectra["only"].x0.shape == found.spectra["only"].gap.shape == (3, 7)


def test_cosine_and_distance_by_hand():
    a = torch.tensor([[1.0, 0], [0, 2], [0, 0], [0, 0], [3, 4]])
    b = torch.tensor([[1.0, 1], [0, -1], [0, 0], [1, 0], [3, 4]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([0.5**0.5, -1, 1, 0, 1], dtype=torch.float64))
    torch.testing.assert_close(relative_distance(a, b), torch.tensor([0.5**0.5, 3, 0, 1, 0], dtype=torch.float64))


def test_bands_are_quantiles_over_samples():
    band = Band.of(torch.arange(11.0)[None])
    assert (float(band.mean), float(band.low), float(band.high)) == pytest.approx((5, 1, 9))


def test_bad_studies_are_refused_at_once(members):
    with pytest.raises(HemstitchError, match="steps is at least 1, not 0"):
        study(members, Samples(6, LABELS), steps=0)
    with pytest.raises(HemstitchError, match="at least 1 sample"):
        Samples(0)
    with pytest.raises(HemstitchError, match="call the member something else"):
        study({"the plan": members["small"]}, Samples(6, LABELS))
    with pytest.raises(StitchError, match="size: small has 8, odd has 4"):
        study({"small": members["small"], "odd": network(0, size=4)}, Samples(6, LABELS))
    with pytest.raises(HemstitchError, match="6 labels for 7 samples"):
        study(members, Samples(7, LABELS, batch=6))
    with pytest.raises(HemstitchError, match="at least one model"):
        study({})
    with pytest.raises(HemstitchError, match="6 steps"):
        study(members, Samples(6, LABELS), Plan.explicit(["large"] * 6), steps=5)


def test_a_trajectory_that_breaks_is_named(members):
    broken = network(0)
    torch.nn.init.constant_(broken.net.final_layer.linear.bias, float("nan"))
    with pytest.raises(HemstitchError, match="samples of broken are no longer finite numbers after 1 steps"):
        studied({"broken": broken, "large": members["large"]}, steps=3)
