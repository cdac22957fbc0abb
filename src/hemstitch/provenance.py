"""Where a figure came from: code, machine, precision, time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from . import __version__


def provenance(device: torch.device | str = "cpu", dtype: str = "float32") -> dict[str, str]:
    """Commit (with a mark if the tree has changes), versions, device, dtype, threads and date (UTC)."""
    return {
        "hemstitch": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _device_name(torch.device(device)),
        "dtype": dtype,
        "threads": str(torch.get_num_threads()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _commit() -> str:
    """The commit that this code was run from, or "not a checkout".

    HEMSTITCH_COMMIT says it where the code was copied without its history.
    """
    if os.environ.get("HEMSTITCH_COMMIT"):
        return os.environ["HEMSTITCH_COMMIT"]
    return _checkout()


@cache
def _checkout() -> str:
    """As it was when it was asked first: what is committed while a process runs is not the code that it runs."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return "not a checkout"
        changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return "not a checkout"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"CPU {model}"
