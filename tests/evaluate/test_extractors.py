"""Extractors: what they ask for and give, how they resize, and what weights they refuse."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hemstitch.data import Digits
from hemstitch.errors import CheckpointError, HemstitchError, MissingExtraError
from hemstitch.evaluate.classifier import TrainedClassifier, train_classifier
from hemstitch.evaluate.extractors import EXTRACTORS, SmallClassifier, extractor, vits, weights_hash, wrapped
from hemstitch.evaluate.extractors.bicubic import middle_square, resized
from hemstitch.evaluate.pictures import to_uint8

transformers = pytest.importorskip("transformers")
DINO = {"image_size": 42, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


# Resizing


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((32, 32), (224, 224)),
        ((256, 256), (224, 224)),
        ((301, 97), (64, 113)),
        ((5, 224), (224, 224)),
        ((7, 9), (7, 9)),
    ],
)
@pytest.mark.parametrize("kind", ["noise", "extremes"])
def test_resizing_is_pillows_bit_for_bit(source, target, kind):
    images = noise(2, 3, *source)
    if kind == "extremes":  # overshoots, which are clipped
        images = (images > 127).to(torch.uint8) * 255
    got = resized(images, *target)
    for image, one in zip(images, got, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        passes = [target[::-1]] if source[0] == source[1] else [(target[1], source[0]), target[::-1]]
        for size in passes:  # one by one where pillow's order depends on its version
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        assert np.array_equal(one.permute(1, 2, 0).numpy(), np.asarray(picture))


def test_the_middle_square():
    images = torch.arange(35, dtype=torch.uint8).reshape(1, 1, 5, 7)
    assert torch.equal(middle_square(images), images[..., 1:6])
    assert torch.equal(middle_square(images.transpose(2, 3)), images[..., 1:6].transpose(2, 3))
    with pytest.raises(HemstitchError, match="uint8"):
        resized(torch.zeros(1, 3, 4, 4), 8, 8)


# Callables of the caller


def means(images):
    return images.float().mean((2, 3))


def test_a_callable_of_the_callers():
    mine = wrapped(means, "means", "7", "abc")
    assert (mine.name, mine.version, mine.hash, mine.outputs) == ("means", "7", "abc", ("pool",))
    images = noise(4, 3, 5, 6)
    assert list(mine(images)) == ["pool"]
    assert torch.equal(mine(images)["pool"], means(images))
    both = wrapped(lambda x: {"logits": means(x), "pool": means(x).double()}, "two", outputs=("logits", "pool"))
    assert both.outputs == tuple(both(images)) == ("pool", "logits")
    assert both(images)["pool"].dtype == torch.float32


def test_a_module_of_the_callers():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    module = nn.Sequential(Scale(), net)
    mine = wrapped(module, "mine")
    assert mine.hash == weights_hash(module.state_dict())
    with pytest.raises(HemstitchError, match=r"mine is in training mode.*\.eval\(\)"):
        mine(noise(2, 3, 2, 2))
    module.eval()
    assert not mine(noise(2, 3, 2, 2))["pool"].requires_grad
    before = mine.hash
    net[1].weight.data[0, 0] += 1
    assert wrapped(module, "mine").hash != before


class Scale(nn.Module):
    def forward(self, x):
        return x.float() / 255


def test_hashes_know_names_shapes_and_values():
    weights = {"a": torch.arange(6.0), "b": torch.ones(()).bfloat16()}
    hashes = [
        weights_hash(weights),
        weights_hash(weights | {"a": torch.arange(6.0).reshape(2, 3)}),
        weights_hash({"c": weights["a"], "b": weights["b"]}),
        weights_hash(weights | {"a": weights["a"] + 1e-6}),
    ]
    assert len(set(hashes)) == 4
    assert all(len(one) == 12 for one in hashes)
    assert weights_hash(dict(reversed(weights.items()))) == hashes[0]
    assert weights_hash(weights | {"n.num_batches_tracked": torch.tensor(3)}) == hashes[0]


def test_networks_run_in_float32_and_leave_the_callers_choice():
    seen = []

    def precisions(images):
        seen.append((torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()))
        return means(images)

    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has one switch for all of cuDNN")
    before = torch.backends.cudnn.conv.fp32_precision
    torch.set_float32_matmul_precision("high")
    try:
        wrapped(precisions, "x")(noise(2, 3, 4, 4))
        assert seen == [("ieee", "highest")]
        assert (torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()) == (before, "high")
        assert torch.backends.cudnn.allow_tf32  # it can still be read
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_goes_in_and_comes_out_is_checked():
    mine = wrapped(means, "means")
    for images in (torch.zeros(2, 3, 4, 4), noise(2, 1, 4, 4), noise(3, 4, 4)):
        with pytest.raises(HemstitchError, match=r"means takes pictures uint8 \(B, 3, H, W\).*to_uint8"):
            mine(images)
    images = noise(4, 3, 5, 5)
    for bad in (means(images)[:3], means(images).long(), means(images).mean(1)):
        with pytest.raises(HemstitchError, match=r"means gives .* as pool: expected floats"):
            wrapped(lambda x, bad=bad: bad, "means")(images)
    with pytest.raises(HemstitchError, match="was to give pool, and gave logits"):
        wrapped(lambda x: {"logits": means(x)}, "means")(images)
    with pytest.raises(HemstitchError, match="not depth"):
        wrapped(means, "means", outputs=("pool", "depth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error(value):
    def bad(images):
        features = means(images)
        features[2:, 1] = value
        return features

    with pytest.raises(HemstitchError, match=r"mine gives pool features that are not finite, for 2 .* row 2"):
        wrapped(bad, "mine")(noise(4, 3, 5, 5))


# The small classifier


@pytest.fixture(scope="module")
def digits():
    return train_classifier(Digits("train"), Digits("test"), steps=5)


def test_the_classifier(digits, tmp_path):
    digits.save(tmp_path / "classifier.safetensors")
    small = extractor(str(tmp_path / "classifier.safetensors"))
    assert (small.name, small.outputs, small.hash) == ("classifier", ("pool", "spatial", "logits"), digits.hash)
    assert small.version.startswith("hemstitch ")
    x0 = Digits("test").images(torch.arange(20))
    pictures = to_uint8(x0).expand(-1, 3, -1, -1)
    got = small(pictures)
    exact = to_uint8(x0).float() / 127.5 - 1
    assert torch.equal(got["pool"], digits.features(exact))
    assert torch.equal(got["logits"].argmax(1), digits.classify(exact))
    maps = digits.net.trunk[:5](exact)
    assert got["spatial"].shape == (20, 4 * 4 * 7)
    assert torch.equal(got["spatial"].reshape(20, 4, 4, 7), maps[:, :7].permute(0, 2, 3, 1))
    assert extractor("classifier", weights=str(tmp_path / "classifier.safetensors")).hash == small.hash


def test_the_classifier_asks_for_its_size_and_for_grey(digits):
    small = SmallClassifier(digits)
    with pytest.raises(HemstitchError, match=r"8 x 8 pixels, and these are 9 x 8: resize"):
        small(noise(2, 3, 9, 8))
    with pytest.raises(HemstitchError, match="trained on grey pictures"):
        small(noise(2, 3, 8, 8))


def test_names(tmp_path):
    assert list(EXTRACTORS) == ["inception", "dinov2", "clip", "classifier"]
    with pytest.raises(HemstitchError, match=r"inception, dinov2, clip, classifier.*not 'incept'"):
        extractor("incept")
    with pytest.raises(HemstitchError, match="train_classifier"):
        extractor("classifier")
    with pytest.raises(HemstitchError, match=r"x\.safetensors does not exist"):
        extractor(str(tmp_path / "x.safetensors"))
    with pytest.raises(HemstitchError, match="leave out weights"):
        extractor("x.safetensors", weights="y")


def test_missing_packages_name_their_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    for name, extra in (("dinov2", "transformers"), ("clip", "transformers"), ("inception", "inception")):
        with pytest.raises(MissingExtraError, match=rf"hemstitch\[{extra}\]"):
            extractor(name)


# torch-fidelity, whose parity is tested in tests/fidelity: here a stand-in, beside a torchvision that does not load

DESCRIBED = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, threshold): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, threshold): ...
"""


