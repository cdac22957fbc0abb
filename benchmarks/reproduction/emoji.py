"""Small colour pictures: the emoji of four openly licensed sets, 32 pixels wide, in eight categories.

Each set draws the same characters its own way. The sets come by npm, once, and are not part of this repository:

- emoji-datasource-google 16.0.0: Noto Emoji, © Google, Apache License 2.0;
- emoji-datasource-google 3.0.0: Noto Emoji of 2017 ("blobs"), © The Android Open Source Project, Apache License 2.0;
- emoji-datasource-twitter 16.0.0: Twemoji, © Twitter and contributors, CC BY 4.0;
- emoji-datasource-emojione 3.0.0: EmojiOne 2.2.7, © Ranks.com, CC BY 4.0 (later ones are not open, and not used).

The lists of characters in these packages are MIT-licensed (© Cal Henderson). The packages of Apple's and Facebook's
pictures have no licence that would let everyone use them.

Left out: skin tones (five near copies of each person), characters that others replaced, and pictures that are nearly
the same as one before (flags of territories, families, clocks). Held out are whole characters, in all drawings; those
that differ by gender or direction only go together.

Shape suffixes: N pictures, S size, D values of a picture, P a block of pictures.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hemstitch.errors import HemstitchError
from hemstitch.files import write_atomic

SIZE, FULL = 32, 64  # side of a picture as given here, and in the packages
HELD = 125  # pictures of each category that are held out
NEAR = 0.05  # pictures whose root mean square difference is below that share of the range count as one
CATEGORIES = (  # "Activities" (balls, medals, games) are too few by themselves, and are things
    ("Smileys & Emotion",),
    ("People & Body",),
    ("Animals & Nature",),
    ("Food & Drink",),
    ("Travel & Places",),
    ("Objects", "Activities"),
    ("Symbols",),
    ("Flags",),
)


@dataclass(frozen=True)
class Drawing:
    """A set of pictures: an npm package of it."""

    vendor: str
    version: str

    @property
    def spec(self) -> str:
        return f"emoji-datasource-{self.vendor}@{self.version}"

    @property
    def file(self) -> str:
        """As npm calls it."""
        return f"emoji-datasource-{self.vendor}-{self.version}.tgz"


DRAWINGS = (  # the first tells the categories of all, and is what remains of pictures that are nearly the same
    Drawing("google", "16.0.0"),
    Drawing("twitter", "16.0.0"),
    Drawing("emojione", "3.0.0"),
    Drawing("google", "3.0.0"),
)


class Picture(NamedTuple):
    """kin: what a character has in common with those that must not be parted from it. label: its category's number.
    pixels: (S, S, 3) uint8."""

    kin: str
    label: int
    pixels: NDArray[np.uint8]


def prepare(folder: Path) -> dict[str, Any]:
    """Download the packages into a folder, and write `train.npz` and `held.npz` beside them, unless they are there."""
    train, held = paths(folder)
    if not (train.exists() and held.exists()):
        every = [picture for found in drawn([download(one, folder) for one in DRAWINGS]) for picture in found]
        for path, part in zip((train, held), split(distinct(every)), strict=True):
            save(path, part)
    return {path.stem: described(path) for path in (train, held)}


def paths(folder: Path) -> tuple[Path, Path]:
    """Of the pictures to learn, and of those held out."""
    return folder / "emoji-train.npz", folder / "emoji-held.npz"


def download(one: Drawing, folder: Path) -> Path:
    """The package of a set, fetched by npm if it is not in the folder."""
    path = folder / one.file
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = f"or bring {one.file}, as `npm pack {one.spec}` makes it, into {folder}"
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        try:
            ran = subprocess.run(["npm", "pack", "--silent", one.spec], cwd=aside, capture_output=True, text=True)
        except FileNotFoundError:
            raise HemstitchError(
                f"the pictures come by npm, which is not installed: install it (apt install npm), {by_hand}"
            ) from None
        if ran.returncode or not (Path(aside) / one.file).exists():
            said = (ran.stderr or ran.stdout).strip() or "it said nothing"
            raise HemstitchError(f"`npm pack {one.spec}` failed ({said}): mend that, {by_hand}")
        (Path(aside) / one.file).replace(path)
    return path


def drawn(packages: Sequence[Path]) -> Iterator[list[Picture]]:
    """The pictures of each package, in categories as the first has them."""
    categories: dict[str, int] = {}
    for package, one in zip(packages, DRAWINGS, strict=True):
        characters, files = opened(package, one.vendor)
        if not categories:
            categories = {
                code(entry): label
                for entry in characters
                for label, names in enumerate(CATEGORIES)
                if entry["category"] in names
            }
        yield [
            Picture(kin(code(entry)), categories[code(entry)], on_white(files[entry["image"]]))
            for entry in characters
            if code(entry) in categories and entry["image"] in files and not entry.get("obsoleted_by")
        ]


def opened(package: Path, vendor: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The list of characters of a package, and its pictures by file name."""
    where, files, characters = f"package/img/{vendor}/{FULL}/", {}, []
    try:
        with tarfile.open(package) as archive:
            for member in archive:
                if member.name == "package/emoji.json":
                    characters = json.load(_file(archive, member))
                elif member.name.startswith(where):
                    files[member.name.removeprefix(where)] = _file(archive, member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise HemstitchError(f"{package} cannot be read ({error}): remove it, so that it is fetched again") from None
    return characters, files


def _file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    found = archive.extractfile(member)
    assert found is not None  # it is no folder
    return found


def code(entry: dict[str, Any]) -> str:
    """A character's code points, "1F3C3-200D-2640"; without the marks of emoji style, which sets give or not."""
    return "-".join(point for point in entry["unified"].split("-") if point != "FE0F")


_PEOPLE = ("1F466", "1F467", "1F468", "1F469", "1F9D1", "1F9D2")  # boy, girl, man, woman, person, child
_MARKS = ("200D", "2640", "2642", "27A1")  # joiner, female, male, facing right


def kin(code: str) -> str:
    """What characters have in common that differ by gender, age or direction only: "1F3C3" of all who run, "person" of
    everyone without a trade and of all families."""
    points = code.split("-")
    if len(points) > 1:
        points = [point for point in points if point not in _MARKS]
    return "-".join(dict.fromkeys("person" if point in _PEOPLE else point for point in points))


def on_white(png: bytes) -> NDArray[np.uint8]:
    """(S, S, 3) of a PNG: the transparent on white, then means of squares of pixels."""
    image = Image.open(BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return np.asarray(ground.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))


def distinct(every: Sequence[Picture]) -> list[Picture]:
    """Those that are not nearly the same as one before them that is kept."""
    x_ND = torch.from_numpy(np.stack([picture.pixels for picture in every])).flatten(1).float() / 255
    near = NEAR * x_ND.shape[1] ** 0.5
    kept = torch.ones(len(every), dtype=torch.bool)
    for start in range(0, len(every), 500):
        close_PN = torch.cdist(x_ND[start : start + 500], x_ND) < near
        for i, close_N in enumerate(close_PN, start):
            kept[i] = not bool((close_N & kept)[:i].any())
    return [every[i] for i in kept.nonzero()[:, 0].tolist()]


def split(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Pictures to learn, and `HELD` of each category to hold out: as many of each, since samples are made of each class
    in turn. Which characters those are hangs on a hash of them, not on their order; what the last one has too many is
    in neither part."""
    held: list[Picture] = []
    away: set[str] = set()
    for label in range(len(CATEGORIES)):
        mine = sorted((p for p in pictures if p.label == label), key=lambda p: _shuffled(p.kin))
        if len(mine) <= HELD:
            raise HemstitchError(f"{len(mine)} pictures of {CATEGORIES[label][0]}: more than {HELD} are expected")
        held += mine[:HELD]
        away |= {picture.kin for picture in mine[:HELD]}
    return [picture for picture in pictures if picture.kin not in away], held


def _shuffled(kin: str) -> str:
    return hashlib.sha256(kin.encode()).hexdigest()


def save(path: Path, part: Sequence[Picture]) -> None:
    """As `hemstitch.data.Arrays` opens it, with the kin of each picture beside."""
    arrays = {
        "images": np.stack([picture.pixels for picture in part]),
        "labels": np.array([picture.label for picture in part]),
        "kin": np.array([picture.kin for picture in part]),
    }

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, **arrays)

    write_atomic(path, write)


def described(path: Path) -> dict[str, Any]:
    """How many pictures and characters a part has, of each category, and a hash of them."""
    with np.load(path) as arrays:
        images, labels, kins = arrays["images"], arrays["labels"], arrays["kin"]
    number = Counter(labels.tolist())
    return {
        "pictures": len(images),
        "characters": len(set(kins.tolist())),
        "by_category": {" and ".join(names): number[label] for label, names in enumerate(CATEGORIES)},
        "hash": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:12],
    }
