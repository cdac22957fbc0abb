"""The main job end to end, on the real digits with much smaller and shorter-trained models."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

import hemstitch.quickstart as quick
from hemstitch import cli, recipes
from hemstitch.errors import HemstitchError
from hemstitch.evaluate.classifier import train_classifier

POINT = {"plan", "fraction", "steps", "distance", "accuracy", "ms_per_image", "speedup", "speedup_ideal"}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    for name, width, depth in (("digits_small", 8, 1), ("digits_large", 64, 3)):
        recipe = getattr(recipes, name)()
        net = replace(recipe.net, width=width, heads=2, depth=depth)
        brief = replace(recipe, net=net, train=replace(recipe.train, steps=20, checkpoint_every=10))
        monkeypatch.setattr(recipes, name, lambda brief=brief: brief)
    monkeypatch.setattr(quick, "STEPS", 5)
    monkeypatch.setattr(quick, "train_classifier", partial(train_classifier, steps=60))


def test_quickstart_and_reuse(tmp_path, capsys):
    out = tmp_path / "runs" / "quickstart"
    assert cli.main(["quickstart", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "held-out digits right" in said
    data = json.loads((out / "curve.json").read_text())
    assert {p["fraction"] for p in data["points"]} == {0, 0.2, 0.4, 0.6, 0.8, 1, None}
    assert all(set(p) >= POINT for p in data["points"])
    assert {"commit", "device", "dtype", "recipes", "sampling", "classifier", "reference"} <= set(data["provenance"])
    base = data["points"][0]
    assert (base["fraction"], base["speedup"], base["speedup_ideal"]) == (0, 1, 1)
    for p in data["points"]:
        assert f"{p['distance']:.2f}" in said
    for name in ("small", "large"):
        assert (out / name / "recipe.json").exists()
        assert list(out.glob(f"{name}/checkpoints/*/ema.safetensors"))
    page = (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must open offline"
    assert page.count("<figure>") == len(data["points"])
    assert Image.open(out / "curve.png").size == (1200, 720)
    assert len(list((out / "samples").glob("*.png"))) == len(data["points"])
    before = {p: p.read_bytes() for p in (out / "curve.json", *out.rglob("*.safetensors"))}
    assert cli.main(["quickstart", "--out", str(out), "--reuse"]) == 0
    assert "measured before" in capsys.readouterr().out
    assert all(path.read_bytes() == data for path, data in before.items())


def test_an_unfinished_quickstart_goes_on(tmp_path):
    out = tmp_path / "quickstart"
    for name, _ in quick.quickstart(out):
        if name == "large":
            break
    finished = (out / "small" / "metrics.jsonl").read_text()
    assert [name for name, _ in quick.quickstart(out) if name == "small"] == []
    assert (out / "small" / "metrics.jsonl").read_text() == finished
    assert (out / "report.html").exists()


def test_models_of_another_recipe_are_not_taken_for_one_s_own(tmp_path, monkeypatch):
    recipe = recipes.digits_small()
    other = replace(recipe, train=replace(recipe.train, learning_rate=1e-5))
    *_, _ = quick.fit(other, tmp_path / "small", device="cpu")
    with pytest.raises(HemstitchError, match=r"another recipe; these differ: train\.learning_rate"):
        list(quick.quickstart(tmp_path, reuse=True))
