"""The command line: verbs over the library. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from ..errors import HemstitchError, MissingExtraError
from .parser import parser_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0, 1 where check finds no way, 2 for bad input, 130 after Ctrl-C."""
    parser = parser_of()
    known, rest = parser.parse_known_args(arguments)
    if known.verb is None:
        parser.print_help()
        return 0
    if rest and known.verb != "train":
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    warnings.showwarning = _warn
    try:
        module = import_module(f".{_HOME[known.verb]}", __name__)
        return getattr(module, known.verb)(known, rest)
    except (HemstitchError, MissingExtraError) as error:
        print(f"hemstitch: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, UnicodeDecodeError) as error:  # unreadable, unwritable, no space: the message has the path
        print(f"hemstitch: a file could not be read or written: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhemstitch: interrupted", file=sys.stderr)
        return 130


def _warn(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """Ours are for the person at the keyboard; others keep their name."""
    named = "" if category is UserWarning else f" ({category.__name__})"
    print(f"hemstitch: warning{named}: {message}", file=sys.stderr)


_HOME = {
    "quickstart": "training",
    "train": "training",
    "encode": "training",
    "sample": "sampling",
    "evaluate": "evaluating",
    "convert": "models",
    "describe": "models",
    "check": "checking",
    "search": "searching",
    "analyze": "analyzing",
}
