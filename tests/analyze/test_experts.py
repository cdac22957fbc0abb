"""Oracle: gates set by hand, the matching by brute force, the prior loss by scipy and by the network itself."""

from itertools import permutations

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from hemstitch.analyze import findings
from hemstitch.analyze.experts import affinity, expert_use, likeness
from hemstitch.models import NetConfig, build
from hemstitch.models.switch_dit import switch_prior


def network(timesteps=4, depth=2, experts=3, top_k=2, seed=0):
    torch.manual_seed(seed)
    net = build(
        NetConfig(
            "switch_dit",
            input_size=4,
            channels=1,
            patch=2,
            width=8,
            depth=depth,
            heads=2,
            num_classes=0,
            experts=experts,
            top_k=top_k,
            timesteps=timesteps,
        )
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net.eval()


def with_gates(net, map_TNM):
    """The same network, its gates a table by timestep."""
    net.gate_probabilities = lambda t: map_TNM[t.long()]
    return net


@pytest.fixture(scope="module")
def by_hand():
    """Block 0 changes from experts 0 and 1 to 1 and 2 half-way; block 1 has 0 and 1 always."""
    early, late, always = [0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1]
    return expert_use(with_gates(network(), torch.tensor([[early, always]] * 2 + [[late, always]] * 2)))


def test_usage_of_gates_set_by_hand(by_hand):
    assert by_hand.selected[0].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert by_hand.selected[3].tolist() == [[0, 1, 1], [1, 1, 0]]
    assert by_hand.usage.tolist() == [[0.5, 1, 0.5], [1, 1, 0]]
    assert by_hand.never == [(1, 2)]
    assert by_hand.shared == [(0, 1), (1, 0), (1, 1)]
    said = findings.of_usage(by_hand)
    assert "1 of 6 experts are never selected: 1/2 (block/expert)." in said
    assert "2 of 2 blocks have a shared expert" in said
    assert "0/1, 1/0, 1/1 (block/expert)" in said


def test_affinity_of_gates_set_by_hand(by_hand):
    assert by_hand.times.tolist() == [0, 1, 2, 3]
    # block 0 keeps one expert of two, block 1 both
    half = torch.ones(2, 2, dtype=torch.float64)
    expected = torch.cat([torch.cat([half, 0.75 * half], 1), torch.cat([0.75 * half, half], 1)])
    assert torch.equal(by_hand.affinity, expected)
    inner = 0.6 * 0.1 + 0.3 * 0.3 + 0.1 * 0.6 + (0.5**2 + 0.4**2 + 0.1**2)
    square = (0.6**2 + 0.3**2 + 0.1**2) + (0.5**2 + 0.4**2 + 0.1**2)
    assert float(by_hand.likeness[0, 2]) == pytest.approx(inner / square, rel=1e-6)
    assert float(by_hand.likeness[0, 1]) == pytest.approx(1, rel=1e-6)


def test_disjoint_selections_have_no_affinity():
    selected = torch.tensor([[[1.0, 1, 0, 0]], [[0, 0, 1, 1]], [[0, 1, 1, 0]]])
    assert affinity(selected).tolist() == [[1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 1]]
    assert float(likeness(selected)[0, 1]) == 0


def test_where_all_experts_always_run_none_is_called_shared():
    use = expert_use(network(experts=2, top_k=2))
    assert use.usage.eq(1).all()
    assert use.shared == use.never == []
    assert "nothing to route" in findings.of_usage(use)


@pytest.mark.parametrize("seed", range(4))
def test_the_matched_prior_is_the_best_of_all_permutations(seed):
    net = network(timesteps=16, seed=seed)
    use = expert_use(net)
    prior_TU, selected_TU = switch_prior(net.config), use.selected.flatten(1)
    costs = [float((prior_TU[:, list(order)] - selected_TU).abs().sum()) for order in permutations(range(6))]
    matched_TU = use.prior.flatten(1)
    assert sorted(matched_TU.T.tolist()) == sorted(prior_TU.T.tolist())
    assert float((matched_TU - selected_TU).abs().sum()) == min(costs) < max(costs)


def test_prior_loss_is_the_networks_and_scipys():
    net = network(timesteps=16)
    use = expert_use(net)
    with torch.no_grad():
        assert float(use.prior_loss.mean()) == pytest.approx(float(net.prior_loss(torch.arange(16))), rel=1e-5)
    for t in range(16):
        P, R = use.probabilities[t].double().flatten(), use.prior[t].double().flatten()
        assert float(use.prior_loss[t]) == pytest.approx(jensenshannon(P, R) ** 2, abs=2e-4)  # scipy has no epsilon


def test_which_experts_they_are_is_the_matchings_to_find_out():
    """The share of selections within the prior is the best of all permutations, whatever the experts are called."""
    net = network(timesteps=16)
    map_TNM = torch.rand(16, 2, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    use = expert_use(with_gates(net, map_TNM))
    prior_TU, selected_TU = switch_prior(net.config), use.selected.flatten(1)
    shares = [
        float((prior_TU[:, list(order)] * selected_TU).sum() / selected_TU.sum()) for order in permutations(range(6))
    ]
    assert use.fit == pytest.approx(max(shares))
    renamed = expert_use(with_gates(net, map_TNM.flip(1, 2)))
    assert renamed.fit == use.fit < 1
    assert f"{max(shares):.1%} of the model's selections" in findings.of_selection(use)


def test_long_schedules_are_thinned_for_affinity_alone():
    use = expert_use(network(timesteps=1000))
    assert use.probabilities.shape == (1000, 2, 3)
    assert use.affinity.shape == use.likeness.shape == (100, 100)
    assert (int(use.times[0]), int(use.times[-1])) == (0, 999)
