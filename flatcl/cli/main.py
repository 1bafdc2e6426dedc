"""The command ``flatcl``: its subcommands and its exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from flatcl import __version__
from flatcl.cli import analyze, compare, generalize
from flatcl.errors import FlatclError

GOOD, BROKEN, USAGE, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"flatcl: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code of the command: 0 good, 1 a run failed, 2 usage, 130 interrupted.

    Args:
        arguments: of the command; those of the process if None.

    Returns:
        The exit code.
    """
    try:
        return _run(arguments)
    except FlatclError as error:
        print(f"flatcl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"flatcl: error: {error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        print("flatcl: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    parser = _Parser(
        prog="flatcl",
        description="Continual learning by landscape-dependent constraints (LDC).",
        epilog="`flatcl compare` alone trains LDC beside Naive and EWC on real scans, in a minute.",
    )
    parser.add_argument("--version", action="version", version=f"flatcl {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    compare.add_parser(commands)
    analyze.add_parser(commands)
    generalize.add_parser(commands)
    try:
        chosen = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has said its line
        return int(stop.code or 0)
    code: int = chosen.run(chosen)
    return code


if __name__ == "__main__":
    sys.exit(main())
