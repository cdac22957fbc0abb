"""Checkpoints: a folder that is complete or does not count.

A checkpoint is written aside, synced, renamed to `step_NNNNNNNN` and only then marked with a COMPLETE file that lists
its files' sizes and hashes. Older ones go after that. Whatever is killed in between leaves the newest complete one
whole. Tensors are safetensors, the rest JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import HemstitchError
from ..files import save_tensors, sync, write_text
from ..marked import MARKER, complete, name_of, sha256, step_folders, step_of


@dataclass(frozen=True)
class Content:
    """A file of tensors and its metadata."""

    tensors: Mapping[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def save(folder: Path, step: int, contents: Mapping[str, Content], state: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step under `folder`, then remove older ones but for the newest `keep` - 1.

    contents: by name, each a NAME.safetensors. state: what JSON can say, state.json. Returns the checkpoint's path.
    """
    final = folder / name_of(step)
    aside = folder / f".{name_of(step)}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        aside.mkdir()
        for name, content in contents.items():
            save_tensors(aside / f"{name}.safetensors", content.tensors, content.metadata or None)
        (aside / "state.json").write_text(json.dumps(dict(state)))
        listing = _settled(sorted(aside.iterdir()))
        if final.exists():  # this very step, found damaged or unmarked when the run was resumed
            os.replace(final, folder / f".{final.name}.{os.getpid()}.old.tmp")
        os.replace(aside, final)
        sync(folder)
        write_text(final / MARKER, json.dumps(listing))
        older = [c for c in complete(folder) if step_of(c) < step]
        for old in older[: max(0, len(older) - (keep - 1))]:
            (old / MARKER).unlink()
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:  # no space, no permission
        raise HemstitchError(
            f"the checkpoint {final} could not be written ({error}); the one before it is untouched. "
            "Make room or choose another --out, and resume"
        ) from error
    finally:
        _clear(folder)
    return final


class Writer:
    """Writes checkpoints in a thread while training goes on, one at a time.

    Their tensors are copied into memory that is kept for the next; training waits for the copy only.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._reserving: Future[None] | None = None
        self._writing: Future[Path] | None = None
        self._held: dict[tuple[str, str], Tensor] = {}

    def reserve(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the memory for such files in the thread, before it is needed: fresh pages are slow to write to."""

        def take() -> None:
            for file, tensors in files.items():
                for name, like in tensors.items():
                    self.place(file, name, like).zero_()

        self._reserving = self._thread.submit(take)

    def place(self, file: str, name: str, like: Tensor) -> Tensor:
        """Where to copy a tensor of a file to, on the host. Nothing is being written meanwhile: see `finish`."""
        held = self._held.get((file, name))
        if held is None or held.shape != like.shape or held.dtype != like.dtype:
            held = self._held[file, name] = torch.empty(like.shape, dtype=like.dtype)
        return held

    def begin(self, write: Callable[[], Path]) -> None:
        self._writing = self._thread.submit(write)

    def check(self) -> None:
        """Raise what the writing raised, if it has ended."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> Path | None:
        """Wait for what is being written, and raise what that raised. Returns its path, None if there is nothing."""
        if self._reserving is not None:
            self._reserving.result()
            self._reserving = None
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def close(self) -> None:
        """Wait, whatever comes of it."""
        self._thread.shutdown(wait=True)


def _settled(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Every file on disk, its size and hash. Hashing reads memory while the disk writes."""
    with ThreadPoolExecutor(4) as pool:
        synced = [pool.submit(sync, file) for file in files]
        hashes = list(pool.map(sha256, files))
        for done in synced:
            done.result()
    return {f.name: {"bytes": f.stat().st_size, "sha256": h} for f, h in zip(files, hashes, strict=True)}


def _clear(folder: Path) -> None:
    """Remove what a killed or failed write left: folders aside, and step folders that never got their mark."""
    unmarked = [p for p in step_folders(folder) if not (p / MARKER).exists()]
    for leftover in (*folder.glob(".step_*.tmp"), *unmarked):
        shutil.rmtree(leftover, ignore_errors=True)
