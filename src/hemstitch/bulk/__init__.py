"""Samples in bulk: by any number of processes, interrupted at will, always the same."""

from .settings import read_labels
from .write import MANIFEST, write_samples

__all__ = ["MANIFEST", "read_labels", "write_samples"]
