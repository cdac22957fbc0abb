"""What lies beside samples and says what they are: a note for each shard, the manifest of the whole.

Who reads samples reads these first: they tell what is sound from what is damaged, or of something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import HemstitchError
from ..files import read_json_file
from .formats import FORMATS, WORKERS, File, Folder, Format
from .settings import Settings, read_labels

MANIFEST = "manifest.json"
SETTINGS = Path("manifest", "settings.json")


@dataclass(frozen=True)
class Note:
    """What is said of a shard once its files are there.

    settings: their digest. content: the sha256 of its pixels (n, H, W, C), or latents. files: of all formats.
    """

    settings: str
    content: str
    files: dict[str, File]
    provenance: dict[str, str]

    def to_json(self) -> str:
        """With a hash of itself, for a note that says something else is worse than none."""
        told = asdict(self)
        return json.dumps({**told, "note": _hash_of(told)})

    @staticmethod
    def path(out: Path, k: int) -> Path:
        return out / "manifest" / f"{k:05d}.json"

    @classmethod
    def read(cls, path: Path) -> Note:
        data = read_json_file(path)
        if _hash_of({name: value for name, value in data.items() if name != "note"}) != data.get("note"):
            raise HemstitchError(f"{path} is damaged")
        try:
            files = {str(name): File(int(size), str(digest)) for name, (size, digest) in data["files"].items()}
            return cls(str(data["settings"]), str(data["content"]), files, dict(data["provenance"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise HemstitchError(f"{path} does not say what a shard holds: {error}") from None


def sound(out: Path, settings: Settings, kept_as: Sequence[Format], asked: Collection[int]) -> dict[int, Note]:
    """Those of the shards asked for whose note is of these settings and whose files are what it says."""
    digest = settings.digest

    def check(k: int) -> Note | None:
        try:
            note = Note.read(Note.path(out, k))
        except HemstitchError:
            return None
        is_ours = note.settings == digest and set(note.files) == {name for f in kept_as for name in f.names(k)}
        return note if is_ours and all(f.is_sound(k, note.files, note.content) for f in kept_as) else None

    with ThreadPoolExecutor(WORKERS) as pool:
        return {k: note for k, note in zip(asked, pool.map(check, asked), strict=True) if note}


def _hash_of(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def settings_of_notes(out: Path) -> set[str]:
    """The digests of the settings that the shards of a folder were made with, as their notes say."""
    found = set()
    for path in out.glob("manifest/[0-9]*.json"):
        try:
            found.add(Note.read(path).settings)
        except HemstitchError:
            continue
    return found


class Finished(NamedTuple):
    """A finished folder of samples. content: a hash of all of them. labels: (count,) or None."""

    settings: Settings
    content: str
    labels: Tensor | None


def finished(out: Path) -> Finished:
    """Read a folder that `write_samples` finished, every file of it checked against what was written.

    Raises HemstitchError, saying to run the sampling again, for one that is not finished or damaged.
    """
    again = "run the same sampling command again, which mends it and goes on from there"
    if not (out / MANIFEST).exists():
        raise HemstitchError(f"{out} is not finished: {again}")
    try:
        settings = Settings.read(out / SETTINGS)
        manifest = read_json_file(out / MANIFEST)
        content = str(manifest["content"])
    except (HemstitchError, KeyError) as error:
        raise HemstitchError(f"{out} does not say how it was sampled ({error}): {again}") from None
    folder = Folder(out, settings, None)
    found = sound(out, settings, [FORMATS[name](folder) for name in settings.formats], range(settings.shards))
    if len(found) < settings.shards:
        first = next(k for k in range(settings.shards) if k not in found)
        raise HemstitchError(
            f"{out} is not what was written: {settings.shards - len(found)} of {settings.shards} shards differ, the "
            f"first with samples {settings.rows(first).start} on: {again}"
        )
    whole = hashlib.sha256("".join(found[k].content for k in range(settings.shards)).encode()).hexdigest()
    if manifest.get("settings") != json.loads(settings.to_json()) or content != whole:
        raise HemstitchError(f"{out / MANIFEST} is of other samples: {again}")
    labels = None
    if settings.labels:
        labels = read_labels(out / "labels.npy")
        if labels_hash(labels) != settings.labels:
            raise HemstitchError(f"{out / 'labels.npy'} is not what was written: {again}")
    return Finished(settings, content, labels)


def files_of_the_whole(out: Path) -> dict[str, File]:
    """The files of the whole that an earlier manifest lists."""
    try:
        return {name: File(*told) for name, told in read_json_file(out / MANIFEST)["files"].items()}
    except (HemstitchError, AttributeError, KeyError, TypeError):
        return {}


def labels_hash(labels: Tensor | None) -> str:
    return "" if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:12]
