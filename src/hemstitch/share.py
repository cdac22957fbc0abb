"""Work shared out among processes through a folder alone: who does what, how far it is, waiting for the others.

Launchers (torchrun, accelerate launch) say who is who in the environment. Nothing is sent between processes: each
writes the parts that are its own, and process 0 waits until it finds all of them.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import torch

from .errors import HemstitchError

T = TypeVar("T")

POLL = 0.2  # seconds
BEAT = 2.0  # seconds between two signs of life


class Progress(NamedTuple):
    """done, total: images of this process's share, `kept` of them from an earlier call. rate: images per second.

    left: seconds to the end of the share. saved: the shard just completed, if one was. waiting: how many shards of
    other processes are yet to come; above 0 only once the share is done.
    """

    done: int
    total: int
    kept: int
    rate: float
    left: float
    saved: Path | None = None
    waiting: int = 0


class Place(NamedTuple):
    """Which process this is, of how many."""

    rank: int
    world: int

    def share(self, parts: int) -> range:
        """The parts that are this process's own: r, r + W, …"""
        return range(self.rank, parts, self.world)


def place() -> Place:
    """This process's, as a launcher says it in RANK and WORLD_SIZE; without one it is alone."""
    said = {name: os.environ.get(name) or default for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world = int(said["RANK"]), int(said["WORLD_SIZE"])
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise HemstitchError(f"RANK is a number below WORLD_SIZE in the environment; they are {said}: unset both")
    return Place(rank, world)


def device_of(device: torch.device | str | None) -> torch.device:
    """The device asked for; None is a GPU if there is one. "cuda" is this process's own among its machine's."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise HemstitchError(f"device is like 'cpu', 'cuda' or 'cuda:1', not {device!r}") from None
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise HemstitchError("there is no GPU that torch can use here: leave out the device, or say cpu")
    if asked.type == "cuda" and asked.index is None:
        local = os.environ.get("LOCAL_RANK", "")
        return torch.device("cuda", int(local) % torch.cuda.device_count() if local.isdigit() else 0)
    return asked


class Pace:
    """How fast a process works through its share.

    total: images of the share. kept: those that an earlier call left complete.
    """

    def __init__(self, total: int, kept: int) -> None:
        self.total = total
        self.kept = self.done = kept
        self.began = time.monotonic()

    def add(self, images: int) -> None:
        """So many images more."""
        self.done += images

    @property
    def rate(self) -> float:
        """Images per second, of this call's own."""
        return (self.done - self.kept) / max(time.monotonic() - self.began, 1e-9)

    @property
    def left(self) -> float:
        """Seconds to the end of the share."""
        return (self.total - self.done) / self.rate if self.rate else 0.0

    def read(self, saved: Path | None = None, waiting: int = 0) -> Progress:
        return Progress(self.done, self.total, self.kept, self.rate, self.left, saved, waiting)


@contextmanager
def present(folder: Path, here: Place) -> Iterator[None]:
    """While it lasts, this process is the only one of its rank in the folder, and shows the others that it lives.

    The kernel ends both when the process ends, however that comes. Raises HemstitchError if another is there.
    """
    path = folder / f".rank-{here.rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise HemstitchError(f"{folder} could not be written ({error}): choose another folder") from error
    try:
        _lock(handle, folder, here)
        done = threading.Event()
        thread = threading.Thread(target=_beat, args=(path, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
    finally:
        handle.close()
        _sweep(folder)


def _lock(handle: IO[str], folder: Path, here: Place) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HemstitchError(
            f"another process is at work in {folder} as rank {here.rank}: stop it, or let it finish"
        ) from None
    except OSError:  # a file system without locks
        pass


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return


def _sweep(folder: Path) -> None:
    """Remove the signs of processes that are gone: those whose lock is free."""
    for path in folder.glob(".rank-*"):
        try:
            with path.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:
            continue


def _signs(folder: Path) -> list[tuple[str, int]]:
    """When each process last showed that it lives."""
    found = []
    for path in folder.glob(".rank-*"):
        try:
            found.append((path.name, path.stat().st_mtime_ns))
        except OSError:
            continue
    return sorted(found)


def await_file(path: Path, patience: float) -> None:
    """Until process 0 has written it."""
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise HemstitchError(f"{path} has not appeared for {patience:g} s: is process 0 running?")
        time.sleep(POLL)


def gather(
    parts: int,
    complete: dict[int, T],
    look: Callable[[list[int]], dict[int, T]],
    patience: float,
    out: Path,
    name: Callable[[int], str],
    signs: Path,
    here: Place,
) -> Iterator[int]:
    """Add other processes' parts to the complete ones as `look` finds them, yielding how many are still missing.

    signs: the folder in which processes are `present`. Raises HemstitchError, naming those missing, when for `patience`
    seconds nothing new has appeared and no other process has shown that it lives.
    """
    since, seen = time.monotonic(), _signs(signs)
    while missing := [k for k in range(parts) if k not in complete]:
        new = look(missing)
        others = [sign for sign in _signs(signs) if sign[0] != f".rank-{here.rank}"]
        if new or others != seen:
            complete |= new
            since, seen = time.monotonic(), others
        if new:
            continue
        if time.monotonic() - since > patience:
            names = [name(k) for k in missing]
            raise HemstitchError(
                f"no new shard has appeared in {out} for {patience:g} s, and of {parts} these are missing: "
                f"{', '.join(names[:20])}{f' and {len(names) - 20} more' if len(names) > 20 else ''}. "
                "Is every process running? Run again: complete shards are kept"
            )
        yield len(missing)
        time.sleep(POLL)
