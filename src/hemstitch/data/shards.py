"""Images in tar files, as webdataset writes them, read at random.

Shape suffix: n samples of one shard.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import HemstitchError
from .decoded import SUFFIXES, Decoded, numbered, pool, require_pillow, some, unreadable

_BLOCK = 512  # what a tar is counted in
_RECORD = 20 * _BLOCK  # what it is filled up to with zeros
_END = bytes(_BLOCK)
_PADDING = 1 << 20  # zeros that may follow a tar's end, for some writers are told to use larger records
_WITHOUT_BYTES = b"123456"  # links, devices and folders: their headers stand alone
_LONGEST_NAME = 1 << 20
_LONGEST_LABEL = 64
_KEPT_OPEN = 256  # shards, of the 1,024 files that a process commonly may have
_MOST_SHARDS = 1_000_000
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Shards(Decoded):
    """RGB images (3, size, size) in -1..1 from webdataset's tar files, in any order. See `Decoded` for how.

    path: a folder of `.tar` files, one of them, or a pattern: `imgs-{0000..0099}.tar`, `{cats,dogs}-{0..9}.tar`.
    size: the side of the images.

    A sample is the members of a shard whose names agree up to the first dot after the last slash: an image (.png,
    .jpg, .jpeg, .webp), and its label, a number from 0, as text in `.cls` or as "label" in `.json`. Either all
    samples have labels or none. Samples go by the names of the shards, then as they stand in them. Names of the
    classes are the lines of a `classes.txt`, or the list in a `classes.json`, beside the shards; else "0" to the
    largest label.

    Opening reads every header of every shard, and the labels; images are read when asked for, each by its place.
    Compressed shards have no such places and are refused.

    A shard that is damaged (cut short, or with something else where a header should be) gives the samples before the
    damage, and a warning names it. Nothing in it says how many it lost, so that is estimated: it is taken to have held
    as many as the median of the sound shards, or as many of the mean size as its bytes have room for (up to where its
    last member would have ended), whichever is more, and at least one more than it gives. Samples with a label and no
    image count as lost too. When the lost ones are more than 1% of all (and more than 3) opening is a HemstitchError;
    `images` goes on counting with those that cannot be decoded.
    """

    def __init__(self, path: Path, size: int) -> None:
        require_pillow(size)
        path = Path(path)
        shards = list(pool().map(indexed, shard_paths(path)))
        labelled = any((shard.label_n >= 0).any() for shard in shards)
        if labelled:  # in a damaged shard, labels may have been in the part that is gone
            shards = [shard.labelled_only() if shard.damage else shard for shard in shards]
        self._names = [name for shard in shards for name in shard.names]
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self._offset = np.concatenate([shard.offset_n for shard in shards])
        self._bytes = np.concatenate([shard.size_n for shard in shards])
        self._files = Files([shard.path for shard in shards])
        labels = torch.from_numpy(np.concatenate([shard.label_n for shard in shards]))
        trouble = [f"{shard.path} ({shard.damage})" for shard in shards if shard.damage]
        trouble += [f"{shard.path / name} (a label without an image)" for shard in shards for name in shard.imageless]
        if not self._names:
            raise HemstitchError(
                f"no samples in {path}: expected members such as 000.jpg and 000.cls in its tar files"
                + (f"; lost are {some(trouble)}" if trouble else "")
            )
        bare = (labels < 0).nonzero().flatten().tolist()
        if labelled and bare:
            raise HemstitchError(
                f"{len(bare)} of {len(labels)} samples in {path} have no label beside others that do: "
                f"{some([str(self._where(index)) for index in bare])}; give each a .cls or .json, or none"
            )
        classes = _class_names(shards[0].path.parent, int(labels.max())) if labelled else ()
        super().__init__(path, size, f"shards:{_name(path)}", classes, labels.clamp(min=0), lost=_lost(shards))
        if trouble:
            self._tell(trouble)

    def _tell(self, trouble: Sequence[str]) -> None:
        """Warn of samples that are lost, or raise when they are too many."""
        share = f"about {self.lost:,} of {len(self) + self.lost:,} samples in {self.path} are lost"
        if self._spare < 0:
            raise HemstitchError(
                f"{share}, more than 1%: {some(trouble)}; copy or write these shards again, or leave them out"
            )
        warnings.warn(f"{share}: {some(trouble)}", stacklevel=3)

    def _encoded(self, index: int) -> bytes:
        return self._files.read(int(self._shard[index]), int(self._offset[index]), int(self._bytes[index]))

    def _where(self, index: int) -> Path:
        return self._files.paths[self._shard[index]] / self._names[index]


class _Member(NamedTuple):
    """A file in a tar: its name, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """What is in a tar file.

    names, offset_n, size_n: of the images. label_n: -1 is none. imageless: names of labels that have no image.
    damage: what ails it, "" if nothing. used: bytes up to the end of its last member. room: what they would be if it
    were whole, as far as is known.
    """

    path: Path
    names: list[str]
    offset_n: np.ndarray
    size_n: np.ndarray
    label_n: np.ndarray
    imageless: list[str]
    damage: str
    used: int
    room: int

    def labelled_only(self) -> Shard:
        """This, without the images that have no label."""
        kept = np.flatnonzero(self.label_n >= 0)
        return replace(
            self,
            names=[self.names[i] for i in kept],
            offset_n=self.offset_n[kept],
            size_n=self.size_n[kept],
            label_n=self.label_n[kept],
        )


