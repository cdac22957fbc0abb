"""Loss weights against their formulas, written out here by hand."""

import math

import pytest
import torch

from hemstitch import HemstitchError, NetConfig, Process, build
from hemstitch.recipe import TrainRecipe
from hemstitch.train.objective import Objective
from hemstitch.train.weighting import CLUSTERS, WEIGHTINGS, Uncertainty, min_snr, of_x0_loss, own_parameters, p2

T_B = torch.tensor([0, 10, 250, 500, 999])


def snr(process, t):
    bar = float(process.alphas_cumprod()[int(t)])
    return bar / (1 - bar)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr(gamma):
    """min(SNR, γ)/SNR for eps (PAPERS 1.5), over SNR + 1 for v, min(SNR, γ) for x0 (Hang et al. 2023)."""
    for prediction, over in (("eps", lambda s: s), ("v", lambda s: s + 1), ("x0", lambda s: 1.0)):
        process = Process("linear", prediction)
        expected = [min(s, gamma) / over(s) for s in (snr(process, t) for t in T_B)]
        assert min_snr(process, T_B, gamma).tolist() == pytest.approx(expected, rel=1e-5)


def test_p2():
    """1 / (k + SNR)^γ for eps, one per sample."""
    process = Process("cosine", "eps")
    for k, gamma in ((1.0, 1.0), (1.0, 0.5), (2.0, 1.0)):
        expected = [1 / (k + snr(process, t)) ** gamma for t in T_B]
        weight_B = p2(process, T_B, k, gamma)
        assert weight_B.shape == (5,)
        assert weight_B.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "process",
    [Process("linear", p) for p in ("eps", "v", "x0")] + [Process("flow", p) for p in ("eps", "v", "x0", "flow")],
    ids=lambda p: f"{p.schedule}-{p.prediction}",
)
def test_a_weight_means_the_same_loss_on_x0_whatever_is_predicted(process):
    """An error of the output, turned into one of x_0 by the process itself, has the ratio that weightings divide by."""
    t_B = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * process.t_max
    t_B = t_B if process.is_flow else t_B.round()
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    output, error = torch.randn_like(x), 1e-3 * torch.randn_like(x)
    moved = process.x0_eps(output + error, x, t_B)[0] - process.x0_eps(output, x, t_B)[0]
    ratio_B = error.square().sum((1, 2, 3)) / moved.square().sum((1, 2, 3))
    assert of_x0_loss(process, t_B).tolist() == pytest.approx(ratio_B.tolist(), rel=1e-6)


def test_uncertainty():
    """½(exp(-s_k)·loss + s_k), clusters of 125 timesteps; its gradient is zero where s = log loss."""
    weighting = Uncertainty()
    assert len(weighting.log_scale) == CLUSTERS == 8
    process, t_B = Process(), torch.tensor([0, 124, 125, 999])
    mse_B, vb_B = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.5, 0.0, 0.0, 1.0])
    with torch.no_grad():
        weighting.log_scale.copy_(torch.arange(8) / 4 - 1)
    _, loss_B = weighting(process, t_B, mse_B, vb_B)
    s = [-1.0, -1.0, -0.75, 0.75]
    total = (mse_B + vb_B).tolist()
    expected = [(math.exp(-a) * b + a) / 2 for a, b in zip(s, total, strict=True)]
    assert loss_B.tolist() == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        weighting.log_scale.fill_(math.log(3.0))
    weighting(process, torch.tensor([600]), torch.tensor([3.0]), torch.zeros(1))[1].sum().backward()
    assert float(weighting.log_scale.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_each_weighting_in_the_objective(name):
    """One loss per sample, so that a batch is the mean of its samples; what a weighting learns gets gradients."""
    torch.manual_seed(0)
    net = build(NetConfig(input_size=8, channels=1, width=16, depth=1, heads=2, num_classes=3))
    torch.nn.init.normal_(net.final_layer.linear.weight)
    objective = Objective(net, Process(learned_variance=True), WEIGHTINGS[name](TrainRecipe()))
    x0, eps = torch.randn(2, 6, 1, 8, 8)
    t_B, y_B = torch.tensor([0, 1, 100, 400, 700, 999]), torch.arange(6) % 4
    whole = objective(x0, t_B, eps, y_B)
    alone = [objective(x0[i : i + 1], t_B[i : i + 1], eps[i : i + 1], y_B[i : i + 1]).noise for i in range(6)]
    assert whole.noise.tolist() == pytest.approx(torch.cat(alone).tolist(), rel=1e-4)
    whole.loss.backward()
    assert len(own_parameters(objective)) == (name == "uncertainty")
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own_parameters(objective))


def test_knobs_are_checked():
    with pytest.raises(HemstitchError, match=r"train\.min_snr_gamma is above 0"):
        TrainRecipe(min_snr_gamma=0)
    with pytest.raises(HemstitchError, match=r"train\.p2_k is at least 0"):
        TrainRecipe(p2_k=-1)
    with pytest.raises(HemstitchError, match=r"train\.weighting is one of constant, min_snr, p2, uncertainty"):
        TrainRecipe(weighting="max_snr")
