"""Training times: their distribution against its formula, and the intervals of a plan."""

import math
from itertools import pairwise

import pytest
import torch

from hemstitch import HemstitchError, Plan, Process, recipes, seeds
from hemstitch.train.times import Times, plan_intervals

KEYS = seeds.keys([(0, i) for i in range(40_000)])
CPU = torch.device("cpu")


def normal_cdf(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lognormal_in_sigma_over_alpha(schedule):
    """The share of draws noisier than any timestep is the normal tail of its log(σ/α)."""
    process = Process(schedule)
    t_B = Times(process, "lognormal", -1.2, 1.2).draw(KEYS, CPU)
    for t in (100, 300, 600, 900):
        between = -(process.log_snr(torch.tensor([t, t + 1])) / 2).mean()
        expected = 1 - normal_cdf((float(between) + 1.2) / 1.2)
        assert float((t_B > t).double().mean()) == pytest.approx(expected, abs=0.01)


def test_lognormal_on_flow_is_logit_normal():
    t_B = Times(Process("flow", "flow"), "lognormal", 0.0, 1.0).draw(KEYS, CPU)
    logit = torch.logit((t_B - 1e-4) / (1 - 2e-4))
    assert float(logit.mean()) == pytest.approx(0, abs=0.02)
    assert float(logit.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sampling", ["uniform", "lognormal"])
@pytest.mark.parametrize("process", [Process(), Process("flow", "flow")], ids=["linear", "flow"])
def test_intervals(process, sampling):
    """Only inside, and there as the whole distribution is inside."""
    end = 1.0 if process.is_flow else 1000
    intervals = ((0.1 * end, 0.2 * end), (0.7 * end, end))
    whole = Times(process, sampling, 0.5, 1.0).draw(KEYS, CPU).double() / end
    cut = Times(process, sampling, 0.5, 1.0, intervals).draw(KEYS, CPU).double() / end
    inside = (whole >= 0.1) & (whole < 0.2) | (whole >= 0.7)
    assert bool((((cut >= 0.0999) & (cut <= 0.2001)) | (cut >= 0.6999)).all())
    assert float((cut < 0.5).double().mean()) == pytest.approx(float((whole[inside] < 0.5).double().mean()), abs=0.02)


def test_uniform_is_exactly_uniform_over_an_interval():
    t_B = Times(Process(), intervals=((990.0, 1000.0),)).draw(KEYS, CPU)
    counts = torch.bincount(t_B, minlength=1000)
    assert counts[:990].sum() == 0
    assert float(counts[990:].double().std() / counts[990:].double().mean()) < 0.05


@pytest.mark.parametrize("grid", ["released", "trailing", "leading", "linspace"])
@pytest.mark.parametrize("process", [Process(), Process("flow", "flow")], ids=["linear", "flow"])
def test_a_plan_shares_out_every_time(process, grid):
    if process.is_flow and grid == "leading":
        pytest.skip("the flow process has no leading grid: it would visit t = 0")
    plan = Plan.explicit(["a", "a", "b", "a", "c", "b", "b", "c"])
    shares = [i for member in "abc" for i in plan_intervals(plan, member, process, grid)]
    shares.sort()
    assert shares[0][0] == 0
    assert shares[-1][1] == (1.0 if process.is_flow else 1000)
    for (_, high), (low, _) in pairwise(shares):
        assert high == low


def test_a_fraction_gives_the_noisy_times_to_the_small():
    plan = Plan.fractions({"small": 0.4, "large": 0.6}, 10)
    assert plan_intervals(plan, "small", Process()) == ((556.0, 1000.0),)  # steps at 999, 888, 777, 666; next 555
    assert plan_intervals(plan, "large", Process()) == ((0.0, 556.0),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"intervals": "[[5, 3]]"}, "its low end first"),
        ({"intervals": "[[0, 2000]]"}, r"lies in 0\.\.1000"),
        ({"intervals": "[[0, 9], [3, 5]]"}, "do not overlap"),
        ({"intervals": "[[0.2, 0.8]]"}, "no timestep lies in"),
        ({"times": "normal"}, "is one of uniform, lognormal"),
        ({"time_std": "0"}, r"train\.time_std is above 0"),
    ],
)
def test_bad_times_are_refused(changes, said):
    with pytest.raises(HemstitchError, match=said):
        recipes.recipe("debug").overridden(changes)
    with pytest.raises(HemstitchError, match="no step for 'tiny'"):
        plan_intervals(Plan.explicit(["a"]), "tiny", Process())
