"""Which content a data set's name stands for: that of a file may change under the same name."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

Stamp = tuple[int, int, int]


def stamp_of(data: str) -> Stamp | None:
    """Return what tells a file from the one that was there before, without reading it.

    Args:
        data: a data set's name, or the path of its file.

    Returns:
        Inode, size and time of change; None if it is no path of a file.
    """
    if not Path(data).is_file():
        return None
    found = os.stat(data)
    return found.st_ino, found.st_size, found.st_mtime_ns


def content_of(data: str) -> str | None:
    """Return a hash of a data set's file.

    Args:
        data: a data set's name, or the path of its file.

    Returns:
        Hexadecimal digits; None for a name, which always stands for the same images.
    """
    stamp = stamp_of(data)
    return None if stamp is None else _hashed(data, stamp)


@lru_cache
def _hashed(path: str, stamp: Stamp) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
