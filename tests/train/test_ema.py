"""Averages of the weights: their recursion, their profiles, and one of any length made afterwards."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from hemstitch import CheckpointError, HemstitchError, load, recipes
from hemstitch.cli import main
from hemstitch.train.ema import Average, combination, gamma_of, power_average
from hemstitch.train.fit import fit


def walk(steps, seed=0):
    """A one-weight network's weights over training: a drift and a random walk."""
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linspace(0, 3, steps, dtype=torch.float64) + 0.2 * noise.cumsum(0) / steps**0.5


def averaged(values, make):
    net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average, kept = make(net), []
    for step, value in enumerate(values.tolist(), 1):
        with torch.no_grad():
            net.weight.fill_(value)
        average.update(net, step)
        kept.append(float(average.weights["weight"]))
    return kept


def test_exponential():
    values = walk(50)
    expected = 0.7
    for value in values.tolist():
        expected = 0.9 * expected + 0.1 * value

    def start(net):
        with torch.no_grad():
            net.weight.fill_(0.7)
        return Average(net, lambda step: 0.9)

    assert averaged(values, start)[-1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("std", [0.05, 0.10, 0.2])
def test_power_profile(std):
    """The average is ∫ of the profile t^γ, whose standard deviation is `std` of the run (numerically)."""
    gamma, steps = gamma_of(std), 20_000
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    profile = t**gamma / (t**gamma).sum()
    mean = (profile * t).sum()
    assert float(((profile * (t - mean) ** 2).sum()).sqrt()) == pytest.approx(std, rel=1e-3)
    values = walk(2000)
    t = torch.arange(1, 2001, dtype=torch.float64)
    weight = t ** (gamma + 1) - (t - 1) ** (gamma + 1)
    expected = float((weight * values).sum() / weight.sum())
    assert averaged(values, lambda net: power_average(net, std))[-1] == pytest.approx(expected, rel=0.002)


def test_published_gammas():
    """Karras et al. (2024): σ_rel 0.05 is γ = 16.97, 0.10 is 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    with pytest.raises(HemstitchError, match="relative length"):
        gamma_of(0.4)


@pytest.mark.parametrize("std", [0.05, 0.06, 0.075, 0.15])
def test_any_length_afterwards(std):
    """From two averages stored eight times, nearly the average of another length that was kept all along."""
    values = walk(2000)
    kept = {s: averaged(values, lambda net, s=s: power_average(net, s)) for s in (0.05, 0.10)}
    stored = [(step, s) for s in kept for step in range(250, 2001, 250)]
    weights = combination(stored, 2000, std)
    made = sum(w * kept[s][step - 1] for w, (step, s) in zip(weights, stored, strict=True))
    straight = averaged(values, lambda net: power_average(net, std))[-1]
    assert weights.sum() == pytest.approx(1, abs=0.02)
    assert made == pytest.approx(straight, abs=0.01)
    assert std < 0.1 or abs(straight - kept[0.05][-1]) > 0.05  # lengths do differ on this walk


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("snapshots") / "run"
    recipe = recipes.recipe("debug").overridden({"net.width": "16", "net.depth": "1", "batch": "8"})
    train = replace(recipe.train, steps=40, checkpoint_every=20, snapshot_every=5, sample_every=0)
    list(fit(replace(recipe, train=train), out, device="cpu"))
    return out


def test_load_with_a_length(run, tmp_path):
    """A stored length gives its snapshot back; another one, weights between; and convert writes it."""
    name = "final_layer.linear.weight"
    for std in (0.05, 0.1):
        snapshot = load_file(run / "snapshots" / f"step_00000040_power_{std:.3f}.safetensors")
        assert torch.allclose(load(run, ema=std).net.state_dict()[name], snapshot[name], atol=1e-6)
    between = load(run, ema=0.07).net.state_dict()[name]
    assert not torch.allclose(between, snapshot[name], atol=1e-4)
    assert main(["convert", str(run), str(tmp_path / "a.safetensors"), "--to", "native", "--ema", "0.07"]) == 0
    assert torch.equal(load(tmp_path / "a.safetensors").net.state_dict()[name], between)


def test_without_snapshots(run, tmp_path):
    with pytest.raises(CheckpointError, match="train with --snapshot-every"):
        load(run / "checkpoints", ema=0.1)
    with pytest.raises(HemstitchError, match="relative length"):
        load(run, ema=0.5)
