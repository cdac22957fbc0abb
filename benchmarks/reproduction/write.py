"""Results into benchmarks/results, and their tables and pictures into docs/reproduction.md.

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

RESULTS, DOCUMENT = Path("benchmarks/results"), Path("docs/reproduction.md")


def write(out: Path, results: Path = RESULTS, document: Path = DOCUMENT) -> None:
    """Of every part that is done; of the others what was written before stays."""
    ledger = Ledger(out / "results")
    for part in PARTS:
        module = import_module(f"{__package__}.{part}")
        left = [task.name for task in module.tasks(out) if not ledger.done(task.name)]
        if left:
            print(f"{part} is not complete: {len(left)} tasks are left, {left[0]} first")
            continue
        ledger.check(module.tasks(out), part)
        summary = module.summary(ledger)
        write_text(results / f"reproduction-{part}.json", text(summary))
    refresh(results, document)


def text(summary: Mapping[str, Any]) -> str:
    """As JSON, lists of numbers or words on a line each."""
    lists = re.compile(r"\[\n([^\[\]{}]*?)\n *\]")
    whole = json.dumps(summary, indent=1, allow_nan=False)
    return lists.sub(lambda match: f"[{' '.join(line.strip() for line in match[1].splitlines())}]", whole) + "\n"


def refresh(results: Path = RESULTS, document: Path = DOCUMENT) -> None:
    """The document and its pictures, of the results as they are committed."""
    read = {
        part: json.loads(path.read_text()) for part in PARTS if (path := results / f"reproduction-{part}.json").exists()
    }
    made = {name: make(read[part]) for name, (part, make) in tables.TABLES.items() if part in read}
    made |= {"attempts": tables.attempts(read)} if "attempts" in read else {}
    made |= {"claims": claims.table(read), "judge": tables.judge(read), "took": tables.took(read)}
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