class _DamageError(Exception):
    """Why a tar stops being one. room: where the member at the end of the file would have ended, if it did not."""

    def __init__(self, what: str, room: int = 0) -> None:
        super().__init__(what)
        self.room = room


class Files:
    """Reads many files at any place, from several threads at once. The first few stay open.

    paths: the files, which `read` calls by their place in it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._open: dict[int, int] = {}

    def read(self, file: int, offset: int, size: int) -> bytes:
        """`size` bytes of file number `file`. HemstitchError if it cannot be read or has become shorter."""
        try:
            descriptor = self._open.get(file)
            found = self._read_anew(file, offset, size) if descriptor is None else os.pread(descriptor, size, offset)
        except OSError as error:
            raise unreadable(self.paths[file], error) from error
        if len(found) < size:
            raise HemstitchError(f"{self.paths[file]} is shorter than when it was opened: restore it and start again")
        return found

    def _read_anew(self, file: int, offset: int, size: int) -> bytes:
        descriptor = os.open(self.paths[file], os.O_RDONLY)
        kept = False
        try:
            found = os.pread(descriptor, size, offset)
            if len(self._open) < _KEPT_OPEN:  # another thread may have been quicker
                kept = self._open.setdefault(file, descriptor) == descriptor
            return found
        finally:
            if not kept:
                os.close(descriptor)

    def __reduce__(self) -> tuple[type[Files], tuple[Sequence[Path]]]:
        return Files, (self.paths,)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def shard_paths(path: Path) -> list[Path]:
    """The shards that a folder, a file or a pattern (imgs-{0000..0099}.tar) means, sorted by name.

    HemstitchError if there are none, if some are not there, or if one is compressed.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        for file in files:
            if file.name.lower().endswith(_PACKED):
                raise _compressed(file)
        shards = [file for file in files if file.suffix.lower() == ".tar" and file.is_file()]
        if not shards:
            raise HemstitchError(f"no .tar files in {path}: put webdataset's shards there")
        return shards
    if path.exists():
        return [path]
    shards = sorted({Path(name) for name in _expanded(str(path))})
    missing = [str(shard) for shard in shards if not shard.exists()]
    if missing and len(shards) == 1:
        raise HemstitchError(f"{path} does not exist: give a folder of .tar files, one, or imgs-{{0000..0099}}.tar")
    if missing:
        raise HemstitchError(
            f"{len(missing)} of the {len(shards)} shards {path} do not exist: {some(missing)}; correct the pattern, or "
            "restore them"
        )
    return shards


