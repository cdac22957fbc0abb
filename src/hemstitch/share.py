"""Work shared out among processes through a folder alone: who does what, how far it is, waiting for the others.

Launchers (torchrun, accelerate launch) say who is who in the environment. Nothing is sent between processes: each
writes the parts that are its own, and process 0 waits until it finds all of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from .errors import HemstitchError

T = TypeVar("T")

POLL = 0.2  # seconds


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

    total: images of the share. kept: those that an earlier call left complete. slowest: seconds that a part took at
    most.
    """

    def __init__(self, total: int, kept: int) -> None:
        self.total = total
        self.kept = self.done = kept
        self.began = self.since = time.monotonic()
        self.slowest = 0.0

    def add(self, images: int, completed: bool = False) -> None:
        """So many images more, and whether they completed a part."""
        self.done += images
        if completed:
            now = time.monotonic()
            self.slowest, self.since = max(self.slowest, now - self.since), now

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
) -> Iterator[int]:
    """Add other processes' parts to the complete ones as `look` finds them, yielding how many are still missing.

    Raises HemstitchError, naming those missing, when nothing new has appeared for `patience` seconds.
    """
    since = time.monotonic()
    while missing := [k for k in range(parts) if k not in complete]:
        new = look(missing)
        if new:
            complete |= new
            since = time.monotonic()
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
