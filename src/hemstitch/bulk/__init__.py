"""Samples in bulk: by any number of processes, interrupted at will, always the same."""

from .manifest import MANIFEST, finished
from .settings import read_labels
from .write import write_samples

__all__ = ["MANIFEST", "finished", "read_labels", "write_samples"]
