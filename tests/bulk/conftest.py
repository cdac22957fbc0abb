import pytest
import torch

from hemstitch import NetDenoiser, Process, Spec
from hemstitch.models import NetConfig, build


def denoiser(channels=1, classes=10, seed=0):
    config = NetConfig(
        family="switch_dit", input_size=8, channels=channels, width=16, depth=1, heads=2, num_classes=classes,
        null_label=classes > 0,
    )  # fmt: skip
    net = build(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.normal_(std=0.05, generator=generator)
    return NetDenoiser(net.eval(), Process(), Spec(channels, 8, classes, classes > 0))


@pytest.fixture(scope="session")
def model():
    return denoiser()


@pytest.fixture(scope="session")
def rgb():
    return denoiser(3)


@pytest.fixture(scope="session")
def latent():
    return denoiser(4)
