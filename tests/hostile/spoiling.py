"""What may be wrong with plain content that was saved: every entry, in every way."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

GONE = object()
"""In place of an entry that is deleted."""

Path = tuple[Any, ...]


def paths(content: Any, before: Path = ()) -> Iterator[Path]:
    """Yield the way to every entry, however deep."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    for key, value in content.items() if isinstance(content, dict) else ():
        yield (*before, key)
        yield from paths(value, (*before, key))


def at(content: Any, path: Path) -> Any:
    """Return the entry at a path."""
    for key in path:
        content = content[key]
    return content


def wrong(value: Any) -> dict[str, Any]:
    """Return what may stand in an entry's place, by what is wrong with it."""
    found: dict[str, Any] = {
        "gone": GONE, "nothing": None, "a word": "x", "a list": [], "a dict": {}
    }  # fmt: skip
    if isinstance(value, Tensor):
        shape = [n + 1 for n in value.shape] or [2]
        found["another shape"] = value.new_zeros(shape)
        if value.is_floating_point():
            found |= {"NaN": torch.full_like(value, math.nan), "negative": -value.abs() - 1}
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found |= {"NaN": math.nan, "negative": -1, "huge": 10**400, "a tensor": torch.zeros(2)}
    return found


def spoilt(content: Any, path: Path, value: Any) -> Any:
    """Return a copy with another value at a path."""
    found = copy.deepcopy(content)
    inner = at(found, path[:-1])
    if value is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return found
