"""Inception by way of torch-fidelity: the same features as its own, and the same figures of two folders."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from hemstitch.errors import CheckpointError, HemstitchError, MissingExtraError
from hemstitch.evaluate import Measuring, evaluate, open_source
from hemstitch.evaluate.extractors import extractor, weights_hash
from hemstitch.evaluate.extractors.inception import inception_port

try:
    port = inception_port()
except (HemstitchError, MissingExtraError) as error:
    pytest.skip(f"make fidelity: {error}", allow_module_level=True)
BATCH = 8


def noise(count, seed):
    """Smooth pictures, for those of independent pixels all look alike to a random network."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = nn.functional.interpolate(coarse, (32, 32), mode="bilinear") * 255
    return (fine + 20 * torch.randn(fine.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def net():
    """torch-fidelity's network with random weights whose activations neither vanish nor explode."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # its constructor insists on weights
        patch.setattr(port, "load_state_dict_from_url", lambda *args, **options: {})
        patch.setattr(port.FeatureExtractorInceptionV3, "load_state_dict", lambda self, weights: None)
        net = port.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased", "768"])
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the one batch below
    net.train()
    net(noise(4, seed=9))
    return net.eval()


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ours(weights):
    return extractor("inception", weights=str(weights))


def test_features_are_torch_fidelitys(net, ours):
    images = noise(3, seed=1)
    maps = []
    hook = net.Mixed_6d.register_forward_hook(lambda module, inputs, output: maps.append(output))
    pool, logits, _ = net(images)
    hook.remove()
    got = ours(images)
    assert tuple(got) == ours.outputs == ("pool", "spatial", "logits")
    assert torch.equal(got["pool"], pool)
    assert torch.equal(got["logits"], logits)
    assert 0.01 < float(pool.std(0).mean()) < 100
    # the block's output begins with its branch of 1x1; the evaluator of ADM takes [..., :7] of it with channels last
    by_hand = maps[0].permute(0, 2, 3, 1)[..., :7].reshape(3, -1)
    assert got["spatial"].shape == (3, 2023)
    assert torch.equal(got["spatial"], by_hand)
    assert float(got["spatial"].min()) == 0  # after ReLU
    assert not net.Mixed_6d.branch1x1._forward_hooks


def test_what_it_is_called(net, ours):
    from torch_fidelity import __version__

    assert (ours.name, ours.version) == ("inception", f"torch-fidelity {__version__}")
    assert ours.hash == weights_hash(net.state_dict())


def test_an_evaluation_is_torch_fidelitys(weights, ours, tmp_path):
    from torch_fidelity import calculate_metrics

    counts = 36, 40
    for name, seed, count in (("samples", 2, counts[0]), ("reference", 3, counts[1])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(noise(count, seed)):
            Image.fromarray(np.asarray(image.permute(1, 2, 0))).save(tmp_path / name / f"{i:03}.png")
    theirs = calculate_metrics(
        input1=str(tmp_path / "samples"), input2=str(tmp_path / "reference"), fid=True, isc=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048", feature_extractor_weights_path=str(weights),
        kid_subset_size=min(counts), batch_size=BATCH, cuda=False, cache=False, verbose=False,
    )  # fmt: skip
    report = evaluate(
        {"samples": [open_source(str(tmp_path / "samples"))]},
        open_source(str(tmp_path / "reference")),
        ["fid", "is", "kid", "prc"],
        Measuring(ours, {}, batch=BATCH, resamples=3),
    )
    names = {
        "fid": "frechet_inception_distance",
        "is": "inception_score_mean",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    (row,) = report.rows
    assert set(row.scores) == set(names)
    assert theirs["frechet_inception_distance"] > 1e-2
    assert 0 < theirs["precision"] < 1
    assert 0 < theirs["recall"] < 1
    for name, score in row.scores.items():
        assert score.value == pytest.approx(theirs[names[name]], rel=1e-4, abs=1e-4), name


def test_weights_as_safetensors_and_without_counts(net, ours, tmp_path):
    tensors = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "inception.safetensors")
    other = extractor("inception", weights=str(tmp_path / "inception.safetensors"))
    assert other.hash == ours.hash
    images = noise(1, seed=4)
    assert torch.equal(other(images)["pool"], ours(images)["pool"])
    tensors["fc.weight"] = tensors["fc.weight"] + 1
    save_file(tensors, tmp_path / "inception.safetensors")
    assert extractor("inception", weights=str(tmp_path / "inception.safetensors")).hash != ours.hash


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("went-off",)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = {"bomb.pth": pickle.dumps(Bomb(), protocol=2), "text.pth": b"text", "text.safetensors": b"text"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name} does not load as tensors alone.*6726825d\.pth"):
            extractor("inception", weights=name)
    torch.save({"bomb": Bomb()}, "zipped.pth")
    with pytest.raises(CheckpointError, match=r"zipped\.pth does not load as tensors alone"):
        extractor("inception", weights="zipped.pth")
    assert not (tmp_path / "went-off").exists()
    torch.save([torch.zeros(1)], "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth is not a state dict"):
        extractor("inception", weights="list.pth")
    save_file({"x": torch.zeros(1)}, "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not of torch-fidelity's Inception"):
        extractor("inception", weights="other.safetensors")
    with pytest.raises(CheckpointError, match=r"gone\.pth is no file"):
        extractor("inception", weights="gone.pth")


def test_its_own_weights_are_fetched_without_unpickling(net, ours, monkeypatch):
    asked = {}

    def fetched(url, **options):
        asked.update(options, url=url)
        return net.state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetched)
    assert extractor("inception").hash == ours.hash
    assert asked["url"] == port.URL_INCEPTION_V3
    assert asked["weights_only"]
    assert asked["check_hash"]

    def offline(url, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(HemstitchError, match=r"no network\): fetch weights-inception.*path as weights"):
        extractor("inception")
