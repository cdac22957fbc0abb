"""Archives of trained models, and the quickstart that takes one. The models here are tiny and untrained."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hemstitch as hs
import hemstitch.quickstart as quick
from hemstitch import cli, pretrained
from hemstitch.data import Digits
from hemstitch.denoiser import NetDenoiser
from hemstitch.errors import HemstitchError
from hemstitch.evaluate.classifier import train_classifier
from hemstitch.evaluate.extractors import SmallClassifier
from hemstitch.evaluate.features import moments_of
from hemstitch.evaluate.images import open_images
from hemstitch.models import build
from hemstitch.process import Process
from hemstitch.recipes import digits_small

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "benchmarks" / "results" / "reproduction" / "switch" / "field.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(path of an archive, what it says, its members)."""
    folder = tmp_path_factory.mktemp("archive")
    classifier = train_classifier(Digits("train"), Digits("test"), steps=60)
    classifier.save(folder / "classifier.safetensors")
    members = {}
    for seed, (name, width, depth) in enumerate((("small", 8, 1), ("large", 64, 3))):
        torch.manual_seed(seed)
        net = build(replace(digits_small().net, width=width, heads=2, depth=depth)).eval()
        torch.nn.init.normal_(net.final_layer.linear.weight, std=0.1)
        members[name] = NetDenoiser(net, Process("linear"), Digits("train").spec(null_label=True))
    about = pretrained.About(
        "digits", tuple("0123456789"), "all digits", classifier.hash, "a tiny one", "a less tiny one", "a test"
    )
    reference = moments_of(open_images("digits:all"), SmallClassifier(classifier))
    path = folder / "models.zip"
    pretrained.pack(path, members, folder / "classifier.safetensors", reference, about)
    return path, about, members


def test_the_models_that_come_with_hemstitch(tmp_path):
    """They fit into a package, stitch, and are judged by what the published figures are of."""
    about = pretrained.unpack(tmp_path)
    assert Path(hs.__file__).with_name(pretrained.SUPPLIED).stat().st_size <= 10_000_000
    small, large = (hs.load(tmp_path / f"{name}.safetensors") for name in ("small", "large"))
    x = hs.generate(
        hs.Stitched({"small": small, "large": large}, hs.Plan.steps_each({"small": 1, "large": 1})), [0, 9], steps=2
    )
    assert x.shape == (2, 1, 28, 28)
    assert hs.describe(large).parameters > 10 * hs.describe(small).parameters
    assert about.extractor == json.loads(PUBLISHED.read_text())["classifier"]


def test_a_wheel_holds_them(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"hemstitch/{pretrained.SUPPLIED}", "hemstitch/py.typed", "hemstitch/__init__.py"} <= set(names)


def test_what_is_packed_is_what_is_unpacked(made, tmp_path):
    path, about, members = made
    assert pretrained.unpack(tmp_path, path) == about
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 900.0]), torch.tensor([1, 2])
    for name, member in members.items():
        assert torch.equal(hs.load(tmp_path / f"{name}.safetensors").net(x, t, y), member.net(x, t, y))
    assert not list(path.parent.glob("*.small.*"))


