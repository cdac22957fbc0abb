import pytest
import torch
from safetensors.torch import save_file

from hemstitch import HemstitchError
from hemstitch.data import Digits
from hemstitch.evaluate.classifier import TrainedClassifier, train_classifier
from hemstitch.evaluate.frechet import Moments, frechet_distance


@pytest.fixture(scope="module")
def extractor():
    return train_classifier(Digits("train"), Digits("test"), steps=250)


def test_it_knows_digits(extractor):
    assert extractor.accuracy > 0.95
    test = Digits("test")
    predicted = extractor.classify(test.images(torch.arange(len(test))))
    assert float((predicted == test.labels).double().mean()) == pytest.approx(extractor.accuracy)


def test_noise_is_far_and_digits_are_near(extractor):
    train, test = Digits("train"), Digits("test")
    reference = Moments.of(extractor.features(train.images(torch.arange(len(train)))))
    near = frechet_distance(Moments.of(extractor.features(test.images(torch.arange(len(test))))), reference)
    far = frechet_distance(Moments.of(extractor.features(torch.randn(360, 1, 8, 8))), reference)
    assert far > 10 * near


def test_round_trip(extractor, tmp_path):
    path = tmp_path / "classifier.safetensors"
    extractor.save(path)
    back = TrainedClassifier.load(path)
    images = Digits("test").images(torch.arange(20))
    assert torch.equal(back.features(images), extractor.features(images))
    assert (back.accuracy, back.hash) == (extractor.accuracy, extractor.hash)


def test_other_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(HemstitchError, match=r"x\.safetensors"):
        TrainedClassifier.load(tmp_path / "x.safetensors")


def test_training_it_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_classifier(Digits("train"), Digits("test"), steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_splits_do_not_overlap():
    train, test, everything = Digits("train"), Digits("test"), Digits("all")
    assert (len(train), len(test), len(everything)) == (1437, 360, 1797)
    images = torch.cat([d.images(torch.arange(len(d))).flatten(1) for d in (train, test)])
    both = everything.images(torch.arange(1797)).flatten(1)
    assert sorted(map(tuple, images.tolist())) == sorted(map(tuple, both.tolist()))
    assert float(both.min()) == -1
    assert float(both.max()) == 1
