"""The errors that hemstitch raises on purpose. Each message says what was expected, what came, and what to do."""

from __future__ import annotations


class HemstitchError(ValueError):
    """Input that hemstitch can name the fix for. Command-line tools print it without a traceback."""


class StitchError(HemstitchError):
    """Members that cannot denoise the same trajectory, or a plan that does not fit its members."""


class CheckpointError(HemstitchError):
    """A file of weights or training state that is damaged, hostile, or of another run."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed here and not installed: pip install 'hemstitch[{extra}]'")
