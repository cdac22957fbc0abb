"""Results into benchmarks/results/reproduction, and their tables and pictures into docs/reproduction.md.

Between `<!-- NAME -->` and `<!-- / -->` the document is written by this; the rest, what the figures mean, by people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hemstitch.files import write_bytes, write_text

from . import PARTS, claims, pictures, tables
from .work import Ledger

RESULTS, DOCUMENT = Path("benchmarks/results/reproduction"), Path("docs/reproduction.md")


def write(out: Path, results: Path = RESULTS, document: Path = DOCUMENT) -> None:
    """Every result that is done; and of the parts all of whose results are there, tables and pictures."""
    ledger, published = Ledger(out / "results"), Ledger(results)
    for part in PARTS:
        tasks = import_module(f"{__package__}.{part}").tasks(out)
        ledger.check(tasks, part)
        marks = {task.name: task.mark for task in tasks}
        for rest, result in published.all(part).items():
            if marks.get(name := f"{part}/{rest}") != result["settings"]:
                published.path(name).unlink()  # of other settings, or of a task that is no more
        for name in marks:
            if ledger.done(name):
                write_text(published.path(name), text(ledger[name]))
    refresh(results, document)


def take(out: Path, results: Path = RESULTS) -> None:
    """The other way: published results are done. Those of other settings stay where they are."""
    ledger, published = Ledger(out / "results"), Ledger(results)
    for part in PARTS:
        for task in import_module(f"{__package__}.{part}").tasks(out):
            if not ledger.done(task.name) and published.done(task.name):
                result = published[task.name]
                if result["settings"] == task.mark:
                    write_text(ledger.path(task.name), text(result))


def text(result: Mapping[str, Any]) -> str:
    """As JSON, lists of numbers or words on a line each."""
    lists = re.compile(r"\[\n([^\[\]{}]*?)\n *\]")
    whole = json.dumps(result, indent=1, allow_nan=False)
    return lists.sub(lambda match: f"[{' '.join(line.strip() for line in match[1].splitlines())}]", whole) + "\n"


def read_all(results: Path = RESULTS) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The summaries, by part, of those whose results are all there; and of every part how many are, of how many."""
    ledger, found, state = Ledger(results), {}, {}
    for part in PARTS:
        module = import_module(f"{__package__}.{part}")
        names = [task.name for task in module.tasks(Path()) if task.name.startswith(f"{part}/")]
        left = [name for name in names if not ledger.done(name)]
        state[part] = len(names) - len(left), len(names)
        if left:
            print(f"{part} is not complete: {len(left)} tasks are left, {left[0]} first")
        else:
            found[part] = json.loads(json.dumps(module.summary(ledger), allow_nan=False))
    return found, state


def refresh(results: Path = RESULTS, document: Path = DOCUMENT) -> None:
    """The document and its pictures, of the results as they are published. What belongs to a part that is not complete
    stays as it is."""
    read, state = read_all(results)
    made = {name: make(read[part]) for name, (part, make) in tables.TABLES.items() if part in read}
    made |= {part: make(read) for part, make in tables.BESIDE.items() if part in read}
    made |= {"claims": claims.table(read), "judge": tables.judge(read), "took": tables.took(read)}
    made["state"] = tables.state(state)
    write_text(document, filled(document.read_text(), made))
    for name, (part, draw) in pictures.PICTURES.items():
        if part in read:
            write_bytes(document.parent / name, draw(read[part]))


def filled(text: str, made: Mapping[str, str]) -> str:
    """A document with every block that was made in its place. Raises ValueError where there is no place for one."""
    for name, block in made.items():
        place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- / -->)", re.DOTALL)
        text, count = place.subn(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"the document has {count} places for {name}, not one")
    return text
