"""The command line of evaluation: samples measured, sets compared, plans swept."""

import json

import numpy as np
import pytest
from PIL import Image

from hemstitch import HemstitchError, cli
from hemstitch.bulk import write_samples
from hemstitch.data import Digits
from hemstitch.evaluate.classifier import train_classifier
from hemstitch.evaluate.reference import open_source

from .conftest import denoiser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two members and a classifier, as files."""
    from hemstitch import save

    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("small", 0), ("large", 1)):
        save(denoiser(seed=seed), folder / f"{name}.safetensors")
    train_classifier(Digits("train"), Digits("test"), steps=40).save(folder / "classifier.safetensors")
    return folder


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def failing(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    return said


def test_sets_are_compared(made, tmp_path, capsys):
    classifier = made / "classifier.safetensors"
    for name in ("small", "large"):
        sample = ["sample", made / f"{name}.safetensors", "--num", 30, "--steps", 2, "--batch", 10]
        run(capsys, *sample, "--out", tmp_path / name, "--format", "npz" if name == "small" else "webdataset,png")
    metrics = ["--metrics", "fid,sfid,is,prc,dc,kid,accuracy", "--extractor", classifier]
    both = ["evaluate", tmp_path / "small", f"big={tmp_path / 'large'}", "--reference", "digits:all"]
    out = run(capsys, *both, *metrics, "--out", tmp_path / "report.json")
    head = out.splitlines()[0]
    for title in ("FD (classifier)", "sFD (classifier)", "precision", "coverage", "KD (classifier)", "accuracy"):
        assert title in head
    data = json.loads((tmp_path / "report.json").read_text())
    assert [s["name"] for s in data["sets"]] == ["small", "big"]
    assert data["sets"][0]["sources"][0]["shares"].startswith("seed 0, 30 samples, labels ")
    assert data["sets"][0]["sources"][0]["shares"] == data["sets"][1]["sources"][0]["shares"]
    assert data["reference"]["images"] == 1797


def test_samples_are_measured_as_they_are_made(made, tmp_path, capsys):
    """The same figures as of pictures written first, without writing them; and again, without sampling."""
    classifier = made / "classifier.safetensors"
    sample = ["sample", made / "small.safetensors", "--num", 30, "--steps", 2, "--batch", 10]
    measure = ["--metrics", "fid,is,prc,accuracy", "--reference", "digits", "--extractor", classifier]
    run(capsys, *sample, *measure, "--out", tmp_path / "direct")
    assert not list((tmp_path / "direct").glob("*.png"))
    run(capsys, *sample, "--out", tmp_path / "pictures")
    run(capsys, "evaluate", tmp_path / "pictures", *measure, "--out", tmp_path / "report.json")
    direct, written = (
        json.loads((tmp_path / p).read_text())["sets"][0]["figures"] for p in ("direct/report.json", "report.json")
    )
    for name, figure in written.items():
        assert direct[name]["value"] == pytest.approx(figure["value"], rel=1e-5), name
    again = run(capsys, *sample, *measure, "--out", tmp_path / "direct")
    assert "all of them were there already" in again
    run(capsys, *sample, *measure, "--format", "png", "--out", tmp_path / "both")
    assert len(list((tmp_path / "both").glob("*.png"))) == 30


def test_bad_evaluations_are_told_apart(made, tmp_path, capsys):
    classifier = made / "classifier.safetensors"
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    for name, side in (("a", 8), ("b", 16)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((side, side, 3), 40 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    options = ["--extractor", classifier, "--metrics", "fid"]
    cases = [
        (["a", "--reference", "digits", "--extractor", classifier, "--metrics", "fod"], "metrics are some of"),
        (["a", *options], "give one (--reference"),
        (["a", "--reference", tmp_path / "b", *options], "different sizes"),
        (["a", "--reference", tmp_path / "stats.npz", *options], "statistics of 2048 pool features"),
        (["a", "a", "--reference", "digits", *options], "two sets are called"),
        (["a", "--reference", "digits", "--extractor", tmp_path / "none.safetensors"], "none.safetensors"),
        (["a", "--reference", "digits", "--extractor-weights", "x=y"], "inception=PATH"),
        (["nothing", "--reference", "digits", *options], "does not exist"),
        (
            ["a", "--reference", "digits", "--metrics", "accuracy", "--extractor", "dinov2"],
            "accuracy is a classifier's",
        ),
    ]
    for arguments, said in cases:
        named = [tmp_path / a if a in ("a", "nothing") else a for a in arguments]
        assert said in failing(capsys, "evaluate", *named), said
    sample = ["sample", made / "small.safetensors", "--num", 4, "--steps", 2, "--extractor", classifier]
    for more, said in (
        (["--metrics", "fid"], "give one (--reference"),
        (["--metrics", "fid", "--reference", tmp_path / "stats.npz"], "statistics of 2048"),
        (["--metrics", "fid", "--reference", tmp_path / "b"], "different sizes"),
        (["--metrics", "prc", "--reference", "digits"], "prc needs at least 6 pictures"),
        (["--reference", "digits"], "belong to --metrics"),
    ):
        assert said in failing(capsys, *sample, *more, "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    run(capsys, "sample", made / "small.safetensors", "--num", 8, "--steps", 2, "--out", tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    assert "is not finished" in failing(capsys, "evaluate", tmp_path / "half", "--reference", "digits", *options)


def test_the_curve_has_fewer_steps_of_the_large_model_always(made, tmp_path, capsys):
    members = [f"small={made / 'small.safetensors'}", f"large={made / 'large.safetensors'}"]
    measure = ["--reference", "digits", "--extractor", made / "classifier.safetensors", "--count", 40, "--batch", 20]
    sweep = ["--fractions", "0,0.5,1", "--guidances", "1,2", "--steps", 4]
    run(capsys, "evaluate", *members, "--curve", *measure, *sweep, "--out", tmp_path / "curve")
    data = json.loads((tmp_path / "curve" / "curve.json").read_text())
    for guidance in (1, 2):
        mine = [p for p in data["points"] if p["guidance"] == guidance]
        assert [p["fraction"] for p in mine][:3] == [0, 0.5, 1]
        assert any("large alone" in p["plan"] and p["steps"] < 4 for p in mine)
        assert mine[0]["speedup"] == 1
        assert all(p["accuracy"] is not None for p in mine)
    assert Image.open(tmp_path / "curve" / "curve.png").size[0] > 800
    text = (tmp_path / "curve" / "curve.json").read_text()
    run(
        capsys, "evaluate", *members, "--curve", *measure, "--fractions", "0,0.5", "--steps", 4, "--out", tmp_path / "c"
    )
    points = json.loads((tmp_path / "c" / "curve.json").read_text(), parse_constant=pytest.fail)["points"]
    assert all(p["speedup_ideal"] > 0 and p["accuracy_error"] is not None for p in points)
    assert "NaN" not in text
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    (tmp_path / "big").mkdir()
    for i in range(3):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / "big" / f"{i}.png")
    for more, wrong in (
        (["--reference", tmp_path / "stats.npz"], "statistics of 2048 pool features"),
        (["--reference", tmp_path / "big"], "different sizes are not compared"),
        (["--batch", 0], "1 at a time"),
        (["--count", -1], "at least 2 samples"),
        (["--steps", 0], "1 step"),
        (["--metrics", "kid"], "--metrics do not go with --curve"),
        (["--cache", tmp_path / "cache"], "--cache do not go with --curve"),
    ):
        assert wrong in failing(capsys, "evaluate", *members, "--curve", *measure, *more), wrong
    said = failing(capsys, "evaluate", members[0], "--curve", *measure)
    assert "two members or more" in said
    assert "numbers with commas" in failing(capsys, "evaluate", *members, "--curve", *measure, "--fractions", "a")


def test_paths_may_look_like_names(made, tmp_path, capsys):
    classifier = made / "classifier.safetensors"
    out = tmp_path / "w=2,seed=0"
    run(capsys, "sample", made / "small.safetensors", "--num", 8, "--steps", 2, "--out", out)
    said = run(capsys, "evaluate", out, "--reference", "digits", "--extractor", classifier, "--metrics", "fid")
    assert "w=2,seed=0" in said


def test_settings_of_a_run_may_not_change(made, tmp_path, capsys):
    sample = ["sample", made / "small.safetensors", "--num", 8, "--steps", 2, "--out", tmp_path / "out"]
    run(capsys, *sample)
    assert "made otherwise. There and now: steps 2 and 3" in failing(capsys, *[3 if a == 2 else a for a in sample])
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("3141592653"))
    out = run(capsys, "sample", made / "small.safetensors", "--labels", labels, "--steps", 2, "--out", tmp_path / "l")
    assert str(tmp_path / "l") in out
    assert np.load(tmp_path / "l" / "labels.npy").tolist() == [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    assert "has 10 labels for 11 samples" in failing(
        capsys, "sample", made / "small.safetensors", "--labels", labels, "--num", 11, "--out", tmp_path / "m"
    )
    labels.write_text("one\ntwo")
    assert "does not hold labels" in failing(capsys, "sample", made / "small.safetensors", "--labels", labels)


def test_samples_that_are_not_what_was_written_are_refused(tmp_path):
    out = tmp_path / "out"
    list(write_samples(denoiser(3), out, count=12, steps=2, batch=4, per_shard=4))
    assert len(open_source(str(out)).images) == 12
    (out / "labels.npy").write_bytes(b"no")
    with pytest.raises(HemstitchError, match=r"labels\.npy"):
        open_source(str(out))
    np.save(out / "labels.npy", np.zeros(12, np.int64))
    with pytest.raises(HemstitchError, match=r"labels\.npy is not what was written: run the same sampling command"):
        open_source(str(out))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out / "000006.png")
    with pytest.raises(HemstitchError, match="1 of 3 shards differ, the first with samples 4 on"):
        open_source(str(out))
    list(write_samples(denoiser(3), out, count=12, steps=2, batch=4, per_shard=4))
    assert open_source(str(out)).labels.tolist() == [i % 10 for i in range(12)]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out / "one_more.png")
    with pytest.raises(HemstitchError, match="has 13 pictures and its manifest says 12"):
        open_source(str(out))
    (out / "manifest.json").unlink()
    with pytest.raises(HemstitchError, match="is not finished"):
        open_source(str(out))
