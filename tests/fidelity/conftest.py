"""Parity with torch-fidelity: `make fidelity`. Without it these tests are skipped, and say so.

torch-fidelity asks for torchvision, whose compiled operators need the build of torch with CUDA. Nothing here calls
them; where they do not load, declaring the two that it describes at import lets its Python part be imported.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

INSTALLED = importlib.util.find_spec("torch_fidelity") is not None

if INSTALLED:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _declared = torch.library.Library("torchvision", "DEF")
        for _name in ("nms", "qnms"):
            _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents and not INSTALLED:
            item.add_marker(pytest.mark.skip(reason="torch-fidelity is not installed: make fidelity"))
