"""Which content a data set's name stands for: that of a file may change under the same name."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

NAMES = ("digits", "mnist", "fashion", "cifar100")
"""Data sets that are known by name; of all but the first a file may be in ``FLATCL_DATA``."""

Stamp = tuple[int, int, int]


def file_of(data: str) -> Path | None:
    """Return the file that a data set is read from.

    Args:
        data: a data set's name, or the path of its file.

    Returns:
        ``NAME.npz`` in the first folder of ``FLATCL_DATA`` that has it, or the path; None where
        there is no such file, as of a name that scikit-learn or torchvision stands for.
    """
    if data not in NAMES:
        return Path(data) if Path(data).is_file() else None
    if data == NAMES[0]:
        return None
    folders = [Path(name) for name in os.environ.get("FLATCL_DATA", "").split(os.pathsep) if name]
    paths = (folder / f"{data}.npz" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def stamp_of(data: str) -> Stamp | None:
    """Return what tells a file from the one that was there before, without reading it.

    Args:
        data: a data set's name, or the path of its file.

    Returns:
        Inode, size and time of change; None if there is no file.
    """
    file = file_of(data)
    return None if file is None else _stamped(file)


def _stamped(file: Path) -> Stamp:
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


def content_of(data: str) -> str | None:
    """Return a hash of a data set's file.

    Args:
        data: a data set's name, or the path of its file.

    Returns:
        Hexadecimal digits; None where there is no file, for then the images are always the same.
    """
    file = file_of(data)
    return None if file is None else _hashed(str(file), _stamped(file))


@lru_cache
def _hashed(path: str, stamp: Stamp) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
