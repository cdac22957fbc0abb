"""Work that takes days and survives being stopped: tasks with a result each, done by any number of workers.

A task is done when its result, a small JSON file, is there. A worker takes the first task that is neither done nor
held by a living worker and whose needs are done. What a task keeps besides, to go on from, is its own business.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemstitch.errors import HemstitchError
from hemstitch.files import read_json_file, write_text
from hemstitch.provenance import provenance

Result = dict[str, Any]
PATIENCE = 5.0  # seconds
# Of a result: what is as it was, when a task is done once more.
SAME = ("averaged_weights", "classifier", "held_out_error")


@dataclass(frozen=True)
class Task:
    """name: of its result, "switch/dit-0/8000". do: makes the result, of what was made before. needs: names of tasks
    that come first. of: what the result hangs on but the needs and the code, settings of equal `repr` if they are
    equal: a result that was made of others is not its own. keeps: what it makes besides its result, where others read
    it: lost, it is made again for them. dtype: of its networks."""

    name: str
    do: Callable[[], Result]
    needs: tuple[str, ...] = ()
    of: object = None
    keeps: Path | None = None
    dtype: str = "bfloat16"

    @property
    def there(self) -> bool:
        """Whether what it keeps is; or it keeps nothing."""
        return self.keeps is None or self.keeps.exists()

    @property
    def mark(self) -> str:
        """Twelve hex digits of its settings."""
        return hashlib.sha256(repr(self.of).encode()).hexdigest()[:12]


class Stopped(KeyboardInterrupt):
    """A task was asked to stop, saved what it had, and is to be gone on with another time."""


@dataclass(frozen=True)
class Ledger:
    """Results in a folder, one file each, and who is at what."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def done(self, name: str) -> bool:
        return self.path(name).exists()

    def __getitem__(self, name: str) -> Result:
        return read_json_file(self.path(name))

    def all(self, under: str) -> dict[str, Result]:
        """Results whose names begin with `under`/, by the rest of the name."""
        base = self.folder / under
        return {str(path.relative_to(base))[:-5]: read_json_file(path) for path in sorted(base.rglob("*.json"))}

    def check(self, tasks: Sequence[Task], part: str = "") -> None:
        """HemstitchError if there are results of these tasks that other settings made; or, if these are all tasks of a
        part, results of that part that no task makes."""
        other = [t for t in tasks if self.done(t.name) and self[t.name].get("settings") != t.mark]
        if other:
            raise HemstitchError(
                f"{len(other)} results were made by other settings, {other[0].name} first: remove "
                f"{self.path(other[0].name)} and its like, or choose another folder (--out)"
            )

        lost = set(self.all(part)) - {t.name.removeprefix(f"{part}/") for t in tasks} if part else ()
        if lost:
            raise HemstitchError(f"no task makes {', '.join(sorted(lost))}: remove it from {self.folder / part}")

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Whether this worker has the task for itself; a lock that ends with its process, however that ends."""
        path = self.folder / ".held" / name.replace("/", "+")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def do(self, task: Task, origin: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Do a task and write its result, with where it came from and what it took, in all sittings.

        A result that is there stays, and what was made again for it is to be the same. Raises HemstitchError if not.
        """
        say(f"{task.name} …")
        began, cpu = time.perf_counter(), time.process_time()
        path = self.folder / ".took" / f"{task.name.replace('/', '+')}.json"
        before = read_json_file(path) if path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0, "sittings": 0}
        try:
            result = task.do()
        finally:
            took = {
                "seconds": round(before["seconds"] + time.perf_counter() - began, 1),
                "cpu_seconds": round(before["cpu_seconds"] + time.process_time() - cpu, 1),
                "sittings": before["sittings"] + 1,
            }
            write_text(path, json.dumps(took))
        if self.done(task.name):
            held = self[task.name]
            if any(held.get(key) != result.get(key) for key in SAME):
                if task.keeps is not None:
                    task.keeps.rename(task.keeps.with_name(f"{task.keeps.name}.other"))
                raise HemstitchError(
                    f"{task.name} was made again and is another, for sums are rounded otherwise here: remove "
                    f"{self.path(task.name)} and the results of what needs it, or choose another folder (--out)"
                )
            path.unlink()
            return
        told = {**result, "settings": task.mark, "took": took}
        told["provenance"] = {**origin, "dtype": task.dtype, "date": provenance()["date"]}
        self.path(task.name).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path(task.name), json.dumps(told, indent=1, allow_nan=False))
        path.unlink()  # done again, it would take its own time
        say(f"{task.name}: {took['seconds']:.0f} s{_shown(result)}")


