"""What each ablation of Switch-DiT changes, and the arithmetic of their summary. A few training steps at most."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hemstitch import models
from hemstitch.evaluate.score import Score
from hemstitch.models import DiT, NetConfig, SwitchDiT, build
from hemstitch.models.switch_dit import jensen_shannon
from hemstitch.process import Process
from reproduction import ablations, networks
from reproduction.ablations import BASE, VARIANTS, LabelGates, Renormalised, Skipless
from reproduction.fields import digits
from reproduction.work import Ledger

BY_NAME = {variant.name: variant for variant in VARIANTS}
CONFIG = NetConfig("switch_dit", 8, 1, 2, 16, 3, 2, num_classes=10, learned_variance=False)
TIMES = torch.tensor([0, 300, 700, 999])
LABELS = torch.tensor([0, 3, 9, 10])


@cache
def base():
    return ablations.base(where())


def where():
    return digits(Path("nowhere"))


def grown(network, config=CONFIG):
    """A network whose every weight counts, the same for every class with these shapes."""
    net = network(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return net


def answer(net, y=LABELS):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return net(torch.randn(4, 1, 8, 8, generator=generator), TIMES, y)


# What a variant is


CHANGED = {
    "dit": {"net.family"},
    "dtr": {"net.family"},
    "prior-0": {"train.prior_weight"},
    "prior-0.1": {"train.prior_weight"},
    "prior-10": {"train.prior_weight"},
    "experts-2-1": {"net.experts", "net.top_k"},
    "experts-3-1": {"net.top_k"},
    "experts-3-3": {"net.top_k"},
    "experts-4-2": {"net.experts"},
    "experts-8-2": {"net.experts"},
    "experts-8-4": {"net.experts", "net.top_k"},
    "renormalised": {Renormalised},
    "skipless": {Skipless},
    "label-gates": {LabelGates},
    "eps": {"process.prediction"},
    "cosine": {"process.schedule"},
    "min-snr": {"train.weighting"},
    "ant-uw": {"train.weighting"},
}


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda variant: variant.name)
def test_a_variant_differs_from_the_base_in_one_thing(variant):
    plain, recipe = BASE.recipe(base(), 1), variant.recipe(base(), 1)
    changed = {*recipe.difference(plain)} - {"name"}
    if variant.network is not SwitchDiT:
        changed.add(variant.network)
    assert changed == CHANGED[variant.name]
    assert recipe.train.seed == 1


def test_the_base_is_as_published_but_predicts_v():
    recipe = BASE.recipe(base(), 0)
    assert (recipe.net.experts, recipe.net.top_k, recipe.train.prior_weight) == (3, 2, 1)
    assert (recipe.process, recipe.train.weighting) == (Process("linear", "v"), "constant")


def test_a_variant_stands_for_switch_dit_only_meanwhile():
    with BY_NAME["skipless"].installed():
        assert type(build(CONFIG)) is Skipless
        assert type(build(replace(CONFIG, family="dit"))) is DiT
    assert type(build(CONFIG)) is SwitchDiT
    with pytest.raises(RuntimeError), BY_NAME["renormalised"].installed():
        raise RuntimeError
    assert models.MODELS["switch_dit"] is SwitchDiT


def test_the_base_is_what_it_was_after_a_variant():
    before = answer(grown(SwitchDiT))
    for variant in VARIANTS:
        with variant.installed():
            grown(variant.network)
    assert torch.equal(answer(grown(SwitchDiT)), before)


# What the subclasses change


def test_renormalised_gates_sum_to_one_and_are_otherwise_the_same():
    base, net = grown(SwitchDiT), grown(Renormalised)
    e_BD = base.t_embedder(TIMES)
    for plain, gate in zip(base.routing(e_BD, TIMES), net.routing(e_BD, TIMES), strict=True):
        assert plain.sum(1).min() < 0.99
        torch.testing.assert_close(gate.sum(1), torch.ones(4))
        torch.testing.assert_close(gate * plain.sum(1, keepdim=True), plain)
    assert torch.equal(net.gate_probabilities(TIMES), base.gate_probabilities(TIMES))  # the prior's, before the top k
    assert not torch.allclose(answer(net), answer(base))


def test_without_the_skip_the_input_only_goes_through_the_block():
    net = grown(Skipless)
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda block, given, out: seen.append((block, given, out)))
    answer(net)
    assert len(seen) == CONFIG.depth
    z = None
    for (block, given, out), router in zip(seen, net.routers, strict=True):
        routed, c = given
        assert torch.equal(out, type(block).forward(block, routed, c))
        if z is not None:  # what one block says is all that the next one's router is given
            gate = net.routing(net.t_embedder(TIMES), TIMES)[[*net.routers].index(router)]
            assert torch.equal(routed, router(z, gate))
        z = out


def test_the_skip_matters_once_experts_are_not_zero():
    base, net = grown(SwitchDiT), grown(Skipless)
    assert not torch.allclose(answer(net), answer(base))
    for one in (base, net):
        for router in one.routers:
            torch.nn.init.zeros_(router.experts.w)
            torch.nn.init.zeros_(router.experts.b)
    torch.testing.assert_close(answer(net), answer(base))


def test_gates_by_label_follow_the_label_and_without_it_are_the_base():
    base, net = grown(SwitchDiT), grown(LabelGates)
    p_BYNM = net.gates_by_label(TIMES)
    assert p_BYNM.shape == (4, 11, 3, 3)
    assert (p_BYNM - p_BYNM[:, :1]).abs().max() > 0.01
    c_BD = net.t_embedder(TIMES) + net.y_embedder(LABELS)
    for n, gate_BM in enumerate(net.routing(c_BD, TIMES)):
        used = gate_BM > 0
        torch.testing.assert_close(gate_BM[used], p_BYNM[torch.arange(4), LABELS, n][used])
    assert not torch.allclose(answer(net), answer(base))
    for one in (base, net):
        torch.nn.init.zeros_(one.y_embedder.embedding_table.weight)
    torch.testing.assert_close(answer(net), answer(base))
    torch.testing.assert_close(net.prior_loss(TIMES), base.prior_loss(TIMES))


@pytest.mark.parametrize("network", [Renormalised, Skipless, LabelGates])
def test_a_variant_answers_in_bfloat16_as_it_is_judged(network):
    net = grown(network)
    wanted, found = answer(net), answer(net.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float().flatten(), wanted.flatten(), 0) > 0.99


def test_gates_by_label_see_times_as_exactly_under_autocast_as_the_base_does():
    base, net = grown(SwitchDiT), grown(LabelGates)
    for one in (base, net):
        torch.nn.init.zeros_(one.y_embedder.embedding_table.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(answer(net), answer(base))


def test_the_network_routes_by_the_gates_of_its_label():
    net = grown(LabelGates)
    given = []
    net.routers[0].register_forward_hook(lambda router, args, out: given.append(args[1]))
    answer(net)
    p_BM = net.gates_by_label(TIMES)[torch.arange(4), LABELS, 0]
    used = given[0] > 0
    assert (used.sum(1) == CONFIG.top_k).all()
    torch.testing.assert_close(given[0][used], p_BM[used])


def test_with_gates_by_label_the_prior_is_on_their_mean_at_each_timestep():
    net = grown(LabelGates)
    prior_TU = net.begin_matching().prior()
    P = net.gates_by_label(TIMES).mean(1).flatten(1) / CONFIG.depth
    R = prior_TU[TIMES] / prior_TU[TIMES].sum(1, keepdim=True)
    torch.testing.assert_close(net.prior_loss(TIMES), jensen_shannon(P, R).mean())


# What is said of the gates


def test_selections_are_counted():
    """Block 0 always selects experts 0 and 1, block 1 changes its second one at T / 2, block 2 all three evenly."""
    net = SwitchDiT(CONFIG)

    def gates(t_B):
        half = (t_B >= 500).float()
        p = torch.zeros(len(t_B), 3, 3)
        p[:, 0] = torch.tensor([0.6, 0.3, 0.1])
        p[:, 1, 0], p[:, 1, 1], p[:, 1, 2] = 0.5, 0.4 - 0.3 * half, 0.1 + 0.3 * half
        p[:, 2] = torch.eye(3)[(t_B % 3).long()] * -0.3 + 0.4
        return p

    net.gate_probabilities = gates
    found = ablations.selections(net)
    assert (found["experts"], found["never"]) == (9, 1)
    assert found["most_used"] == pytest.approx([1000, 1000, 667])
    assert found["shared"] == [2, 1, 0]
    assert "between_labels" not in found


def test_selections_of_gates_by_label_are_a_mean_over_labels():
    net = grown(LabelGates, replace(CONFIG, top_k=1))
    found = ablations.selections(net)
    p_TYNM = net.gates_by_label(torch.arange(1000))
    most = torch.nn.functional.one_hot(p_TYNM.argmax(-1), 3).double().mean((0, 1)).max(1).values
    assert found["most_used"] == pytest.approx((1000 * most).tolist())
    assert 0 < found["between_labels"] < 1
    torch.nn.init.zeros_(net.y_embedder.embedding_table.weight)
    assert ablations.selections(net)["between_labels"] == 1


def test_what_two_labels_have_in_common():
    chosen = torch.tensor([[1.0, 1, 0], [1, 0, 1], [1, 1, 0]])  # (Y, M): pairs share 1, 2 and 1 of 2
    assert ablations.in_common(chosen[None, :, None]) == pytest.approx(4 / 6)


# Training and judging


def tiny(variant, steps):
    recipe = variant.recipe(base(), 0)
    net = replace(recipe.net, width=16, depth=2, heads=2)
    return replace(recipe, net=net, train=replace(recipe.train, steps=steps, batch=8, checkpoint_every=2, log_every=1))


@pytest.mark.parametrize("name", ["renormalised", "skipless", "label-gates"])
def test_a_variant_trains_as_itself_and_goes_on_as_itself(name, tmp_path):
    variant = BY_NAME[name]
    told = ablations.taught(variant, tiny(variant, 4), tmp_path / "whole")
    assert told["network"] == variant.network.__name__
    for steps in (2, 4):
        ablations.taught(variant, tiny(variant, steps), tmp_path / "parts")
    ablations.taught(BASE, replace(tiny(BASE, 4), name=tiny(variant, 4).name), tmp_path / "base")

    def weights(run):
        [newest] = (tmp_path / run).glob("checkpoints/*4/model.safetensors")
        return load_file(newest)

    whole, parts, plain = (weights(run) for run in ("whole", "parts", "base"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(not torch.equal(whole[key], plain[key]) for key in whole)


def test_what_is_judged_and_looked_at_is_the_variant(tmp_path, monkeypatch):
    variant = BY_NAME["skipless"]
    recipe = tiny(variant, 2)
    ablations.taught(variant, recipe, tmp_path)
    seen = []

    def judged(where, model, *rest):
        seen.append(type(model.net))
        return {"distance": Score(1.0, np.array([0.9, 1.1]), resampled=10)}

    monkeypatch.setattr(ablations, "judged", judged)
    assert ablations.judge(where(), variant, tmp_path, 2, tmp_path, 0)["distance"]["value"] == 1
    assert seen == [Skipless]
    assert type(networks.at(tmp_path, 2).net) is SwitchDiT
    looked = ablations.experts(variant, recipe, tmp_path)
    torch.manual_seed(0)
    assert looked["untrained"] == ablations.selections(Skipless(recipe.net))
    assert looked["trained"]["divergence"] != looked["untrained"]["divergence"]


def test_tasks_have_names_of_their_own_needs_that_are_made_and_marks_that_are_saved(tmp_path):
    tasks = ablations.tasks(tmp_path)
    names = [task.name for task in tasks]
    assert len({*names}) == len(names)
    assert {need for task in tasks for need in task.needs} <= {*names}
    recipe = BASE.recipe(base(), 0)
    assert all(mark % recipe.train.checkpoint_every == 0 for mark in ablations.MARKS)
    assert ablations.MARKS[-1] == recipe.train.steps
    assert not [name for name in names if name.startswith(("ablations/experts/dit", "ablations/experts/dtr"))]


# The summary


def ledger(folder, distance):
    """Results of all tasks; distance: of a variant by name, seed and mark."""
    made = Ledger(folder)
    for task in ablations.tasks(folder):
        _, kind, *rest = task.name.split("/")
        told = {"milliseconds_a_step": 1.0, "parameters": 5}
        if kind == "judged":
            variant, seed = rest[0].rsplit("-", 1)
            value = {"value": distance(variant, int(seed), int(rest[1])), "error": 0.1, "samples": 5000}
            told = dict.fromkeys(("distance", "precision", "recall", "accuracy"), value)
        if kind == "experts":
            seed = int(rest[0].rsplit("-", 1)[1])
            told = {"untrained": {"never": 0}, "trained": {"never": seed}}
        made.path(task.name).parent.mkdir(parents=True, exist_ok=True)
        made.path(task.name).write_text(json.dumps(told))
    return made


def test_the_summary_says_gaps_and_what_may_be_said_of_them(tmp_path):
    last = ablations.MARKS[-1]

    def distance(variant, seed, mark):
        """Seeds differ much, and alike; DTR and no prior are worse on all by nearly the same, Min-SNR by the half mark
        only."""
        shift = {"dtr": 1 + 0.01 * seed, "prior-0": 1 + 0.01 * seed, "min-snr": 50.0 if mark < last else 0.0}.get(
            variant, 0.0
        )
        return 10 + 5 * seed + shift

    found = ablations.summary(ledger(tmp_path, distance))["variants"]
    plain, dtr = (found[name]["steps"][str(last)]["distance"] for name in ("base", "dtr"))
    seeds = np.array(ablations.SEEDS)
    values = 10 + 5.0 * seeds
    assert plain["mean"] == pytest.approx(values.mean())
    assert plain["values"] == pytest.approx(values.tolist())
    student = {3: 4.303, 5: 2.776}[len(seeds)]
    assert plain["half_width"] == pytest.approx(student * values.std(ddof=1) / len(seeds) ** 0.5, rel=1e-3)
    assert "to_base" not in plain
    assert dtr["to_base"]["gap"] == pytest.approx(1 + 0.01 * seeds.mean())
    assert (dtr["to_base"]["said"], dtr["to_base"]["welch"]["said"]) == ("higher", "no difference")
    half = found["min-snr"]["steps"][str(ablations.MARKS[0])]["distance"]["to_base"]
    assert (half["gap"], half["welch"]["said"]) == (50, "higher")
    assert found["min-snr"]["steps"][str(last)]["distance"]["to_base"]["gap"] == 0
    paired = found["prior-0"]["steps"][str(last)]["distance"]["to_base"]
    spread = (0.01 * seeds).std(ddof=1) / len(seeds) ** 0.5
    assert paired["said"] == "higher"
    assert paired["half_width"] == pytest.approx(student * spread, rel=1e-3)
    assert found["base"]["experts"]["trained"]["never"] == list(ablations.SEEDS)
    assert "experts" not in found["dit"]