def _expanded(pattern: str) -> list[str]:
    """What braces stand for: {0000..0099} for numbers, zeros in front included; {a,b} for either."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", found[1])
    if numbers and 0 <= int(numbers[2]) - int(numbers[1]) < _MOST_SHARDS:
        choices = [f"{i:0{len(numbers[1])}}" for i in range(int(numbers[1]), int(numbers[2]) + 1)]
    elif "," in found[1]:
        choices = found[1].split(",")
    else:
        raise HemstitchError(f"{found[0]} in {pattern} is no range like {{0000..0099}} and no list like {{a,b}}")
    return [pattern[: found.start()] + one + rest for one in choices for rest in _expanded(pattern[found.end() :])]


def _name(path: Path) -> str:
    """What a data set at a path is called: imgs-{0000..0099}.tar is imgs, as the folder imgs/ is."""
    absolute = Path(os.path.abspath(path))
    stem = absolute.name.removesuffix(".tar")
    return re.sub(r"\{[^{}]*\}", "", stem).strip("-_.") or absolute.parent.name


def _compressed(file: Path) -> HemstitchError:
    return HemstitchError(
        f"{file} is compressed, so no image can be read from the middle of it: unpack it (gunzip) to a .tar, which is "
        "hardly larger, as jpeg, png and webp are packed already"
    )


def _class_names(folder: Path, largest: int) -> tuple[str, ...]:
    """Names of the classes from a file in the folder of the shards, or their numbers."""
    lines, listed = folder / "classes.txt", folder / "classes.json"
    if lines.exists() and listed.exists():
        raise HemstitchError(f"{folder} has both classes.txt and classes.json: keep the one that is right")
    try:
        if lines.exists():
            names: Any = [line.strip() for line in lines.read_text(encoding="utf-8").rstrip().splitlines()]
        elif listed.exists():
            names = json.loads(listed.read_bytes())
        else:
            return numbered(largest, str(folder))
    except (OSError, ValueError) as error:
        raise HemstitchError(f"the names of the classes in {folder} cannot be read: {error}") from None
    file = lines if lines.exists() else listed
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise HemstitchError(
            f'{file} is not a list of names, one for each class: one a line, or ["cat", "dog"] in JSON'
        )
    if len(names) <= largest:
        raise HemstitchError(f"{file} names {len(names)} classes (0..{len(names) - 1}); the labels go up to {largest}")
    return tuple(names)


def _lost(shards: Sequence[Shard]) -> int:
    """About how many samples are missing, by the rule that `Shards` states."""
    sound = [len(shard.names) for shard in shards if not shard.damage]
    usual = round(statistics.median(sound)) if sound else 0
    given = sum(len(shard.names) for shard in shards)
    mean = sum(shard.used for shard in shards) / given if given else float("inf")
    lost = sum(len(shard.imageless) for shard in shards)
    for shard in shards:
        if shard.damage:
            held = max(len(shard.names) + 1, usual, round(shard.room / mean))
            lost += held - len(shard.names)
    return lost


@dataclass(slots=True)
class _Sample:
    """The members that make up a sample."""

    image: _Member | None = None
    cls: _Member | None = None
    json: _Member | None = None


def indexed(path: Path) -> Shard:
    """Read the headers and labels of a shard. HemstitchError if it is compressed, or its labels are none."""
    try:
        with path.open("rb", buffering=0) as stream:
            return _index_open(path, stream.fileno())
    except OSError as error:
        raise unreadable(path, error) from error


def _index_open(path: Path, descriptor: int) -> Shard:
    length = os.fstat(descriptor).st_size
    if os.pread(descriptor, 2, 0) == b"\x1f\x8b":
        raise _compressed(path)
    samples: dict[str, _Sample] = {}
    damage, used, room = "", 0, 0
    try:
        for member in _members(descriptor, length):
            _add(member, samples, path)
            used = member.offset + member.size
    except _DamageError as error:
        padding = os.pread(descriptor, _RECORD, max(0, length - _RECORD))
        damage, room = str(error), max(error.room, length - len(padding) + len(padding.rstrip(b"\0")))
    names: list[str] = []
    imageless: list[str] = []
    numbers: list[tuple[int, int, int]] = []
    for sample in samples.values():
        label = _label(sample, path, descriptor)
        if sample.image is not None:
            names.append(sample.image.name)
            numbers.append((sample.image.offset, sample.image.size, label))
        elif (lone := sample.cls or sample.json) and label >= 0 and not damage:
            imageless.append(lone.name)
    offset_n, size_n, label_n = np.array(numbers, np.int64).reshape(-1, 3).T
    return Shard(path, names, offset_n, size_n, label_n, imageless, damage, used, room)


def _add(member: _Member, samples: dict[str, _Sample], path: Path) -> None:
    """Put a member where it belongs; others than images and labels are passed over, and so are hidden ones."""
    folder, slash, file = member.name.rpartition("/")
    stem, _, suffix = file.partition(".")
    suffix = f".{suffix.lower()}"
    if not stem or suffix not in (*SUFFIXES, ".cls", ".json"):
        return
    sample = samples.setdefault(folder + slash + stem, _Sample())
    part = "image" if suffix in SUFFIXES else suffix[1:]
    before: _Member | None = getattr(sample, part)
    if before is not None:
        raise HemstitchError(f"a sample of {path} has two of a kind, {before.name} and {member.name}: keep one")
    setattr(sample, part, member)


def _label(sample: _Sample, path: Path, descriptor: int) -> int:
    """The label of a sample, -1 if it has none. HemstitchError if it is no number from 0."""
    if sample.cls is not None:
        where = sample.cls
        text = os.pread(descriptor, min(where.size, _LONGEST_LABEL), where.offset).decode("ascii", "replace").strip()
        value: Any = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else text
    elif sample.json is not None:
        where = sample.json
        try:
            content = json.loads(os.pread(descriptor, where.size, where.offset))
        except (ValueError, RecursionError) as error:
            raise HemstitchError(f"{path / where.name} is not JSON ({error}): write it again") from None
        if not isinstance(content, dict) or "label" not in content:
            return -1
        value = content["label"]
    else:
        return -1
    if type(value) is not int or not 0 <= value < 10**18:
        raise HemstitchError(f"{path / where.name} says the label is {str(value)[:40]!r}: expected a number from 0")
    return value


def _members(descriptor: int, length: int) -> Iterator[_Member]:
    """The ordinary files of a tar (POSIX or GNU), in order. _DamageError where it stops being one."""
    at = 0
    extended: dict[str, str] = {}  # what headers before the member's own say of it
    while (block := os.pread(descriptor, _BLOCK, at)) != _END:
        if len(block) < _BLOCK:
            raise _DamageError("it ends without the mark of a tar's end")
        header = _header(block)
        if header is None:
            raise _DamageError(f"there is no header of a member at byte {at:,}")
        kind, name, size = header
        if kind not in b"xgLK":
            name, size = extended.get("path", name), int(extended.get("size", size))
        offset = at + _BLOCK
        size = 0 if kind in _WITHOUT_BYTES else size
        if offset + size > length:
            raise _DamageError(f"it ends in the middle of {name}", offset + size)
        at = offset - size // -_BLOCK * _BLOCK
        if kind in b"xL":
            before = os.pread(descriptor, min(size, _LONGEST_NAME), offset)
            found = {"path": _text(before)} if kind == b"L" else _records(before)
            if found is None:
                raise _DamageError(f"there is no header of a member at byte {offset:,}")
            extended |= found
        elif kind not in b"gK":
            if kind in b"07\0":
                yield _Member(name, offset, size)
            extended = {}
    rest = length - at
    if rest > _PADDING or os.pread(descriptor, rest, at).strip(b"\0"):
        raise _DamageError(f"it goes on for {rest:,} bytes after the mark of its end")


def _header(block: bytes) -> tuple[bytes, str, int] | None:
    """Kind, name and size of a member, or None if this is no header."""
    try:
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            return None
        size = _number(block[124:136])
    except ValueError:
        return None
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return block[156:157], name, size


def _number(field: bytes) -> int:
    """Octal digits or, from 8 GiB on, a big-endian number after a byte 0x80. ValueError for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise ValueError
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(field: bytes) -> dict[str, str] | None:
    """The lines of a POSIX extended header, each "length key=value", or None if it is none."""
    records: dict[str, str] = {}
    while field:
        digits = field.partition(b" ")[0]
        length = int(digits) if re.fullmatch(rb"[0-9]{1,9}", digits) else 0
        key, equals, value = field[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(field) or (key == b"size" and not re.fullmatch(rb"[0-9]{1,18}", value)):
            return None
        records[_text(key)] = value.decode("utf-8", "surrogateescape")
        field = field[length:]
    return records
