"""What part G holds beside part B: noise levels, pairs, errors. Untrained networks on digits."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

import hemstitch as hs
from hemstitch import Plan, Process
from hemstitch.denoiser import Denoiser, NetDenoiser, Prediction
from hemstitch.grid import timesteps
from hemstitch.models import build
from hemstitch.run import Run
from hemstitch.stitch.search.cost import Cost, Costs
from reproduction import early, fields, networks, switch, unets

COST = {"small": 1.0, "large": 4.0}


def test_levels_are_those_of_the_papers_steps():
    mine = Process("cosine", "v")
    there = mine.log_snr(torch.tensor(early.levels(mine, 25), dtype=torch.float64))
    wanted = Process("linear", "eps").log_snr(timesteps(Process("linear", "eps"), 25))
    torch.testing.assert_close(there, wanted, atol=1e-6, rtol=0)
    assert float(wanted[10]) < -3 < float(mine.log_snr(timesteps(mine, 25))[10])


def test_attempts_differ_from_part_b_in_what_they_say(tmp_path):
    for key, attempt in early.EARLY.items():
        changed = (attempt.small != "small", attempt.large != "large", attempt.published)
        assert any(changed), key
        assert ("middle" in attempt.differs) == (attempt.small == "middle")
        assert ("levels" in attempt.differs) == attempt.published
        assert ("large member after" in attempt.differs) == (attempt.large != "large")
    known = early.members(fields.fashion(tmp_path), tmp_path / "runs")
    assert {name: member.step for name, member in known.items()} == {
        "small": 12_000,
        "middle": 6_000,
        "large": 4_000,
        "young": 4_000,
        "cooled": 1_000,
        "longer": 6_000,
    }
    assert known["young"].run == known["small"].run


class Kept:
    """A member that is there already."""

    def __init__(self, field, seed, size):
        self.size = size
        recipe = networks.transformer(field, "tiny", width=8, depth=1, heads=2)
        net, random = build(recipe.net), torch.Generator().manual_seed(seed)
        for weight in net.parameters():
            weight.data = 0.02 * torch.randn(weight.shape, generator=random)
        self.denoiser = NetDenoiser(net.eval(), recipe.process, field.data().spec(null_label=True))

    def load(self):
        return self.denoiser


@pytest.mark.parametrize("published", [False, True])
def test_a_pair_is_judged_on_the_same_samples(field, tmp_path, monkeypatch, published):
    monkeypatch.setattr(early, "CLOSE", 10)
    monkeypatch.setattr(early, "STEPS", 5)
    pair = {"small": Kept(field, 0, "small"), "large": Kept(field, 1, "large")}
    entries = [Cost(m, guided, c * (1 + guided), 0, 0, 0) for m, c in COST.items() for guided in (False, True)]
    ledger = {"stitching/costs": {"costs": Costs("CPU", "float32", 1, 125, "ddim", tuple(entries), "").to_data()}}
    told = early.judge(field, pair, published, tmp_path, ledger)
    both = {name: member.load() for name, member in pair.items()}
    grid = early.levels(both["large"].process, 5) if published else "released"
    look = {"steps": 5, "guidance": early.GUIDANCE, "grid": grid, "seeds": [(early.SEED, i) for i in range(10)]}
    labels = torch.arange(10) % 10
    plans = {"0": Plan.steps_each({"large": 5}), "0.4": Plan.steps_each({"small": 2, "large": 3})}
    plans["fewer"] = Plan.steps_each({"large": 4})  # 2 of 1 and 3 of 4 are 14; 3 steps of 4 are 12
    assert (told["fewer_steps"], told["times_as_fast"]) == (4, pytest.approx(20 / 14))
    for key, plan in plans.items():
        if key == "fewer":
            look |= {"steps": 4, "grid": early.levels(both["large"].process, 4) if published else "released"}
        wanted = field.scores(field.rows(hs.generate(hs.Stitched(both, plan), labels, **look)), labels)["distance"]
        assert told["plans"][key]["distance"]["value"] == pytest.approx(wanted.value, rel=1e-6)
    distance = {key: plan["distance"]["value"] for key, plan in told["plans"].items()}
    assert told["to_largest"]["gap"] == pytest.approx(distance["0.4"] - distance["0"])
    assert told["to_fewer"]["gap"] == pytest.approx(distance["0.4"] - distance["fewer"])
    assert (told["log_snr_at_seam"] < -2) == published


class Off(Denoiser):
    """Knows the images but for an error of known size."""

    def __init__(self, like, x0, by):
        self.process, self.spec, self.x0, self.by = like.process, like.spec, x0, by
        self.asked = []

    @property
    def device(self):
        return torch.device("cpu")

    def __call__(self, x, t, cond=None, *, member=None):
        self.asked.append((x, t, cond))
        start = sum(len(rows) for rows, *_ in self.asked[:-1]) % len(self.x0)
        return Prediction(self.x0[start : start + len(x)] + self.by, x)


def test_errors_are_of_the_same_noisy_images(field, monkeypatch):
    monkeypatch.setattr(early, "IMAGES", 12)
    monkeypatch.setattr(early, "BATCH", 8)
    monkeypatch.setattr(early, "LEVELS", (0.2, 0.8))
    data = field.test()
    x0 = data.images(torch.arange(12))
    like = replace(networks.transformer(field, "tiny")).process
    spec = field.data().spec(null_label=True)
    members = {
        name: Off(type("Like", (), {"process": like, "spec": spec}), x0, by)
        for name, by in (("small", 0.2), ("large", 0.1))
    }
    known = {
        name: type("Known", (), {"load": lambda self, member=member: member})() for name, member in members.items()
    }
    told = early.transformers_errors(field, known)
    assert list(told["levels"]) == ["0.8", "0.2"]
    for row in told["levels"].values():
        assert row["error"]["large"] == pytest.approx(0.01, rel=1e-4)
        assert row["to_large"]["small"]["value"] == pytest.approx(4, rel=1e-4)
    for (a, t, labels), (b, *_) in zip(members["small"].asked, members["large"].asked, strict=True):
        assert torch.equal(a, b)
        assert set(t.tolist()) in ({200.0}, {800.0})
        assert set(labels.tolist()) <= set(range(10))


def test_a_unet_is_asked_for_the_noise_under_its_scheduler(field, tmp_path, monkeypatch):
    """By diffusers' own scheduler: errors of the image are the noise's, by sigma over alpha."""
    monkeypatch.setattr(early, "IMAGES", 4)
    monkeypatch.setattr(early, "LEVELS", (0.3, 0.9))
    scheduler, data = DDPMScheduler(), field.data()
    for name, member in unets.MEMBERS.items():
        unets.unet(replace(member, widths=(8, 8, 8)), data).save_pretrained(tmp_path / name / "unet")
    told = early.unets_errors(field, tmp_path)
    random = torch.Generator().manual_seed(early.SEED)
    x0 = field.test().images(torch.arange(4))
    net = UNet2DModel.from_pretrained(tmp_path / "small", subfolder="unet")
    for t, share in ((900, "0.9"), (300, "0.3")):
        noise = torch.randn(x0.shape, generator=random)
        with torch.no_grad():
            eps = net(scheduler.add_noise(x0, noise, torch.full((4,), t)), torch.full((4,), t)).sample
        signal = scheduler.alphas_cumprod[t]
        wanted = (eps - noise).square().mean() * (1 - signal) / signal
        assert told["levels"][share]["error"]["small"] == pytest.approx(float(wanted), rel=1e-3)


def test_a_ratio_of_pairs_is_closer_than_of_strangers():
    random = torch.Generator().manual_seed(0)
    b = 1 + 0.5 * torch.rand(400, generator=random).double()
    a = 1.2 * b + 0.01 * torch.randn(400, generator=random).double()
    told = early.ratio(a, b)
    assert abs(told["value"] - 1.2) < told["half_width"] < 0.002
    assert early.ratio(a, b[torch.randperm(400, generator=random)])["half_width"] > 0.01


# The large member, trained on


@pytest.fixture
def tiny(field, monkeypatch):
    """Part A in small: six steps, a checkpoint after every two."""

    def recipe(where, family, seed, steps=6):
        sizes = {"width": 8, "depth": 1, "heads": 2, "batch": 8, "checkpoint_every": 2, "log_every": 1}
        return networks.transformer(where, f"tiny-{family}-{seed}", family, seed=seed, steps=steps, **sizes)

    monkeypatch.setattr(switch, "recipe", recipe)
    monkeypatch.setattr(switch, "STEPS", 6)
    monkeypatch.setattr(switch, "EVERY", 2)
    return recipe


def weights(run):
    return hs.load(run).net.state_dict()


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_that_is_gone_on_with_is_one_run(tiny, field, tmp_path):
    networks.train(tiny(field, "dit", 0), tmp_path / "begun")
    mine, make = early.further(field)["longer"]
    assert mine.train.steps == 9
    mine = replace(mine, train=replace(mine.train, steps=12))
    told = make(mine, tmp_path / "begun", tmp_path / "longer")
    networks.train(tiny(field, "dit", 0, 12), tmp_path / "whole")
    assert same(weights(tmp_path / "longer"), weights(tmp_path / "whole"))
    assert told["steps"] == 12
    assert set(told["sittings"]) == {"0", "6"}
    assert Run(tmp_path / "begun").newest().name == "step_00000006"  # and part A's is as it was
    assert same(
        networks.at(tmp_path / "longer", 8).net.state_dict(), networks.at(tmp_path / "whole", 8).net.state_dict()
    )


def test_a_run_that_is_tuned_begins_with_the_averaged_weights(tiny, field, tmp_path):
    networks.train(tiny(field, "dit", 0), tmp_path / "begun")
    mine, make = early.further(field)["cooled"]
    assert (mine.train.steps, mine.train.learning_rate, mine.train.seed) == (1000, 3e-4, early.TUNING_SEED)

    def trained(name, rate):
        recipe = replace(mine, train=replace(mine.train, steps=2, learning_rate=rate))
        make(recipe, tmp_path / "begun", tmp_path / name)
        return weights(tmp_path / name)

    first, slow = weights(tmp_path / "begun"), trained("slow", 1e-12)
    for key in first:
        torch.testing.assert_close(slow[key], first[key], atol=1e-8, rtol=0)
    assert not same(trained("fast", 1e-1), first)


def test_large_members_that_are_trained_on_differ_from_part_as_in_what_is_said(tmp_path):
    where = fields.fashion(tmp_path)
    base = switch.recipe(where, "dit", 0)
    changed = {key: {*recipe.difference(base)} - {"name"} for key, (recipe, _) in early.further(where).items()}
    assert changed == {"cooled": {"train.learning_rate", "train.seed"}, "longer": set()}
    tasks = {task.name: task for task in early.tasks(tmp_path)}
    for key, (recipe, _) in early.further(where).items():
        task = tasks[f"early/trained/{key}"]
        assert task.needs == ("switch/trained/dit-0",)
        assert task.keeps == networks.held(tmp_path / "runs" / f"early-{key}", recipe.train.steps)
