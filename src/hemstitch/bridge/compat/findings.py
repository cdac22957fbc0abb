"""What a check found: one line per thing compared, the reasons and fixes below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["ok", "note", "refuse"]

WIDTH = 120  # columns of the table
CONVERTED = ("prediction type", "noise schedule")
_WORDS: dict[Level, str] = {"ok": "ok", "note": "note", "refuse": "no"}
_VALUE = 44  # columns of a value; the rest is cut


@dataclass(frozen=True)
class Finding:
    """One thing compared.

    level: "ok", "note" (it can be stitched; know this) or "refuse" (it cannot, as it is). what: its name in plain
    words; the refusals of CONVERTED are those that `stitch(..., processes=)` lifts. small, large: what each has. fix:
    the reason, and what to do; empty where all is well.
    """

    level: Level
    what: str
    small: str
    large: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.small} (small) against {self.large} (large). {self.fix}".rstrip()


@dataclass(frozen=True)
class Findings:
    """All that was compared. `print` it for the table."""

    found: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands against stitching."""
        return not self.refusals

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.found if f.level == "refuse")

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.found if f.level == "note")

    def __str__(self) -> str:
        rows = [("", "", "small", "large")]
        rows += [(_WORDS[f.level], f.what, _cut(f.small), _cut(f.large)) for f in self.found]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        shared: dict[tuple[Level, str], list[str]] = {}  # one paragraph for findings of one reason
        for f in (*self.refusals, *self.notes):
            shared.setdefault((f.level, f.fix), []).append(f.what)
        for (level, fix), what in shared.items():
            told = f"{_WORDS[level]:<4}  {', '.join(what)}: {fix}"
            lines += ["", textwrap.fill(told, WIDTH, subsequent_indent="      ", break_on_hyphens=False)]
        return "\n".join(line.rstrip() for line in lines)


def text(value: Any) -> str:
    """A value of a configuration in words: "none" if absent, lists with commas, nothing that a terminal obeys."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(text(v) for v in value[:8]) + (", …" if len(value) > 8 else "")
    return "".join(c if c.isprintable() else "?" for c in str(value)[:200])


def plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them, so that a live configuration equals its file."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def whole(value: Any) -> int | None:
    """The value if it is a positive whole number; configurations come from files of others."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None


def compared(
    what: str, pair: Sequence[Any], fix: str, level: Level = "refuse", alike: bool | None = None
) -> list[Finding]:
    """One finding about the small and the large one's value: ok if they agree (or `alike` says so), else of this level.

    None where neither has the thing.
    """
    small, large = pair
    if small is None and large is None:
        return []
    if small == large if alike is None else alike:
        return [Finding("ok", what, text(small), text(large))]
    return [Finding(level, what, text(small), text(large), fix)]


def _cut(value: str) -> str:
    return value if len(value) <= _VALUE else value[: _VALUE - 1] + "…"
