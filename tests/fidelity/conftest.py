"""Parity with torch-fidelity: `make fidelity`. Elsewhere these tests are skipped without it, and say so."""

import os
from pathlib import Path

import pytest

from hemstitch.errors import HemstitchError, MissingExtraError
from hemstitch.evaluate.extractors.inception import inception_port

try:
    inception_port()  # first of all, so that every test can import torch_fidelity, whatever torchvision lacks
    LACKING = ""
except (HemstitchError, MissingExtraError) as error:
    LACKING = str(error)

if LACKING and os.environ.get("HEMSTITCH_FIDELITY") == "1":
    raise pytest.UsageError(f"there is no parity to be tested: {LACKING}")


def pytest_collection_modifyitems(items):
    for item in items:
        if LACKING and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"make fidelity: {LACKING}"))
