"""Sets of pictures to evaluate. Strict: nothing is resized, converted or dropped without being asked for."""

from __future__ import annotations

import os
from pathlib import Path

from ...data import DATASETS
from ...data.decoded import SUFFIXES
from ...errors import HemstitchError
from .arrays import ArrayImages
from .base import ContentHash, Images, content
from .encoded import FolderImages, TarImages
from .sets import DatasetImages
from .tensors import TensorImages

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # the packed ones are refused with the reason
_SOURCES = (
    "a folder of pictures, a .npz or .npy, a .tar, a folder or pattern (imgs-{0000..0099}.tar) of them, or a data set "
    f"({', '.join(DATASETS)}; KIND:PATH)"
)


def open_images(source: str | Path, *, size: int = 0, grey: bool = False) -> Images:
    """Pictures to evaluate.

    source: one of
        - a folder of png, jpg, jpeg and webp files, to any depth (`FolderImages`);
        - a `.npz` with arr_0, as ADM's samples, or a `.npy` (`ArrayImages`);
        - a `.tar`, a folder of such, or a pattern like imgs-{0000..0099}.tar (`TarImages`);
        - a data set: "digits", "fashion_mnist", or KIND:PATH with a kind of `hemstitch.data.DATASETS`, as
          folder:imagenet/val (`DatasetImages`). A folder of such a name is ./digits, or a Path.
    size: for KIND:PATH, the side to crop and resize to; for the others, 0 or the side that their pictures have.
    grey: whether greyscale pictures will do, whose channel is then repeated; RGB ones do in any case. Of a data set by
        name they do always.

    Every header is read now, before hours are spent. Raises HemstitchError, naming files: mixed sizes, greyscale
    beside RGB, greyscale without `grey`, 16 bits, transparency, CMYK, rotation noted in EXIF, several frames, broken
    or empty files, arrays that are not uint8 (N, H, W, 3 or 1), damaged archives, fewer than two pictures.
    """
    if size < 0:
        raise HemstitchError(f"size is the side of the pictures, or 0 for what they have; not {size}")
    if isinstance(source, str):
        kind, _, where = source.partition(":")
        if kind in DATASETS:
            return DatasetImages(kind, where, size, grey=True)  # whoever names a data set knows whether it is grey
    path = Path(source)
    if path.is_dir():
        return TarImages(path, size, grey) if _only_tars(path) else FolderImages(path, size, grey)
    if path.name.lower().endswith(_TARS) and (path.exists() or "{" in str(path)):
        return TarImages(path, size, grey)
    if not path.exists():
        raise HemstitchError(f"{source} does not exist: give {_SOURCES}")
    if path.suffix.lower() in (".npz", ".npy"):
        return ArrayImages(path, size, grey)
    raise HemstitchError(f"{source} is none of what can be evaluated: give {_SOURCES}")


def _only_tars(path: Path) -> bool:
    """Whether a folder is one of tar files. HemstitchError if pictures or folders lie beside them."""
    with os.scandir(path) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    tars = [name for name, folder in found if not folder and name.lower().endswith(_TARS)]
    others = [name for name, folder in found if folder or name.lower().endswith(SUFFIXES)]
    if tars and others:
        raise HemstitchError(
            f"{path} holds tar files ({tars[0]}, …) beside pictures or folders ({others[0]}, …): give one of them, or "
            "move the others away"
        )
    return bool(tars)


__all__ = [
    "ArrayImages",
    "ContentHash",
    "DatasetImages",
    "FolderImages",
    "Images",
    "TarImages",
    "TensorImages",
    "content",
    "open_images",
]
