"""`benchmarks` is where the package `reproduction` is; and a data set whose judge is made in no time."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.insert(0, BENCHMARKS)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """8x8 digits, and a classifier that learned for 20 steps."""
    from reproduction.fields import digits

    made = replace(digits(tmp_path_factory.mktemp("field")), classifier_steps=20)
    made.prepare()
    return made
