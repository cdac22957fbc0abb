"""The command as a person meets it, one run a mode."""

import base64
import json
import sys

import pytest
import torch
from PIL import Image

from hemstitch import NetConfig, NetDenoiser, Plan, Process, Spec, build, cli, load, save
from hemstitch.analyze import figures, report
from hemstitch.analyze.experts import expert_use


def stored(path, seed, family="dit", size=8):
    torch.manual_seed(seed)
    net = build(
        NetConfig(
            family,
            input_size=size,
            channels=1,
            patch=4,
            width=16,
            depth=2,
            heads=2,
            num_classes=10,
            learned_variance=False,
            timesteps=40,
        )
    )
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    save(NetDenoiser(net, Process("linear", timesteps=40), Spec(1, size, 10, null_label=True)), path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    stored(folder / "dit.safetensors", 0)
    stored(folder / "switch.safetensors", 1, "switch_dit")
    stored(folder / "wide.safetensors", 2, size=12)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Figures in name only: drawing them all takes seconds, and one test does."""
    monkeypatch.setattr(figures, "_png", lambda figure, title: title.encode())
    monkeypatch.setattr(report, "expert_map_png", lambda map_TNM, title: title.encode())


def analysed(*arguments):
    assert cli.main(["analyze", *map(str, arguments), "--num", "5", "--steps", "4", "--device", "cpu"]) == 0
    folder = arguments[arguments.index("--out") + 1]
    data = json.loads((folder / "analysis.json").read_text())
    page = (folder / "report.html").read_text()
    for name in data["figures"]:
        assert base64.b64encode((folder / name).read_bytes()).decode() in page
    assert sorted(data["figures"]) == sorted(p.name for p in folder.glob("*.png"))
    assert "http" not in page.replace("http-equiv", "")
    return data


def test_a_switch_dit_alone(models, tmp_path, capsys, undrawn):
    data = analysed(models / "switch.safetensors", "--out", tmp_path / "out")
    use = expert_use(load(models / "switch.safetensors").net)
    told = data["experts"]["switch"]
    assert torch.tensor(told["usage"], dtype=torch.float64).sub(use.usage).abs().max() < 1e-5
    assert told["selected"] == use.selected.int().tolist()
    assert told["never"] == [list(pair) for pair in use.never]
    assert told["prior_loss_mean"] == pytest.approx(float(use.prior_loss.mean()), rel=1e-5)
    assert len(told["affinity"]) == len(told["times"]) == 40
    assert data["agreement"] is None
    assert len(data["trajectory"]["t"]) == len(data["trajectory"]["log_snr"]) == 4
    frequency = data["frequency"]["switch"]
    assert [len(frequency[key]) for key in ("x", "x0", "gap")] == [5, 4, 4]
    assert frequency["unsettled"]["low"][-1] == pytest.approx(0, abs=1e-9)
    assert data["settings"]["labels"] == [0, 1, 2, 3, 4]
    assert data["settings"]["steps"] == 4
    assert {"commit", "device", "members", "sampling"} <= set(data["provenance"])
    assert "experts-switch-gates.png" in data["figures"]
    assert "report.html" in capsys.readouterr().out


def test_a_dit_alone_has_frequencies_only(models, tmp_path, undrawn):
    data = analysed(models / "dit.safetensors", "--labels", "7", "--out", tmp_path / "out")
    assert data["experts"] == {}
    assert data["agreement"] is None
    assert sorted(data["figures"]) == ["frequency-dit.png", "frequency-settling.png"]
    assert data["settings"]["labels"] == [7] * 5


def test_members_and_a_plan(models, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(Plan.steps_each({"s m": 2, "large": 2}).to_json())
    members = [f"s m={models / 'dit.safetensors'}", f"large={models / 'switch.safetensors'}"]
    data = analysed(*members, "--plan", plan, "--guidance", "1.5", "--out", tmp_path / "out")
    agreement = data["agreement"]
    assert agreement["reference"] == "large"
    latents = {name: band["mean"] for name, band in agreement["latents"].items()}
    assert latents["s m"][0] == latents["the plan"][0] == 1
    assert latents["s m"][:3] == latents["the plan"][:3]
    assert latents["s m"][-1] < latents["the plan"][-1] < 1
    assert len(agreement["eps"]["s m"]["cosine"]["low"]) == len(agreement["x0"]["s m"]["distance"]["high"]) == 4
    assert set(data["experts"]) == {"large"}
    assert set(data["frequency"]) == {"s m", "large", "the plan"}
    assert {"frequency-s_m.png", "frequency-plan.png", "agreement-latents.png"} <= set(data["figures"])
    assert data["settings"]["plan"]["assignment"] == [["s m", 2], ["large", 2]]
    assert data["settings"]["guidance"] == 1.5
    for name in data["figures"]:
        assert min(Image.open(tmp_path / "out" / name).size) > 200


def test_the_same_model_twice_agrees(models, tmp_path, undrawn):
    members = [f"{name}={models / 'dit.safetensors'}" for name in "ab"]
    agreement = analysed(*members, "--out", tmp_path / "out")["agreement"]
    assert agreement["latents"]["a"]["low"] == [1] * 5
    for kind in ("x0", "eps"):
        assert agreement[kind]["a"]["cosine"]["low"] == [1] * 4
        assert agreement[kind]["a"]["distance"]["high"] == [0] * 4


def test_bad_commands_are_told_apart(models, tmp_path, capsys, monkeypatch):
    dit, wide = models / "dit.safetensors", models / "wide.safetensors"
    (tmp_path / "file").write_text("")
    (tmp_path / "labels.txt").write_text("1 2 x")
    cases = [
        ([tmp_path / "nothing"], "nothing"),
        ([dit, "--steps", "0"], "steps is at least 1, not 0"),
        ([dit, "--num", "0"], "at least 1"),
        ([dit, "--batch", "0"], "at least 1"),
        ([f"small={dit}", f"large={wide}"], "size: small has 8, large has 12"),
        ([dit, wide], "name each of several members"),
        ([dit, "--labels", "10"], "whole numbers in 0..9"),
        ([dit, "--labels", "x"], "whole numbers"),
        ([dit, "--labels", tmp_path / "labels.txt"], "does not hold labels"),
        ([dit, "--sampler", "rk4"], "sampler is one of"),
        ([dit, "--grid", "even"], "grid is one of"),
        ([dit, "--guidance", "nan"], "finite"),
        ([dit, "--plan", tmp_path / "no.json"], "no plan file"),
    ]
    for arguments, said in cases:
        assert cli.main(["analyze", "--steps", "4", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err, said
    assert cli.main(["analyze", str(dit), "--out", str(tmp_path / "file")]) == 2
    assert "is a file; --out is a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["analyze", str(dit), "--out", str(tmp_path / "out")]) == 2
    assert "hemstitch[report]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_members_whose_files_would_share_a_name_do_not(models, tmp_path, undrawn):
    members = [f"{name}={models / 'switch.safetensors'}" for name in ("a b", "a_b")]
    drawn = set(analysed(*members, "--out", tmp_path / "out")["figures"])
    for what in ("frequency-{}", "experts-{}-usage"):
        assert {f"{what.format(stem)}.png" for stem in ("a_b", "a_b-2")} <= drawn


def test_interrupted_it_leaves_nothing(models, tmp_path, capsys, monkeypatch):
    from hemstitch.analyze import study as module

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_note", stop)
    assert cli.main(["analyze", str(models / "dit.safetensors"), "--steps", "2", "--out", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
