"""Options of a command: dataclass fields that know their help, their parser and their range.

No heavy imports here: ``flatcl --help`` reads it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any, cast

from flatcl.errors import OptionError

_MOST = 10**9  # of any whole number: far beyond use, and every library beneath can still count it
_SEEDS = 2**63
_WIDEST = 10**6
_SHOWN = 80  # characters of a refused value


def names(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated list.

    Args:
        text: e.g. "a,b".

    Returns:
        Its parts, none empty.
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def widths(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated list; a ValueError if one is none.

    Args:
        text: e.g. "100,100".

    Returns:
        The numbers.
    """
    return tuple(int(part) for part in names(text))


def size(text: str) -> int | None:
    """Return a number of samples, None for ``all``; a ValueError for anything else.

    Args:
        text: e.g. "1000" or "all".

    Returns:
        The number.
    """
    return None if text == "all" else int(text)


def option(
    default: object,
    meaning: str,
    parse: Callable[[str], object] = str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """Return a dataclass field that is an option of a command too.

    Args:
        default: its default.
        meaning: what ``--help`` says of it.
        parse: from text to the value.
        choices: what may be given, anything if empty.
        metavar: what ``--help`` calls the value.

    Returns:
        The field.
    """
    metadata = {"help": meaning, "parse": parse, "choices": choices, "metavar": metavar}
    return field(default=default, metadata=metadata)


def data_option() -> Any:
    """Return the field that names a data set.

    Returns:
        The field.
    """
    return option(
        "digits",
        "images: digits (scikit-learn's, no download), mnist, fashion, cifar100 (from the folders "
        "of FLATCL_DATA, else downloaded), or an .npz file with x_train, y_train, x_test, y_test",
        metavar="NAME|FILE.npz",
    )


class Options:
    """Base of the frozen dataclasses whose fields are a command's options."""

    def _choices(self) -> None:
        for item in option_fields(type(self)):
            choices, value = item.metadata["choices"], getattr(self, item.name)
            if choices and value not in choices and (value, item.default) != (None, None):
                self._refuse(item.name, f"choose one of {', '.join(choices)}")

    def _refuse(self, name: str, remedy: str) -> None:
        raise OptionError(f"{name.replace('_', '-')} is {shown(getattr(self, name))}: {remedy}")

    def _whole(self, name: str, low: int, *, most: int = _MOST, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not _is_whole(value) or value < low:
            self._refuse(name, f"give a whole number, {low} or more")
        if value > most:
            self._refuse(name, f"give a whole number, {most} or less")

    def _seed(self) -> None:
        self._whole("seed", 0, most=_SEEDS - 1)

    def _real(self, name: str, *, low: float = 0.0, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        number = number_of(value)
        if number is None or not math.isfinite(number) or number < low:
            bound = "" if low == -math.inf else f", {low:g} or more"
            self._refuse(name, f"give a finite number{bound}")
        object.__setattr__(self, name, number)  # 1 and 1.0 are the same run

    def _switch(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            self._refuse(name, "give true or false")

    def _list(self, name: str, example: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, (list, tuple)):
            self._refuse(name, f"give a list, e.g. {example}")
        object.__setattr__(self, name, tuple(value))

    def _data(self) -> None:
        value = self.data  # type: ignore[attr-defined]  # of the classes that call this
        if not isinstance(value, str) or not value:
            self._refuse("data", "give a name")
        if not value.isprintable():
            self._refuse("data", "it cannot be printed; rename the file")
        reason = unusable(value)
        if reason is not None:
            self._refuse("data", f"{reason}, give a name or a file")

    def _hidden(self, least: int, example: str) -> None:
        self._list("hidden", example)
        widths = self.hidden  # type: ignore[attr-defined]  # of the classes that call this
        if len(widths) < least or not all(_is_whole(n) and 1 <= n <= _WIDEST for n in widths):
            number = "two whole numbers or more" if least == 2 else "whole numbers, 1 or more"
            self._refuse("hidden", f"give {number}, none above {_WIDEST}, e.g. {example}")


def shown(value: object) -> str:
    """Return a value as an error's message shows it, in one line and not for pages.

    Args:
        value: anything.

    Returns:
        Its ``repr``, the middle left out of a long one.
    """
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 4 :]}"


def unusable(path: str) -> str | None:
    """Return why a path cannot be looked at: it is too long, closed to this user, or has a NUL.

    Args:
        path: of a file or folder, there or not.

    Returns:
        The reason; None if there is none.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None  # for the reader to tell
    except (OSError, ValueError) as error:
        return f"it cannot be opened ({getattr(error, 'strerror', None) or error})"
    return None


def number_of(value: object) -> float | None:
    """Return a number as a float; a truth value is none.

    Args:
        value: anything.

    Returns:
        The number, infinite where it is a whole one beyond all floats; None if it is none.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond all floats
        return math.inf


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def option_fields(options: type[Options]) -> tuple[Field[object], ...]:
    """Return the fields of an options class, whose metadata describe the options.

    Args:
        options: a dataclass.

    Returns:
        Dataclass fields with ``help``, ``parse``, ``choices`` and ``metavar`` in their metadata.
    """
    return cast("tuple[Field[object], ...]", fields(options))  # type: ignore[arg-type]
