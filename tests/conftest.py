from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hemstitch.denoiser import NetDenoiser, Spec
from hemstitch.models import NetConfig, build
from hemstitch.process import Process

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


FAMILY = {"dit": "dit", "small": "dit", "dtr": "dtr", "switch": "switch_dit"}


@pytest.fixture(scope="session")
def golden_nets(golden):
    """The four golden networks, by golden name."""
    nets = {}
    for name, family in FAMILY.items():
        width, depth = (16, 2) if name == "small" else (32, 3)
        net = build(
            NetConfig(
                family=family,
                input_size=8,
                channels=4,
                patch=2,
                width=width,
                depth=depth,
                heads=2,
                num_classes=10,
            )
        )
        weights = {k.removeprefix(f"{name}/"): v for k, v in golden.items() if k.startswith(f"{name}/")}
        net.load_state_dict(weights)
        nets[name] = net.eval()
    return nets


@pytest.fixture(scope="session")
def golden_denoisers(golden_nets):
    process = Process("linear", "eps", learned_variance=True)
    return {name: NetDenoiser(net, process, Spec(4, 8, 10, null_label=True)) for name, net in golden_nets.items()}


def close(actual, expected, tolerance=1e-5):
    """Within `tolerance` of the largest expected magnitude, the golden rule of the project."""
    scale = expected.abs().max() if expected.any() else torch.ones(())
    gap = (actual - expected).abs().max() / scale
    assert actual.shape == expected.shape
    assert gap <= tolerance, f"off by {gap:.2e} of the largest magnitude"


@pytest.fixture(scope="session")
def assert_close():
    return close


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # two that wait for each other are slower wherever the machine is shared
