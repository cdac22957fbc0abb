"""Images in a data set of Hugging Face's `datasets`, saved to disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import HemstitchError, MissingExtraError
from .decoded import Decoded, numbered, require_pillow

_LABELS = ("label", "labels", "class")


class HuggingFace(Decoded):
    """RGB images (3, size, size) in -1..1 from what `datasets` wrote with `save_to_disk`. See `Decoded` for how.

    path: the folder it was saved to; of a DatasetDict, the split "train" is taken (another one is its subfolder).
    size: the side of the images.

    The images are in the only column of the type Image. Labels are in the only ClassLabel, or in that of several which
    is called label, labels or class, and give the classes their names; else in a column of integers of such a name, the
    classes then being "0" to the largest; else there are no classes. Rows whose image is missing count as broken.
    """

    def __init__(self, path: Path, size: int) -> None:
        require_pillow(size)
        path = Path(path)
        table = _loaded(path)
        if not len(table):
            raise HemstitchError(f"{path} has no rows")
        column = _image_column(table, path)
        classes, labels = _labels(table, path)
        super().__init__(path, size, f"huggingface:{Path(os.path.abspath(path)).name}", classes, labels)
        self._table = _bytes_only(table, column)

    def _encoded(self, index: int) -> bytes:
        row = self._table[index].column(0)[0].as_py()
        if row is None:
            return b""
        if row["bytes"] is None and row["path"] is not None:
            raise HemstitchError(
                f"{self._where(index)} names a file ({row['path']}) and does not hold it: save the data set again with "
                "save_to_disk where that file exists"
            )
        return row["bytes"] or b""

    def _where(self, index: int) -> Path:
        return self.path / f"row {index}"


def _datasets() -> Any:
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise MissingExtraError("datasets", "hf") from None
    return datasets


def _loaded(path: Path) -> Any:
    """The rows at a path, a `datasets.Dataset`."""
    datasets = _datasets()
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise HemstitchError(f"{path} {state}: give the folder that a data set was saved to (ds.save_to_disk)")
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # of many types, from the reading of JSON to that of Arrow
        raise HemstitchError(
            f"{path} cannot be read as a data set that was saved with save_to_disk ({error}): save it again"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if "train" not in found:
        raise HemstitchError(f"{path} has the splits {', '.join(found)} and no train: give the path of one ({path}/…)")
    return found["train"]


def _image_column(table: Any, path: Path) -> str:
    columns = [name for name, feature in table.features.items() if isinstance(feature, _datasets().Image)]
    if len(columns) != 1:
        every = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
        raise HemstitchError(
            f"{path} has {len(columns)} columns of the type Image where one is expected: its columns are {every}; "
            "cast or remove columns (ds.cast_column, ds.remove_columns) and save it again"
        )
    return columns[0]


def _bytes_only(table: Any, column: str) -> Any:
    """The column alone, its images left encoded: they are decoded by our rules, from our formats only."""
    return table.select_columns([column]).cast_column(column, _datasets().Image(decode=False)).with_format("arrow")


def _labels(table: Any, path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Names of the classes, and (N,) labels; () and zeros where there are none."""
    column = _label_column(table, path)
    if column is None:
        return (), torch.zeros(len(table), dtype=torch.int64)
    values = table.select_columns([column]).with_format("arrow")[:].column(0)
    if values.null_count:
        raise HemstitchError(
            f"{values.null_count} rows of {path} have no {column}: fill or remove them, and save again"
        )
    labels: np.ndarray = values.to_numpy()
    names = getattr(table.features[column], "names", None)
    if labels.min() < 0 or (names and labels.max() >= len(names)):
        expected = f"0..{len(names) - 1}" if names else "at least 0"
        raise HemstitchError(
            f"column {column} of {path} goes from {labels.min()} to {labels.max()}, where a label is {expected}: "
            "remove such rows (ds.filter), and save again"
        )
    classes = tuple(names) if names else numbered(int(labels.max()), str(path))
    return classes, torch.from_numpy(labels.astype(np.int64))


def _label_column(table: Any, path: Path) -> str | None:
    """The column of the labels, if there is one."""
    named = [name for name, feature in table.features.items() if isinstance(feature, _datasets().ClassLabel)]
    if len(named) > 1:
        named = [name for name in named if name in _LABELS] or named
    if len(named) > 1:
        raise HemstitchError(
            f"{path} has several columns of the type ClassLabel: {', '.join(named)}; call the right one label "
            "(ds.rename_column), and save it again"
        )
    if named:
        return named[0]
    value = _datasets().Value
    numbers = [name for name in _LABELS if isinstance(table.features.get(name), value)]
    return next((name for name in numbers if "int" in table.features[name].dtype), None)
