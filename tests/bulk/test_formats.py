"""Formats: what other tools read in them, and that bytes depend on the images alone."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hemstitch import HemstitchError, generate
from hemstitch.bulk import MANIFEST, write_samples
from hemstitch.bulk.settings import to_pixels
from hemstitch.bulk.write import sheet_of
from hemstitch.data import Shards
from hemstitch.evaluate.extractors import wrapped

LOOK = {"steps": 2, "batch": 4, "per_shard": 8}


def write(model, out, count=11, **options):
    return list(write_samples(model, out, count=count, **{**LOOK, **options}))


def files(folder):
    """Every file that is the same whenever and wherever it is written."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".json"
    }


def test_pictures_are_the_samples(model, tmp_path):
    write(model, tmp_path / "out", labels=[3, 7])
    images = generate(model, [3, 7] * 2, seeds=[(0, i) for i in range(4)], steps=2)
    for i, image in enumerate(to_pixels(images, "floor")):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"{i:06d}.png")), image[0].numpy())
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [f"{i:06d}.png" for i in range(11)]
    assert np.load(tmp_path / "out" / "labels.npy").tolist() == ([3, 7] * 6)[:11]
    assert sheet_of(tmp_path / "out") == tmp_path / "out-grid.png"
    assert Image.open(tmp_path / "out-grid.png").mode == "L"


def test_the_array_has_adms_layout(model, rgb, tmp_path):
    for net, grey in ((model, True), (rgb, False)):
        out = tmp_path / str(grey)
        write(net, out, formats=["npz", "png"])
        with np.load(out / "samples.npz") as data:
            assert (data["arr_0"].shape, data["arr_0"].dtype) == ((11, 8, 8, 3), np.uint8)
            assert data["arr_1"].tolist() == [i % 10 for i in range(11)]
            for i, picture in enumerate(data["arr_0"]):
                stored = np.asarray(Image.open(out / f"{i:06d}.png"))
                assert np.array_equal(picture, np.repeat(stored[..., None], 3, -1) if grey else stored)
        assert not (out / "parts").exists()


def test_tars_are_webdatasets(rgb, tmp_path):
    write(rgb, tmp_path / "out", formats=["webdataset", "png"])
    data = Shards(tmp_path / "out", 8)
    assert data.labels.tolist() == [i % 10 for i in range(11)]
    pixels = ((data.images(torch.arange(11)) + 1) * 127.5).round().byte()
    for i in range(11):
        assert np.array_equal(pixels[i].permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / f"out/{i:06d}.png")))
    with tarfile.open(tmp_path / "out" / "shard-00001.tar") as archive:
        assert archive.getnames()[:2] == ["000008.png", "000008.cls"]
        assert {m.mtime for m in archive.getmembers()} == {0}


def test_latents_are_kept_whole(latent, tmp_path):
    write(latent, tmp_path / "out")
    kept = load_file(tmp_path / "out" / "latents-00000.safetensors")
    expected = generate(latent, list(range(4)), seeds=[(0, i) for i in range(4)], steps=2)
    assert torch.equal(kept["x0"][:4], expected)
    assert kept["labels"].tolist() == list(range(8))
    with pytest.raises(HemstitchError, match="latents, not pictures"):
        write(latent, tmp_path / "no", formats=["png"])


def test_features_need_no_pictures(model, tmp_path):
    means = wrapped(lambda images: images.float().mean((2, 3)), "means")
    write(model, tmp_path / "out", extractors=[means])
    write(model, tmp_path / "both", extractors=[means], formats=["features", "png"])
    kept = [load_file(tmp_path / "out" / "features" / "means" / f"{k:05d}.safetensors")["pool"] for k in range(2)]
    expected = [np.asarray(Image.open(tmp_path / "both" / f"{i:06d}.png")).mean() for i in range(11)]
    assert torch.cat(kept)[:, 0].numpy() == pytest.approx(np.array(expected), rel=1e-5)
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("kind", ["png", "npz", "webdataset", "latents"])
def test_the_batch_of_the_last_shard_and_the_shards_decide_nothing(model, tmp_path, kind):
    """At one batch shape every image is the same to the byte, however many are asked for."""
    few = {"formats": [kind], "labels": [5]}
    write(model, tmp_path / "few", **few)
    write(model, tmp_path / "more", count=13, **few)
    if kind == "png":
        assert all((tmp_path / "more" / n).read_bytes() == b for n, b in files(tmp_path / "few").items() if "png" in n)
    if kind == "npz":
        a, b = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("few", "more"))
        assert np.array_equal(a, b[:11])
    write(model, tmp_path / "wide", per_shard=4, **few)
    if kind == "npz":
        assert (tmp_path / "wide" / "samples.npz").read_bytes() == (tmp_path / "few" / "samples.npz").read_bytes()
    contents = [json.loads((tmp_path / n / MANIFEST).read_text())["content"] for n in ("few", "more", "wide")]
    assert contents[0] != contents[1]


def test_labels_of_every_kind(model, tmp_path):
    write(model, tmp_path / "random", labels="random", count=40, formats=["features"], extractors=[LABELLED])
    drawn = np.load(tmp_path / "random" / "labels.npy")
    assert 4 < len(set(drawn.tolist())) <= 10
    write(model, tmp_path / "fewer", labels="random", count=8, formats=["features"], extractors=[LABELLED])
    assert np.array_equal(np.load(tmp_path / "fewer" / "labels.npy"), drawn[:8])
    for wrong in ([10], [-1], [0.5], "some", []):
        with pytest.raises(HemstitchError, match="labels"):
            write(model, tmp_path / "no", labels=wrong)
    assert not (tmp_path / "no").exists()


LABELLED = wrapped(lambda images: images.float().mean((2, 3)), "means")


def test_quantised_as_published():
    """ADM cuts (x + 1) · 127.5 off, DiT 127.5 x + 128; both clip."""
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.0039, 1.0, 3.0])
    assert to_pixels(x, "floor").tolist() == [0, 0, 0, 127, 127, 255, 255]
    assert to_pixels(x, "round").tolist() == [0, 0, 0, 128, 128, 255, 255]
    with pytest.raises(HemstitchError, match="'floor' or 'round'"):
        to_pixels(x, "ceil")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"per_shard": 6}, "a multiple of the batch of 4, as 4"),
        ({"formats": ["gif"]}, "formats are some of png"),
        ({"formats": ["png", "png"]}, "each once"),
        ({"formats": ["features"]}, "go together"),
        ({"count": 0}, "at least 1"),
        ({"guidance": float("nan")}, "finite"),
        ({"sampler": "rk4"}, "sampler is one of"),
        ({"quantise": "ceil"}, "'floor' or 'round'"),
    ],
)
def test_bad_input_is_found_before_anything_is_written(model, tmp_path, options, said):
    with pytest.raises(HemstitchError, match=said):
        write(model, tmp_path / "out", **{"count": 11, **options})
    assert not (tmp_path / "out").exists()


def test_samples_that_are_not_finite_are_named(model, tmp_path):
    with pytest.raises(HemstitchError, match=r"sample \d+ is not finite: less guidance"):
        write(model, tmp_path / "out", guidance=1e38)
