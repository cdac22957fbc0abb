"""What a command says while it works."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..train.meter import Progress


class Line:
    """A progress line that rewrites itself on a terminal, and prints now and then elsewhere."""

    def __init__(self) -> None:
        self.quiet = int(os.environ.get("RANK", "0")) > 0  # of several processes one speaks
        self.live = sys.stderr.isatty()
        self.open = False
        self.spoke = 0.0
        self.text = self.printed = ""

    def show(self, text: str, last: bool = False) -> None:
        if self.quiet:
            return
        if self.live:
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
            sys.stderr.flush()
            self.open = not last
        elif last or time.monotonic() - self.spoke > 5:
            self._print(text)
        self.text = text

    def close(self) -> None:
        """The last that was shown stays, whether or not its turn had come."""
        if self.open:
            sys.stderr.write("\n")
            self.open = False
        elif not self.live and not self.quiet:
            self._print(self.text)

    def _print(self, text: str) -> None:
        if text != self.printed:
            print(text, file=sys.stderr, flush=True)
        self.spoke, self.printed = time.monotonic(), text

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self.open:
            self.close()
        print(text, flush=True)


def told(p: Progress) -> str:
    prior = f", prior {p.prior:.4f}" if p.prior else ""
    waiting = f", waiting for data {p.waited:.0%} of the time" if p.waited > 0.02 else ""
    speed = f"{p.rate:.0f} images/s, {p.share:.0%} of the matrix rate here{waiting}"
    return f"step {p.step}, loss {p.loss:.4f}{prior}, {speed}, {clock(p.left)} left"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
