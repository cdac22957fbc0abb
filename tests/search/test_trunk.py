"""Plans sampled together are the plans sampled alone."""

from __future__ import annotations

import pytest
import torch

from hemstitch import NetConfig, NetDenoiser, Plan, Process, Spec, Stitched, build, generate
from hemstitch.samplers import SAMPLERS
from hemstitch.stitch.search.evidence import Evidence, anchors_of, measured
from hemstitch.stitch.search.frontier import Option
from hemstitch.stitch.search.trunk import Candidate, Ground, edges, sampled

SPEC = Spec(1, 4, 3, null_label=True)


def network(seed, process, width=16):
    torch.manual_seed(seed)
    net = build(NetConfig("dit", 4, 1, 2, width, 2, 2, 3, learned_variance=process.learned_variance))
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return NetDenoiser(net.eval(), process, SPEC)


@pytest.fixture(scope="module")
def members():
    linear = Process("linear")
    return {"small": network(0, linear, 8), "middle": network(1, linear), "large": network(2, linear)}


def ground(members, sampler="ddim", batch=4, **more):
    return Ground(members, torch.arange(12) % 3, SAMPLERS[sampler], batch=batch, **more)


def candidate(text, guided=False):
    names = {"s": "small", "m": "middle", "l": "large"}
    return Candidate(Plan.explicit([names[c] for c in text]), (guided,) * len(text))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_to_generate_to_the_bit(members, sampler, guidance):
    plans = [candidate(t, guidance != 1) for t in ("llllll", "ssssss", "ssslll", "sslsll", "lllsss", "smlsml", "llll")]
    found = dict(sampled(ground(members, sampler, guidance=guidance), plans, range(4, 8)))
    assert set(found) == set(plans)
    for plan, x in found.items():
        model = Stitched(members, plan.plan)
        seeds, labels = [(0, i) for i in range(4, 8)], [1, 2, 0, 1]
        assert torch.equal(x, generate(model, labels, seeds=seeds, sampler=sampler, guidance=guidance))


def test_guidance_at_some_steps_is_an_interval_of_log_snr(members):
    asked = ground(members, guidance=3.0, guidance_interval=(-2.0, 2.0))
    guided = asked.guided(6, members["large"].process)
    assert 0 < sum(guided) < 6
    plan = Candidate(Plan.explicit(["small"] * 3 + ["large"] * 3), guided)
    ((_, x),) = sampled(asked, [plan], range(4))
    model = Stitched(members, plan.plan)
    options = {"guidance": 3.0, "guidance_interval": (-2.0, 2.0), "seeds": [(0, i) for i in range(4)]}
    assert torch.equal(x, generate(model, [0, 1, 2, 0], **options))


def test_plans_that_end_in_another_process(members):
    flow = network(3, Process("flow", "flow"))
    both = {"small": members["small"], "flow": flow}
    plans = [
        Candidate(Plan.explicit(names), (False,) * 4) for names in (["small"] * 3 + ["flow"], ["flow"] * 3 + ["small"])
    ]
    where = Ground(both, torch.zeros(4, dtype=torch.int64), SAMPLERS["ddim"])
    for plan, x in sampled(where, plans, range(4)):
        assert torch.equal(x, generate(Stitched(both, plan.plan), [0] * 4))


def test_what_plans_share_is_computed_once(members, monkeypatch):
    plans = [candidate(t) for t in ("ssssss", "ssssll", "ssllll", "llllll", "lll")]
    asked = []
    original = NetDenoiser.__call__

    def counted(self, *args, **kwargs):
        asked.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(NetDenoiser, "__call__", counted)
    where = ground(members)
    list(sampled(where, plans, range(4)))
    assert asked.count(members["small"]) == 6
    assert asked.count(members["large"]) == 2 + 4 + 6 + 3
    expected = [option for option, _, _ in edges(where, plans)]
    assert expected.count(Option("small", False)) == 6
    assert expected.count(Option("large", False)) == 15


def test_evidence_is_the_effect_of_a_single_step(members):
    """At the anchors `effect` is, by definition, what the plan with that one step replaced comes to."""
    where = ground(members, batch=12)
    options = [Option(name, False) for name in members]
    usual = [Option("large", False)] * 6
    (evidence,) = measured(where, 6, options, usual, 12)
    only_small = Evidence.from_data(evidence.to_data())
    large = generate(members["large"], [i % 3 for i in range(12)], steps=6)
    for s in anchors_of(6):
        text = "llllll"[:s] + "s" + "llllll"[s + 1 :]
        ((_, x),) = sampled(where, [candidate(text)], range(12))
        (effect,) = measured_alone(where, members, s)
        assert effect == pytest.approx(float(torch.mean((x - large).double() ** 2)), rel=1e-4)
    assert (only_small.effect == evidence.effect).all()
    assert (evidence.effect[2] == 0).all()  # the largest is what it is held against
    assert (evidence.effect[:2] > 0).all()
    assert evidence.gain[-1] == pytest.approx(1)


def measured_alone(where, members, s):
    options, usual = [Option("small", False), Option("large", False)], [Option("large", False)] * 6
    (evidence,) = measured(where, 6, options, usual, 12)
    yield evidence.effect[0, s]


def test_evidence_does_not_depend_on_the_batch(members):
    options, usual = [Option("small", False), Option("large", False)], [Option("large", False)] * 5
    *_, whole = measured(ground(members, batch=12), 5, options, usual, 12)
    *_, parts = measured(ground(members, batch=5), 5, options, usual, 12)
    assert parts.samples == 12
    assert parts.effect == pytest.approx(whole.effect, rel=1e-4)
