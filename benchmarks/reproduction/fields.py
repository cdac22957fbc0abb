"""What samples are judged by: a data set, the features of a classifier of it, and the images held out.

Shape suffixes: N samples, C channels, S size, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import hemstitch as hs
from hemstitch.bulk.settings import to_pixels
from hemstitch.data import Dataset, Digits, open_dataset
from hemstitch.data.idx import Idx
from hemstitch.denoiser import Denoiser
from hemstitch.evaluate.classifier import TrainedClassifier, train_classifier
from hemstitch.evaluate.extractors import SmallClassifier
from hemstitch.evaluate.features import moments_of
from hemstitch.evaluate.images import TensorImages
from hemstitch.evaluate.neighbours import Manifold, neighbours
from hemstitch.evaluate.score import Score, resampled_means
from hemstitch.files import save_tensors, write_atomic
from hemstitch.identity import identity
from hemstitch.stitch.search.judge import Frechet, Pixels

from .work import Task

FASHION = Path("/usr/share/datasets/fashion-mnist")
BATCH = 125  # samples at a time, wherever a figure is of samples: their noise is the same under any


@dataclass(frozen=True)
class Field:
    """A data set and its judge.

    train: what networks learn, by name and arguments of `open_dataset`. test: what is held out from the classifier;
    reference: what distances are to. classifier_steps: of its training. shape: channels, side and classes of the data,
    so that recipes are known before the data are there.
    """

    name: str
    folder: Path
    train: tuple[str, str, int]
    test: Callable[[], Dataset]
    reference: Callable[[], Dataset]
    classifier_steps: int
    shape: tuple[int, int, int]

    @property
    def settings(self) -> tuple[object, ...]:
        """What its classifier, and so all figures of it, hang on."""
        return self.name, self.shape, self.classifier_steps

    def data(self) -> Dataset:
        return open_dataset(*self.train)

    @property
    def classifier_path(self) -> Path:
        return self.folder / f"{self.name}-classifier-{self.classifier_steps}.safetensors"

    def task(self, name: str) -> Task:
        """The task that prepares it."""
        return Task(name, self.prepare, of=self.settings, keeps=self.classifier_path, dtype="float32")

    def prepare(self) -> dict[str, Any]:
        """Train the classifier, if there is none yet, and say what it is worth: a result of a task.

        noise: the distance of the training images to the reference (as many, at random), which a perfect model has.
        """
        if not self.classifier_path.exists():
            train_classifier(self.data(), self.test(), steps=self.classifier_steps).save(self.classifier_path)
        held, data = self.reference(), self.data()
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: len(held)]
        real = self.scores(self.rows(data.images(order)), data.labels[order])
        return {
            "classifier": self.classifier.hash,
            "classifier_accuracy": self.classifier.accuracy,
            "held_out": len(self.test()),
            "reference": f"{held.name}, {len(held)} images",
            "training_images": {name: told(score) for name, score in real.items()},
        }

    @cached_property
    def classifier(self) -> TrainedClassifier:
        return TrainedClassifier.load(self.classifier_path)

    @cached_property
    def extractor(self) -> SmallClassifier:
        return SmallClassifier(self.classifier)

    @cached_property
    def pictures(self) -> TensorImages:
        """The reference's."""
        held = self.reference()
        images = to_pixels(held.images(torch.arange(len(held))), "floor")
        return TensorImages(images, name=f"{held.name}, {len(held)} images", grey=held.channels == 1)

    @cached_property
    def judge(self) -> Frechet:
        spec = self.data().spec(null_label=True)
        return Frechet(Pixels(spec), self.extractor, moments_of(self.pictures, self.extractor), self.pictures.name)

    @cached_property
    def _manifold(self) -> Manifold:
        held = self.reference()
        return Manifold.of(self.rows(held.images(torch.arange(len(held)))))

    def rows(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) features of samples in -1..1."""
        return torch.cat([self.judge.rows(part, None) for part in x_NCSS.split(500)])

    def scores(self, rows_NF: Tensor, labels_N: Tensor) -> dict[str, Score]:
        """Distance, precision, recall and class accuracy of samples by their features."""
        near = neighbours(Manifold.of(rows_NF), self._manifold)
        with torch.no_grad():
            right = (self.classifier.net.head(rows_NF).argmax(1) == labels_N).numpy()
        accuracy = Score(float(right.mean()), resampled_means(right, 100), resampled=len(right))
        return {
            "distance": self.judge.score(rows_NF),
            "precision": near.precision,
            "recall": near.recall,
            "accuracy": accuracy,
        }


def told(score: Score) -> dict[str, Any]:
    """A score as it goes into a result: value, and the standard error over samples."""
    return {"value": score.value, "error": score.error, "samples": score.resampled}


def draws(score: Score) -> list[float]:
    """Of a score, six digits each: whoever has those of two sets of the same samples can compare them as pairs."""
    return [float(f"{draw:.6g}") for draw in score.draws]


def distance_of(result: Mapping[str, Any]) -> Score:
    """The distance of a result that has it as `told` and its `draws` beside."""
    kept = result["distance"]
    return Score(kept["value"], np.array(result["draws"]), resampled=kept["samples"], biased_by_size=True)


def classes(num: int, count: int = 10) -> Tensor:
    """(N,) labels: every class in turn."""
    return torch.arange(num) % count


def of(kept: Path, *parts: object) -> Path:
    """A folder within `kept` for what was made by just these: another model, judge or way of sampling has another."""
    return kept / hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def sampled_rows(field: Field, model: Denoiser, num: int, kept: Path, seed: int, **look: Any) -> Tensor:
    """(N, F) features of samples 0..num of a seed; kept as they are made, so that a run stopped goes on from there.

    look: as of `generate`, sampler, steps, guidance and the like.
    """
    labels, parts = classes(num, model.spec.num_classes), []
    kept = of(kept, identity(model), field.judge.hash, seed, sorted(look.items()), BATCH)
    for start in range(0, num, 10 * BATCH):
        path, wanted = kept / f"{start:06d}.safetensors", min(num - start, 10 * BATCH)
        if not path.exists() or len(load_file(path)["rows"]) < wanted:
            rows = []
            for first in range(start, min(num, start + 10 * BATCH), BATCH):
                ids = range(first, min(num, first + BATCH))
                x = hs.generate(model, labels[first : first + BATCH], seeds=[(seed, i) for i in ids], **look)
                rows.append(field.rows(x))
            tensors = {"rows": torch.cat(rows)}
            write_atomic(path, lambda aside, tensors=tensors: save_tensors(aside, tensors))
        parts.append(load_file(path)["rows"])
    return torch.cat(parts)[:num]


def judged(field: Field, model: Denoiser, num: int, kept: Path, seed: int, look: Mapping[str, Any]) -> dict[str, Score]:
    """Scores of samples of a model, by name."""
    return field.scores(sampled_rows(field, model, num, kept, seed, **look), classes(num, model.spec.num_classes))


def fashion(folder: Path) -> Field:
    """60,000 images to learn, the 10,000 test images as the reference."""
    held = lambda: Idx(FASHION, 28, "test", fashion=True)  # noqa: E731
    return Field("fashion", folder, ("fashion_mnist", "", 28), held, held, 1500, (1, 28, 10))


def digits(folder: Path) -> Field:
    """scikit-learn's; the reference is all of them, for the held-out part is small."""
    return Field(
        "digits", folder, ("digits", "train", 8), lambda: Digits("test"), lambda: Digits("all"), 600, (1, 8, 10)
    )
