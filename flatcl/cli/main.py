"""The command ``flatcl``: its subcommands and its exit codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import shtab

from flatcl import __version__
from flatcl.cli import analyze, compare, generalize
from flatcl.errors import FlatclError

GOOD, BROKEN, USAGE, INTERRUPTED = 0, 1, 2, 130
_LONGEST = 800  # characters of an error; what is left out of a longer one is its middle


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{_line(message)} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code of the command: 0 good, 1 a run failed, 2 usage, 130 interrupted.

    Args:
        arguments: of the command; those of the process if None.

    Returns:
        The exit code.
    """
    return in_one_line(lambda: _run(arguments))


def in_one_line(command: Callable[[], int]) -> int:
    """Return the exit code of a command, with one line on stderr for what it raises.

    Args:
        command: returns its own exit code.

    Returns:
        The exit code; what is a defect of the command goes through.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal may not have every character
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command()
        sys.stdout.flush()
        return code
    except FlatclError as error:
        print(_line(str(error)), file=sys.stderr)
        return USAGE
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        _close_stdout()
        return GOOD
    except OSError as error:  # a folder that cannot be written, a full disk
        _close_stdout()
        print(f"{_line(str(error))}; mend it, the same command goes on from here", file=sys.stderr)
        return BROKEN
    except MemoryError:
        print(_line("the memory is too small for this: lower the sizes"), file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        print("flatcl: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _close_stdout() -> None:
    """Send what cannot be printed nowhere: Python would complain of it once more as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(message: str) -> str:
    """Return one line that can be printed, whatever a message quotes."""
    words = " ".join(message.split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return f"flatcl: error: {text}"


def _run(arguments: Sequence[str] | None) -> int:
    parser = _Parser(
        prog="flatcl",
        description="Continual learning by landscape-dependent constraints (LDC).",
        epilog="`flatcl compare` alone trains LDC beside Naive and EWC on real scans, in a minute.",
    )
    parser.add_argument("--version", action="version", version=f"flatcl {__version__}")
    shtab.add_argument_to(
        parser, "--print-completion", help="print a shell's completion script, to be sourced"
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    compare.add_parser(commands)
    analyze.add_parser(commands)
    generalize.add_parser(commands)
    try:
        chosen = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has said its line
        return int(stop.code or 0)
    try:
        code: int = chosen.run(chosen)
    except RuntimeError as error:
        if "allocate memory" in str(error):  # torch has no error of its own for it on a CPU
            raise MemoryError(str(error)) from error
        raise
    return code


if __name__ == "__main__":
    sys.exit(main())
