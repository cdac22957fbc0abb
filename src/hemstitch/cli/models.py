"""The commands about files of weights: convert, describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def convert(known: argparse.Namespace, rest: list[str]) -> int:
    from ..weights import convert

    options = given(known, "family", "num_heads", "top_k", "input_size", "ema")
    for note in convert(known.source, known.target, known.format, **options):
        print(note)
    print(f"{known.source} -> {known.target}")
    return 0


def describe(known: argparse.Namespace, rest: list[str]) -> int:
    from ..description import describe
    from ..weights import load

    options = given(known, "family", "num_heads", "top_k", "input_size", "ema")
    print(f"{'model':<24} {'parameters':>12} {'active':>12} {'GMAC':>9} {'unmerged':>9}")
    for name in known.models:
        d = describe(load(name, **options) if Path(name).exists() else name)
        print(
            f"{name:<24} {d.parameters:>12,} {d.active_parameters:>12,} {_giga(d.macs):>9} {_giga(d.macs_unmerged):>9}"
        )
    return 0


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f}" if count >= 1e8 else f"{count / 1e9:.2g}"


def given(known: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(known, name) for name in names if getattr(known, name) is not None}
