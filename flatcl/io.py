"""Files that are whole or absent: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Return ``path`` after replacing its content in one step, whatever interrupts the writing.

    Args:
        path: the file; its folder is made if missing.
        content: the whole new content.

    Returns:
        The path written.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private to the user
        os.replace(temporary, target)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # that of a write has none
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    return target


def finite(content: object) -> object:
    """Return the content with None in place of numbers that JSON has not.

    Args:
        content: dicts, lists and tuples of what JSON holds.

    Returns:
        The same; tuples become lists.
    """
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: str | os.PathLike[str], value: object) -> Path:
    """Return ``path`` after writing ``value`` as indented JSON, keys in the order given.

    NaN and infinities are refused (``allow_nan=False``): a reader in another language would
    choke on them, and a result that is not a number is reported as null by its maker.

    Args:
        path: the file; its folder is made if missing.
        value: what ``json.dumps`` takes.

    Returns:
        The path written.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    return write_bytes(path, text.encode())


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, object]]) -> Path:
    """Return ``path`` after writing one JSON object a line.

    Args:
        path: the file; its folder is made if missing.
        rows: the objects, in the order of the lines.

    Returns:
        The path written.
    """
    text = "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows)
    return write_bytes(path, text.encode())
