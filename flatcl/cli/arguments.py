"""What the subcommands share: options made of dataclass fields, and the file that sets them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from flatcl.errors import OptionError
from flatcl.options import Options, option_fields, shown, size, unusable

T = TypeVar("T", bound=Options)


def add_options(parser: argparse.ArgumentParser, options: type[Options], *, out: str) -> None:
    """Add ``--out``, ``--config``, ``--json``, ``--quiet`` and one option for each field.

    Args:
        parser: of the subcommand.
        options: its options.
        out: default of ``--out``, for the help.
    """
    parser.add_argument("--out", metavar="DIR", help=f"folder to write to [{out}]")
    parser.add_argument("--config", metavar="FILE.toml", help="options by name; flags go before it")
    parser.add_argument("--json", action="store_true", help="print the JSON file, not the table")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    for item in option_fields(options):
        flag, meta = item.name.replace("_", "-"), item.metadata
        if isinstance(item.default, bool):
            switch = f"--no-{flag}" if item.default else f"--{flag}"
            action = "store_false" if item.default else "store_true"
            parser.add_argument(switch, dest=item.name, action=action, help=meta["help"])
            continue
        parser.add_argument(
            f"--{flag}",
            type=_reader(meta["parse"]),
            choices=meta["choices"] or None,
            metavar=meta["metavar"] or (None if meta["choices"] else _kind(meta["parse"])),
            help=meta["help"].replace("%", "%%") + _default(meta["parse"], item.default),
        )


@dataclass(frozen=True)
class Chosen(Generic[T]):
    """What a command line asks for.

    Attributes:
        options: those of the command; flags go before the file's, which go before the defaults.
        out: folder to write to.
        json: print JSON, not tables.
        quiet: show no progress.
    """

    options: T
    out: Path
    json: bool
    quiet: bool

    def say(self, line: str) -> None:
        """Print a line of progress to stderr, unless it is to be quiet.

        Args:
            line: without its newline.
        """
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def chosen_of(parsed: argparse.Namespace, options: type[T], *, out: str) -> Chosen[T]:
    """Return what a command line asks for.

    Args:
        parsed: by a parser that ``add_options`` was called on, with what is not given left out.
        options: the command's.
        out: the folder where none is given.

    Returns:
        The options, checked, and what goes with them.
    """
    given = vars(parsed)
    config = given.get("config")
    known = {item.name for item in option_fields(options)}
    settings = {} if config is None else read_config(config, options)
    settings |= {name: value for name, value in given.items() if name in known}
    return Chosen(
        options(**settings),
        _folder(given.get("out", out)),
        given.get("json", False),
        given.get("quiet", False),
    )


def _folder(name: str) -> Path:
    path, reason = Path(name), unusable(name) if name else "it is empty"
    if reason is None and path.exists() and not path.is_dir():
        reason = "a file"
    if reason is not None:
        raise OptionError(f"out is {shown(name)}, {reason}: give a folder")
    return path


def read_config(path: str, options: type[Options]) -> dict[str, Any]:
    """Return the options that a TOML file sets.

    Args:
        path: of the file; its keys are the fields of ``options``, with ``-`` or ``_``.
        options: the command's.

    Returns:
        Values by field name; lists become tuples, ``"all"`` becomes None.

    Raises:
        OptionError: the file cannot be read or parsed, or has an unknown key or a table.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"config {path!r} cannot be read ({error.strerror}): name a file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(
            f"config {path!r} is no TOML ({error}): write KEY = VALUE lines"
        ) from error
    known = {item.name: item.metadata["parse"] for item in option_fields(options)}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            names = ", ".join(sorted(key.replace("_", "-") for key in known))
            raise OptionError(f"config {path!r} has the unknown key {key!r}; there are {names}")
        if name in settings:
            raise OptionError(f"config {path!r} has {key!r} twice, with - and with _: keep one")
        if isinstance(value, str):
            value = _parsed(key, value, known[name])
        settings[name] = tuple(value) if isinstance(value, list) else value
    return settings


def _parsed(key: str, text: str, parse: Callable[[str], object]) -> object:
    try:
        return parse(text)
    except ValueError as error:
        raise OptionError(f"{key} is {shown(text)}: give {_kind(parse)}") from error


def _reader(parse: Callable[[str], object]) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{shown(text)}: give {_kind(parse)}") from error

    return read


def _kind(parse: Callable[[str], object]) -> str:
    return {int: "N", float: "X", str: "NAME"}.get(parse, "N,N")  # type: ignore[call-overload, no-any-return]


def _default(parse: Callable[[str], object], value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if parse is size:
        value = "all" if value is None else value
    return "" if value is None else f" [{value}]"