def test_equal_contents_make_equal_archives(made, tmp_path):
    path, about, members = made
    pretrained.unpack(tmp_path, path)
    moments = quick.open_reference(str(tmp_path / pretrained.REFERENCE)).statistics["pool"]
    pretrained.pack(tmp_path / "again.zip", members, tmp_path / pretrained.CLASSIFIER, moments, about)
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def changed(path, to, contents):
    """An archive with some files replaced, added, or (None) left out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in dict.fromkeys([*old.namelist(), *contents]):
            data = contents.get(name, old.read(name) if name in old.namelist() else None)
            if data is not None:
                new.writestr(name, data)
    return to


def test_other_files_in_an_archive_are_left_in_it(made, tmp_path):
    bad = changed(made[0], tmp_path / "bad.zip", {"../outside.txt": b"x", "extra.py": b"x"})
    pretrained.unpack(tmp_path / "out", bad)
    assert not (tmp_path / "outside.txt").exists()
    assert not (tmp_path / "out" / "extra.py").exists()


def test_archives_that_are_none(made, tmp_path):
    with pytest.raises(HemstitchError, match="there is no archive"):
        pretrained.unpack(tmp_path, tmp_path / "nothing.zip")
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(HemstitchError, match="cannot be read"):
        pretrained.unpack(tmp_path, tmp_path / "text.zip")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(made[0].read_bytes()[:-500])
    with pytest.raises(HemstitchError, match="cannot be read"):
        pretrained.unpack(tmp_path, cut)
    flipped = bytearray(made[0].read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(flipped)
    with pytest.raises(HemstitchError, match="cannot be read"):
        pretrained.unpack(tmp_path, tmp_path / "flipped.zip")
    lacking = changed(made[0], tmp_path / "a.zip", {"large.safetensors": None})
    with pytest.raises(HemstitchError, match=r"lacks large\.safetensors"):
        pretrained.unpack(tmp_path, lacking)
    about = asdict(made[1]) | {"surprise": 1}
    bad = changed(made[0], tmp_path / "b.zip", {"about.json": json.dumps(about).encode()})
    with pytest.raises(HemstitchError, match="has no surprise"):
        pretrained.unpack(tmp_path, bad)
    about = asdict(made[1]) | {"extractor": "0" * 12}
    bad = changed(made[0], tmp_path / "c.zip", {"about.json": json.dumps(about).encode()})
    with pytest.raises(HemstitchError, match="another classifier"):
        pretrained.unpack(tmp_path, bad)


def test_archives_at_odds_with_themselves_are_refused_before_anything_is_written(made, tmp_path):
    about = asdict(made[1]) | {"classes": ["0", "1"]}
    bad = changed(made[0], tmp_path / "a.zip", {"about.json": json.dumps(about).encode()})
    with pytest.raises(HemstitchError, match="has 10 classes, and it names 2"):
        pretrained.unpack(tmp_path / "out", bad)
    numbers = io.BytesIO()
    np.savez(numbers, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    bad = changed(made[0], tmp_path / "b.zip", {"reference.npz": numbers.getvalue()})
    with pytest.raises(HemstitchError, match="no statistics"):
        pretrained.unpack(tmp_path / "out", bad)
    assert not (tmp_path / "out").exists()


def test_a_file_that_would_fill_the_disk_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "LARGEST", 1000)
    with pytest.raises(HemstitchError, match="refused"):
        pretrained.unpack(tmp_path, made[0])


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(quick, "BRIEF", 5)


def test_the_quickstart_trains_nothing(made, tmp_path, capsys, brief):
    out = tmp_path / "pretrained"
    command = ["quickstart", "--pretrained", str(made[0]), "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "pretrained on digits" in said
    data = json.loads((out / "curve.json").read_text())
    assert {p["fraction"] for p in data["points"]} == {0, 0.2, 0.4, 0.6, 0.8, 1, None}
    assert data["provenance"]["training"] == "a test"
    page = (out / "report.html").read_text()
    assert "a less tiny one" in page
    assert "just before this page" not in page
    assert not (out / "small").exists()
    assert "digits, ±" not in page
    assert cli.main(command) == 0, "again, from the beginning"
    capsys.readouterr()
    before = (out / "curve.json").read_bytes()
    assert cli.main([*command, "--reuse"]) == 0
    assert "measured before" in capsys.readouterr().out
    assert (out / "curve.json").read_bytes() == before


def test_it_does_not_touch_a_folder_of_trained_models(made, tmp_path, capsys, brief):
    out = tmp_path / "quickstart"
    (out / "small").mkdir(parents=True)
    (out / "report.html").write_text("mine")
    assert cli.main(["quickstart", "--pretrained", str(made[0]), "--out", str(out)]) != 0
    assert "choose another --out" in capsys.readouterr().err
    assert (out / "small").is_dir()
    assert (out / "report.html").read_text() == "mine"
