"""Which checkpoint folders count: those marked complete, whose files are what the mark says."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Collection
from pathlib import Path

from .errors import CheckpointError, HemstitchError
from .files import read_json_file

MARKER = "COMPLETE"

_PIECE = 32 * 2**20  # bytes


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def step_folders(folder: Path) -> list[Path]:
    """The checkpoint folders here, complete or not, by step. Folders of any other name are not ours."""
    return sorted((p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)), key=step_of)


def complete(folder: Path) -> list[Path]:
    """The marked checkpoints under a folder, oldest first."""
    return [p for p in step_folders(folder) if (p / MARKER).exists()]


def verify(checkpoint: Path, only: Collection[str] | None = None) -> None:
    """Raise CheckpointError, naming the file, unless every listed file (or those asked for) is what the mark says."""
    marker = checkpoint / MARKER
    try:
        contents = read_json_file(marker)
    except HemstitchError as error:
        raise CheckpointError(str(error)) from None
    absent = [name for name in only or () if name not in contents]
    if absent:
        raise CheckpointError(f"{marker} does not list {', '.join(absent)}: this checkpoint never held it")
    for name, expected in contents.items():
        if only is not None and name not in only:
            continue
        file = checkpoint / name
        if not isinstance(expected, dict) or set(expected) != {"bytes", "sha256"}:
            raise CheckpointError(f"{marker} is damaged: it does not say the size and hash of {name}")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file} is damaged: {file.stat().st_size} bytes of {expected['bytes']}")
        if sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is damaged: its contents have changed since it was written")


def sound(checkpoint: Path, only: Collection[str] | None = None) -> str | None:
    """None if a checkpoint's files are what its mark says, else what is wrong."""
    try:
        verify(checkpoint, only)
    except (HemstitchError, OSError) as error:
        return str(error)
    return None


def sha256(path: Path) -> str:
    """In large pieces of mapped memory: hashing them leaves the interpreter to other threads."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.stat().st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                for start in range(0, len(view), _PIECE):
                    with view[start : start + _PIECE] as piece:
                        digest.update(piece)
    return digest.hexdigest()
