"""`hemstitch search` on small models: what it writes, says and refuses."""

from __future__ import annotations

import json

import pytest
import torch

from hemstitch import NetConfig, NetDenoiser, Plan, Process, Spec, build, save
from hemstitch.cli import main
from hemstitch.stitch.search import api

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed, width in (("small", 0, 8), ("large", 1, 64)):
        torch.manual_seed(seed)
        net = build(NetConfig("dit", 8, 1, 2, width, 2, 2, 3, learned_variance=False))
        for parameter in net.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        save(NetDenoiser(net.eval(), Process("linear"), Spec(1, 8, 3, null_label=True)), folder / f"{name}.safetensors")
    return [f"small={folder / 'small.safetensors'}", f"large={folder / 'large.safetensors'}"]


@pytest.fixture(autouse=True)
def _quick_costs(monkeypatch):
    monkeypatch.setattr(api, "PATIENCE", (0.2,))


OPTIONS = ["--budget", "0.7,0.9", "--steps", "6", "--samples", "32", "--batch", "8", "--trajectories", "8"]


def test_writes_a_plan_that_sampling_takes(models, tmp_path, capsys):
    out = tmp_path / "best.json"
    assert main(["search", *models, *OPTIONS, "--per-sample", "--guidance", "2", "--out", str(out)]) == 0
    said = capsys.readouterr()
    plan = Plan.from_json(out.read_text())
    assert str(plan) in said.out
    assert f"hemstitch sample {' '.join(models)} --plan {out}" in said.out
    assert "evidence: 8/8" in said.err
    folder = tmp_path / "best-search"
    data = json.loads((folder / "search.json").read_text())
    assert [result["budget"] for result in data["results"]] == [0.7, 0.9]
    assert data["results"][0]["found"]["plan"] == json.loads(plan.to_json())
    assert {"frontier.png", "plans.png", "evidence.png", "report.html"} <= {path.name for path in folder.iterdir()}
    sampled = ["sample", *models, "--plan", str(out), "--num", "2", "--guidance", "2", "--out", str(tmp_path / "s")]
    assert main(sampled) == 0
    assert len(list((tmp_path / "s").glob("*.png"))) == 2
    assert main([*sampled[:-1], str(tmp_path / "a"), "--plan", str(next(folder.glob("adaptive-*.json")))]) == 0


def test_interrupted_it_keeps_what_it_has(models, tmp_path, monkeypatch, capsys):
    from hemstitch.stitch.search import store

    original, left = store.sampled, iter(range(3))

    def broken_off(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(store, "sampled", broken_off)
    arguments = ["search", *models, *OPTIONS, "--out", str(tmp_path / "plan.json")]
    assert main(arguments) == 130
    assert "goes on from there" in capsys.readouterr().out
    assert not (tmp_path / "plan.json").exists()
    kept = len(list((tmp_path / "plan-search" / "rows").iterdir()))
    assert kept == 3
    monkeypatch.setattr(store, "sampled", original)
    assert main(arguments) == 0
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0.01"], "below the cheapest plan"),
        (["--budget", "much"], "--budget is numbers"),
        ([], "say how long"),
        (["--budget", "0.7", "--steps", "2.5"], "whole number"),
        (["--budget", "0.7", "--out", "plan"], "--out is the file of the plan"),
        (["--budget", "0.7", "--search-interval"], "only with guidance"),
        (["--budget", "0.7", "--guidance", "2", "--search-interval", "--guidance-interval", "0", "1"], "give one"),
        (["--budget", "0.7", "--labels", "0,x"], "--labels is numbers"),
        (["--budget", "0.7", "--reference", "nowhere/"], "nowhere"),
    ],
)
def test_refusals(models, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["search", *models, "--samples", "16", "--batch", "8", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_single_model_is_refused(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", models[1], "--budget", "0.5"]) == 2
    assert "two members or more" in capsys.readouterr().err


def test_without_matplotlib_the_plan_is_still_told(models, tmp_path, monkeypatch, capsys):
    from hemstitch.errors import MissingExtraError
    from hemstitch.stitch.search import report

    def missing(found):
        raise MissingExtraError("matplotlib", "report")

    monkeypatch.setattr(report, "pictures", missing)
    out = tmp_path / "plan.json"
    assert main(["search", *models, *OPTIONS, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "without figures" in said
    assert str(Plan.from_json(out.read_text())) in said
