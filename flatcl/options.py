"""Options of a command: dataclass fields that know their help, their parser and their range.

No heavy imports here: ``flatcl --help`` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any, cast

from flatcl.errors import OptionError


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
        option = name.replace("_", "-")
        raise OptionError(f"{option} is {getattr(self, name)!r}: {remedy}")

    def _whole(self, name: str, low: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self._refuse(name, f"give a whole number, {low} or more")

    def _real(self, name: str, *, low: float = 0.0, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value < low:
            bound = "" if low == -math.inf else f", {low:g} or more"
            self._refuse(name, f"give a finite number{bound}")
        object.__setattr__(self, name, float(value))  # 1 and 1.0 are the same run

    def _hidden(self, least: int, example: str) -> None:
        widths = self.hidden  # type: ignore[attr-defined]  # of the classes that call this
        if len(widths) < least or not all(isinstance(n, int) and n >= 1 for n in widths):
            number = "two whole numbers or more" if least == 2 else "whole numbers, 1 or more"
            self._refuse("hidden", f"give {number}, e.g. {example}")


def option_fields(options: type[Options]) -> tuple[Field[object], ...]:
    """Return the fields of an options class, whose metadata describe the options.

    Args:
        options: a dataclass.

    Returns:
        Dataclass fields with ``help``, ``parse``, ``choices`` and ``metavar`` in their metadata.
    """
    return cast("tuple[Field[object], ...]", fields(options))  # type: ignore[arg-type]
