"""The models that come with hemstitch: the small DiT and the Switch-DiT of seed 0, with the judge of their samples."""

from __future__ import annotations

from pathlib import Path

import hemstitch as hs
from hemstitch.data.idx import FASHION
from hemstitch.evaluate.features import moments_of
from hemstitch.files import write_bytes
from hemstitch.pretrained import SUPPLIED, About, pack
from hemstitch.provenance import provenance

from . import stitching, switch
from .fields import fashion
from .networks import at

ARCHIVE = Path("src/hemstitch") / SUPPLIED
LARGEST = 10_000_000  # bytes


def release(out: Path, archive: Path = ARCHIVE) -> None:
    """Write the archive. Raises HemstitchError where it would be too large to come with a package."""
    field = fashion(out)
    recipes = {"small": stitching.small(field), "large": switch.recipe(field, "switch_dit", 0)}
    members = {name: at(out / "runs" / r.name, r.train.steps) for name, r in recipes.items()}
    moments = moments_of(field.pictures, field.extractor)
    told = {
        name: f"{hs.describe(members[name]).parameters / 1e6:.2f} M parameters, {r.net.family} of width {r.net.width}, "
        f"{r.net.depth} blocks, {r.train.steps} iterations"
        for name, r in recipes.items()
    }
    about = About(
        data="Fashion-MNIST",
        classes=FASHION,
        reference=field.pictures.name,
        extractor=field.classifier.hash,
        small=told["small"],
        large=told["large"],
        made=f"python -m benchmarks.reproduction, commit {provenance()['commit']}, recipes "
        + ", ".join(f"{name} {recipe.hash}" for name, recipe in recipes.items()),
    )
    aside = out / archive.name
    pack(aside, members, field.classifier_path, moments, about)
    size = aside.stat().st_size
    if size > LARGEST:
        raise hs.HemstitchError(f"{aside} takes {size} bytes, more than {LARGEST}: release smaller models")
    write_bytes(archive, aside.read_bytes())
    print(f"{archive}: {size / 1e6:.1f} MB")