def installed(path, torchvision):
    """The folder of a torch-fidelity, whose torchvision runs this at import."""
    for name, text in (
        ("torchvision", torchvision),
        ("torch_fidelity", "import torchvision"),
        ("torch_fidelity/feature_extractor_inceptionv3", "URL_INCEPTION_V3 = 'https://…'"),
    ):
        file = path / (f"{name}.py" if "/" in name else f"{name}/__init__.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return path


def run(path, *command, **environment):
    """A Python of its own, for what torch is told of operators stays told."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(path), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


IMPORTED = """
import torch
from hemstitch.evaluate.extractors.inception import inception_port
assert inception_port() is inception_port()
import torchvision, torch_fidelity
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("imported")
"""


def test_operators_of_torchvision_that_do_not_load(tmp_path):
    installed(tmp_path, DESCRIBED)
    alone = run(tmp_path, "-c", "import torch_fidelity")
    assert "RuntimeError: operator torchvision::nms does not exist" in alone.stderr
    done = run(tmp_path, "-W", "error", "-c", IMPORTED)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.parametrize(
    ("torchvision", "words"),
    [
        (
            "raise RuntimeError('CUDA 12.1 and CUDA 13.0\\nand more')",
            r"\(CUDA 12\.1 and CUDA 13\.0\): torch .* torchvision",
        ),
        ("raise ImportError('undefined symbol')", r"undefined symbol.*belong together; install both"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "operator torchvision::nms.*belong together",
        ),
        ("import gone_for_good", r"torch-fidelity needs gone_for_good, which is not installed"),
    ],
)
def test_a_torchvision_that_cannot_be_helped(torchvision, words, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "torch_fidelity")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(installed(tmp_path, torchvision)))
    with pytest.raises(HemstitchError, match=words):
        extractor("inception")


def test_parity_is_skipped_only_where_it_is_not_asked_for(tmp_path):
    (tmp_path / "torch_fidelity.py").write_text("raise ModuleNotFoundError('none', name='torch_fidelity')")
    command = ("-m", "pytest", "tests/fidelity", "-p", "no:cacheprovider")
    skipped = run(tmp_path, *command, HEMSTITCH_FIDELITY="")
    assert "make fidelity: torch-fidelity is needed here and not installed" in skipped.stdout
    assert "passed" not in skipped.stdout
    failed = run(tmp_path, *command, HEMSTITCH_FIDELITY="1")
    assert failed.returncode not in (0, 5)
    assert "there is no parity to be tested: torch-fidelity is needed here" in failed.stdout + failed.stderr


# DINOv2 and CLIP, small and with random weights


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dino")
    transformers.Dinov2Model(transformers.Dinov2Config(**DINO, initializer_range=0.5)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=8,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(path)
    return path


def pil_pixels(image, size, mean, std):
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy((np.asarray(picture) / 255 - mean) / std).permute(2, 0, 1).float()


def test_dinov2(dino):
    ours = extractor("dinov2", weights=str(dino))
    assert (ours.name, ours.outputs) == ("dinov2", ("pool",))
    assert ours.version == f"transformers {transformers.__version__}"
    images = noise(3, 3, 30, 50)
    pixels = torch.stack([pil_pixels(one, 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for one in images])
    net = transformers.Dinov2Model.from_pretrained(dino).eval()
    assert ours.hash == weights_hash(net.state_dict())
    with torch.no_grad():
        theirs = net(pixel_values=pixels).pooler_output
        places = net.embeddings.position_embeddings
        net.embeddings.position_embeddings = nn.Parameter(vits._resampled(places, 16))
        exact = net(pixel_values=pixels).pooler_output
    got = ours(images)["pool"]
    assert got.shape == (3, 16)
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, theirs, atol=1e-3)  # transformers' own resampling of 3 x 3 places is another


def test_position_embeddings_are_resampled_as_dinov2_does_it():
    places = torch.arange(10.0).reshape(1, 10, 1)
    assert torch.equal(vits._resampled(places, 3), places)
    got = vits._resampled(places, 6)
    assert torch.equal(got[:, :1], places[:, :1])
    # the first of 6 places over 3 lies at 0.5 * 3 / 6.1 - 0.5 of them, and not at 0.5 * 3 / 6 - 0.5 = -0.25
    t = 0.5 * 3 / 6.1 - 0.5 + 1
    weights = np.array([cubic(t + 1), cubic(t), cubic(1 - t), cubic(2 - t)])
    row = weights @ np.array([0.0, 0.0, 0.0, 1.0])  # from place -1, repeated at the edge
    assert float(got[0, 1, 0]) == pytest.approx(1 + row + 3 * row, abs=1e-5)


def cubic(x, a=-0.75):
    """torch's kernel of bicubic interpolation."""
    return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)