def with_needs(names: Sequence[str], every: Mapping[str, Task]) -> list[Task]:
    """The tasks of these names, each after all that it needs, at whatever remove."""
    found: dict[str, Task] = {}

    def add(name: str) -> None:
        if name not in found:
            for need in every[name].needs:
                add(need)
            found[name] = every[name]

    for name in names:
        add(name)
    return list(found.values())


def work(tasks: Sequence[Task], ledger: Ledger, say: Callable[[str], None] = print) -> list[str]:
    """Do what there is to do, in order, and wait for what other workers are at. Returns the names of tasks that failed;
    what needs them is left. Raises as `Ledger.check`, and ValueError for needs that no task makes."""
    ledger.check(tasks)
    by_name = {task.name: task for task in tasks}
    lost = [
        f"{task.name} needs {need}"
        for task in tasks
        for need in task.needs
        if need not in by_name and not ledger.done(need)
    ]
    if lost:
        raise ValueError(f"tasks need what no task makes: {', '.join(lost)}")
    failed: list[str] = []
    origin = provenance()  # of the code as it was read, whatever is committed meanwhile
    while True:
        left = [t for t in tasks if not ledger.done(t.name) and t.name not in failed]
        left = [*_lost(left, by_name, ledger, failed), *left]
        ready = [t for t in left if all(ledger.done(n) and (n not in by_name or by_name[n].there) for n in t.needs)]
        if not any(_tried(task, ledger, failed, origin, say) for task in ready):
            blocked = [t for t in left if not _hopeless(t, tasks, failed)]
            if not blocked:
                return failed
            time.sleep(PATIENCE)  # others are at the rest


def _lost(left: Sequence[Task], by_name: Mapping[str, Task], ledger: Ledger, failed: Sequence[str]) -> list[Task]:
    """What these need, at whatever remove, that was done and is no longer there."""
    found: dict[str, Task] = {}

    def add(task: Task) -> None:
        for need in (by_name[name] for name in task.needs if name in by_name):
            if need.name not in {*found, *failed} and ledger.done(need.name) and not need.there:
                add(need)
                found[need.name] = need

    for task in left:
        add(task)
    return list(found.values())


def _tried(
    task: Task, ledger: Ledger, failed: list[str], origin: Mapping[str, str], say: Callable[[str], None]
) -> bool:
    """Whether this worker had the task for itself, and so did it or failed at it."""
    with ledger.held(task.name) as mine:
        if not mine or (ledger.done(task.name) and task.there):
            return False
        try:
            ledger.do(task, origin, say)
        except Exception as error:  # the others go on
            why = str(error) if isinstance(error, HemstitchError) else f"\n{traceback.format_exc()}"
            say(f"{task.name} failed: {why}")
            failed.append(task.name)
        return True


def _hopeless(task: Task, tasks: Sequence[Task], failed: Sequence[str]) -> bool:
    """Whether it waits, at whatever remove, for a task that failed here."""
    by_name = {t.name: t for t in tasks}
    return any(need in failed or _hopeless(by_name[need], tasks, failed) for need in task.needs if need in by_name)


def _shown(result: Mapping[str, Any]) -> str:
    """The figures of a result that fit in a line."""
    flat = {k: v["value"] if isinstance(v, dict) and "value" in v else v for k, v in result.items()}
    return "".join(f", {k} {v:.4g}" for k, v in flat.items() if isinstance(v, float | int))
