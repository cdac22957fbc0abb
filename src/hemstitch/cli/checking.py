"""The command about pairs of diffusers pipelines: check."""

from __future__ import annotations

import argparse


def check(known: argparse.Namespace, rest: list[str]) -> int:
    from ..bridge.compat import CONVERTED, check

    found = check(known.small, known.large, known.subfolder)
    print(found, end="\n\n")
    if found.ok:
        notes = f", with {len(found.notes)} to note" if found.notes else ""
        print(f"These can be stitched{notes}: stitch(pipe, small, fraction=0.4)")
    elif {f.what for f in found.refusals} <= set(CONVERTED):
        print("These cannot be stitched as they are, only where processes= converts the small one's answers.")
    else:
        print(f"These cannot be stitched: {', '.join(f.what for f in found.refusals)}.")
    return 0 if found.ok else 1
