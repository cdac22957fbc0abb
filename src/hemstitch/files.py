"""Files that are whole or absent: atomic writes, JSON that is checked, no pickle."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import HemstitchError

_LOCAL = struct.Struct("<4s22xHH")  # of a member's header in a zip: its mark, the lengths of its name and of the rest


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then sync it and put it in place. On failure nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    write_atomic(path, lambda aside: _put(aside, data))


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the permissions that any new file here would have (the library's own are private)."""
    path.touch()
    mode = path.stat().st_mode
    # the library writes aside under a name of its own, which only a folder of ours tells apart when it is left over
    folder = path.with_name(f".{path.name.strip('.').removesuffix('.tmp')}.d.tmp")
    folder.mkdir(exist_ok=True)
    try:
        save_file(dict(tensors), folder / path.name, metadata)
        os.replace(folder / path.name, path)
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(f"{path}: {error}") from error
    finally:
        discard(folder)
    path.chmod(mode)


def discard(leftover: Path) -> None:
    """Remove what a write left behind, a file or a folder, if it is still there."""
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


def mapped_tensors(path: Path) -> dict[str, np.ndarray]:
    """The float32 and int64 tensors of a safetensors file, mapped from it rather than read.

    Raises HemstitchError, naming the file, if it is damaged.
    """
    kinds: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    try:
        with safe_open(path, "np") as file:  # checks that header and size agree
            names = list(file.keys())
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise HemstitchError(f"{path} is not a safetensors file that can be read: {error}") from None
    found: dict[str, np.ndarray] = {}
    for name in names:
        told = header[name]
        if told["dtype"] in kinds:
            dtype, shape, start = kinds[told["dtype"]], tuple(told["shape"]), 8 + length + told["data_offsets"][0]
            found[name] = np.memmap(path, dtype, "r", start, shape) if 0 not in shape else np.empty(shape, dtype)
    return found


def member_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the data of an uncompressed member begin in a zip. Raises BadZipFile if its header is not there."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        mark, name, extra = _LOCAL.unpack(stream.read(_LOCAL.size).ljust(_LOCAL.size, b"\0"))
    if mark != b"PK\3\4":
        raise zipfile.BadZipFile(f"there is no header of {info.filename} where the index says")
    return info.header_offset + _LOCAL.size + name + extra


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json_file(path: Path) -> dict[str, Any]:
    """A file that is one JSON object, or a HemstitchError that names it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HemstitchError(f"{path} cannot be read as JSON: {error}") from None
    return read_json(text, str(path))


def read_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object, or an error that says what was expected to be one."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise HemstitchError(f"{what} is JSON, and this is not: {error}") from None
    if not isinstance(data, dict):
        raise HemstitchError(f"{what} is a JSON object, not {type(data).__name__}")
    return data
