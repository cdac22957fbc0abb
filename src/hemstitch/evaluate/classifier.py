"""A small classifier whose features measure distance, and whose answers measure whether a sample is of its class.

For data sets without an agreed feature network. It is trained here, on the data set's own training images, and its
accuracy on held-out images is part of every figure made with it.

Shape suffixes: B batch, C channels, S size, F features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..data import Dataset, batch_at
from ..errors import CheckpointError
from ..files import read_json, save_tensors, write_atomic


@dataclass(frozen=True)
class Shape:
    channels: int
    size: int
    classes: int
    width: int = 32
    features: int = 64


class Classifier(nn.Module):
    """Three 3x3 convolutions, halved twice, then a feature layer and a linear read-out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        w = shape.width
        self.trunk = nn.Sequential(
            nn.Conv2d(shape.channels, w, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(w, 2 * w, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * w, 2 * w, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * w * (shape.size // 4) ** 2, shape.features),
            nn.ReLU(),
        )
        self.head = nn.Linear(shape.features, shape.classes)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        return self.head(self.trunk(x_BCSS))


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier. accuracy: on held-out images. hash: of its weights."""

    net: Classifier
    accuracy: float

    @property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for value in self.net.state_dict().values():
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, F) features of images (N, C, S, S) in -1..1."""
        return torch.cat([self.net.trunk(part.clamp(-1, 1)) for part in torch.split(images, 500)])

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """(N,) predicted labels."""
        return self.net.head(self.features(images)).argmax(1)

    def save(self, path: Path) -> None:
        note = json.dumps({"shape": asdict(self.net.shape), "accuracy": self.accuracy})
        write_atomic(path, lambda aside: save_tensors(aside, self.net.state_dict(), {"classifier": note}))

    @classmethod
    def load(cls, path: Path) -> TrainedClassifier:
        try:
            with safe_open(path, "pt") as file:
                note = read_json((file.metadata() or {}).get("classifier", ""), f"the metadata of {path}")
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            net = Classifier(Shape(**note["shape"]))
            net.load_state_dict(weights)
            return cls(net.eval(), float(note["accuracy"]))
        except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{path} is not a classifier of this library: {error}") from None


def train_classifier(
    train: Dataset, test: Dataset, steps: int = 600, batch: int = 128, seed: int = 0
) -> TrainedClassifier:
    """Train on one split, measure on another: AdamW with one-cycle learning rate, images jittered by a pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(Shape(train.channels, train.size, len(train.classes)))
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for step in range(steps):
            index = batch_at(len(train), batch, seed, step)
            images = train.images(index)
            rows, columns = torch.randint(0, 3, (2,)).tolist()
            padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
            images = padded[..., rows : rows + train.size, columns : columns + train.size]
            loss = F.cross_entropy(net(images), train.labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
    net.eval()
    with torch.no_grad():
        predicted = net(test.images(torch.arange(len(test)))).argmax(1)
    return TrainedClassifier(net, float((predicted == test.labels).double().mean()))