def test_clip(clip):
    ours = extractor("clip", weights=str(clip))
    images = noise(3, 3, 30, 50)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.stack([pil_pixels(one[:, :, 10:40], 28, mean, std) for one in images])
    with torch.no_grad():
        net = transformers.CLIPVisionModelWithProjection.from_pretrained(clip).eval()
        expected = net(pixel_values=pixels).image_embeds
    got = ours(images)["pool"]
    assert got.shape == (3, 8)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_hash_is_of_the_weights(dino, tmp_path):
    net = transformers.Dinov2Model.from_pretrained(dino)
    net.save_pretrained(tmp_path / "same")
    net.layernorm.weight.data[0] += 1e-3
    net.save_pretrained(tmp_path / "other")
    hashes = [extractor("dinov2", weights=str(path)).hash for path in (dino, tmp_path / "same", tmp_path / "other")]
    assert hashes[0] == hashes[1] != hashes[2]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("went-off",)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_pickled_or_incomplete_weights_are_refused(name, dino, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"dinov2": dino, "clip": clip}[name]
    folder = tmp_path / "x"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"x has no config\.json"):
        extractor(name, weights=str(folder))
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"x has no model\.safetensors"):
        extractor(name, weights=str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is pickled.*safetensors"):
        extractor(name, weights=str(folder))
    assert not (tmp_path / "went-off").exists()
    whole = (source / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"x holds no .* that loads"):
        extractor(name, weights=str(folder))
    other = {"dinov2": clip, "clip": dino}[name]
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"x lacks weights of its"):
        extractor(name, weights=str(folder))


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch):
    def offline(*args, **options):
        assert options["use_safetensors"]
        assert not options["local_files_only"]
        raise OSError("no network\nand more")

    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", offline)
    with pytest.raises(CheckpointError, match=r"facebook/dinov2-large is no local folder.*no network\)"):
        extractor("dinov2")


def test_patches_that_do_not_tile_224_pixels(tmp_path):
    config = transformers.Dinov2Config(**(DINO | {"patch_size": 13, "image_size": 39}))
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="patches of 13 pixels"):
        extractor("dinov2", weights=str(tmp_path))


def test_the_trained_classifier_is_itself(digits):
    assert isinstance(digits, TrainedClassifier)
    assert SmallClassifier(digits).accuracy == digits.accuracy
