"""Files of weights: read without running anything in them, and named when reading or writing fails."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, HemstitchError
from ..files import read_json, sync

State = dict[str, Tensor]

# Released training checkpoints keep their command line under "args": a Namespace, which runs nothing.
SAFE_CLASSES: list[Any] = [argparse.Namespace]


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a safetensors file, and its metadata."""
    with reading(path):
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except SafetensorError as error:
            raise damaged(path, error) from error


def read_torch(path: Path) -> Any:
    """What a torch.save file holds: tensors, plain values and containers. The rest is refused, unrun."""
    with reading(path):
        with path.open("rb") as file:
            start = file.read(4)
        archive = start == b"PK\x03\x04"
        try:
            with torch.serialization.safe_globals(SAFE_CLASSES):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
        except OSError:
            raise
        except Exception as error:  # unpickling damaged bytes raises whatever the bytes say
            reason = _refusal(str(error))
            if reason and (archive or start[:1] == b"\x80"):
                raise CheckpointError(
                    f"{path} was refused, and nothing in it was run: its pickle wants more than tensors "
                    f"({reason}). Where you trust it, save its weights as safetensors and load those"
                ) from None
            raise damaged(path, reason or error) from None


def read_text(path: Path) -> str:
    with reading(path):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise damaged(path, error) from error


def read_json_file(path: Path) -> dict[str, Any]:
    """A file that is one JSON object."""
    try:
        return read_json(read_text(path), str(path))
    except CheckpointError:
        raise
    except HemstitchError as error:
        raise CheckpointError(str(error)) from None


def damaged(path: Path, error: object) -> CheckpointError:
    said = _sentence(str(error))
    reason = said if any(c.isalpha() for c in said) else type(error).__name__
    return CheckpointError(f"{path} is damaged, cut short or no file of weights ({reason}): fetch or copy it again")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """No space, no permission: one error that names the file. torch says RuntimeError when a disk is full."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        raise HemstitchError(
            f"{path} could not be written, and nothing is left there ({error}): make room or use another path"
        ) from error


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `path`, sync it and put it in place. On failure nothing is left."""
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir()
        write(aside)
        for file in aside.iterdir():
            sync(file)
        sync(aside)
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync(path.parent)


def _refusal(message: str) -> str:
    """Why torch would not unpickle, in a few words; "" when it failed for another reason."""
    if "TorchScript" in message:
        return "it is a TorchScript program"
    if "Weights only load failed" not in message:
        return ""
    found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", message)
    return _sentence(found[1]) if found else "unsupported pickle"


def _sentence(message: str) -> str:
    """The first sentence of another library's message; the others advise what is wrong here."""
    return " ".join(message.split()).split(". ")[0]
