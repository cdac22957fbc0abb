"""The trained models that come with hemstitch, in one file: members that stitch, and what measures their samples.

A zip archive of safetensors, statistics and JSON. Whoever has another of its kind may use that one.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from .denoiser import NetDenoiser
from .errors import HemstitchError
from .evaluate.classifier import TrainedClassifier
from .evaluate.frechet import Moments
from .evaluate.reference import open_reference
from .files import read_json_file, write_atomic, write_bytes
from .marked import sha256
from .recipe import from_dict
from .weights import load, save

SUPPLIED = "pretrained.zip"
ABOUT, CLASSIFIER, REFERENCE = "about.json", "classifier.safetensors", "reference.npz"
LARGEST = 2**26  # bytes of a file in an archive, unpacked
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file, so that equal contents make equal archives


@dataclass(frozen=True)
class About:
    """What an archive says of itself.

    data: what was learned, for people. classes: their names. reference: what samples are measured against, in the
    features of the classifier with the hash `extractor`. small, large: how the members were trained. made: by what.
    """

    data: str
    classes: tuple[str, ...]
    reference: str
    extractor: str
    small: str
    large: str
    made: str


def pack(path: Path, members: Mapping[str, NetDenoiser], classifier: Path, reference: Moments, about: About) -> None:
    """Write an archive of the members "small" and "large", the classifier's file and the reference's moments."""
    contents: dict[str, bytes] = {ABOUT: json.dumps(asdict(about), indent=1).encode()}
    for name in ("small", "large"):
        aside = path.with_name(f"{path.name}.{name}.safetensors")
        try:
            save(members[name], aside)
            contents[f"{name}.safetensors"] = aside.read_bytes()
        finally:
            aside.unlink(missing_ok=True)
    contents[CLASSIFIER] = classifier.read_bytes()
    statistics = io.BytesIO()
    np.savez(statistics, mu=reference.mean, sigma=reference.covariance)
    contents[REFERENCE] = statistics.getvalue()

    def write(aside: Path) -> None:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)

    write_atomic(path, write)


def unpack(out: Path, path: Path | None = None) -> About:
    """Put the files of an archive (None: hemstitch's own) into a folder, once they have been looked at.

    Only the files that an archive has are taken, whatever else is in it. Raises HemstitchError where one is missing,
    damaged, too large or at odds with the others; then nothing is written.
    """
    if path is None:
        with as_file(files("hemstitch") / SUPPLIED) as supplied:
            return unpack(out, supplied)
    if not path.is_file():
        raise HemstitchError(f"there is no archive of models at {path}: give one that is, or train with `quickstart`")
    wanted = (ABOUT, "small.safetensors", "large.safetensors", CLASSIFIER, REFERENCE)
    try:
        with zipfile.ZipFile(path) as archive:
            there = {info.filename: info.file_size for info in archive.infolist()}
            missing = [name for name in wanted if name not in there]
            if missing:
                raise HemstitchError(f"{path} is no archive of models: it lacks {', '.join(missing)}")
            large = [name for name in wanted if there[name] > LARGEST]
            if large:
                raise HemstitchError(f"{path}: {', '.join(large)} would take more than {LARGEST >> 20} MiB: refused")
            contents = {name: archive.read(name) for name in wanted}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, HemstitchError):
            raise
        raise HemstitchError(f"{path} cannot be read ({error}): copy or download it again") from None
    with tempfile.TemporaryDirectory() as aside:
        for name, data in contents.items():
            (Path(aside) / name).write_bytes(data)
        about = _checked(Path(aside), path)
    for name, data in contents.items():
        if not (out / name).exists() or (out / name).read_bytes() != data:
            write_bytes(out / name, data)
    return about


def _checked(folder: Path, path: Path) -> About:
    """What an archive says of itself, if it is so."""
    about: About = from_dict(About, read_json_file(folder / ABOUT), f"{path}, {ABOUT}")
    made_by = TrainedClassifier.load(folder / CLASSIFIER).hash
    if made_by != about.extractor:
        raise HemstitchError(
            f"{path}: its reference is of the features of another classifier ({about.extractor}, not {made_by})"
        )
    if "pool" not in (open_reference(str(folder / REFERENCE)).statistics or {}):
        raise HemstitchError(f"{path}: {REFERENCE} holds no statistics (mu, sigma)")
    for name in ("small", "large"):
        classes = load(folder / f"{name}.safetensors").spec.num_classes
        if classes != len(about.classes) or not classes:
            raise HemstitchError(f"{path}: its {name} model has {classes} classes, and it names {len(about.classes)}")
    return about


def fingerprint(out: Path) -> str:
    """Twelve hex digits of the members in a folder."""
    return " ".join(sha256(out / f"{name}.safetensors")[:12] for name in ("small", "large"))
