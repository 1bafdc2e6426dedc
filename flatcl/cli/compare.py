"""``flatcl compare``: methods on one stream, a table, a figure and the numbers behind them."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatcl.cli.arguments import add_options, chosen_of
from flatcl.errors import NonFiniteError
from flatcl.protocol import CompareOptions

if TYPE_CHECKING:
    from flatcl.experiments import Comparison, Progress

_OUT = "flatcl-out"


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options, one for each field of ``CompareOptions``.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "compare",
        help="train methods on one stream and compare what they remember",
        description="Trains each method on the same tasks, from the same initial weights and in "
        "the same batches; writes results.jsonl, summary.json and compare.png. Started again with "
        "the same options and --out, it goes on with the runs that are missing.",
        argument_default=argparse.SUPPRESS,  # what is not given is the file's or the default
    )
    add_options(parser, CompareOptions, out=_OUT)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Return the exit code of ``flatcl compare``.

    Args:
        parsed: the command line.

    Returns:
        0 if every reported run ended well, 1 if one diverged or failed.

    Raises:
        NonFiniteError: no reported run ended well: the options make every method diverge.
    """
    chosen = chosen_of(parsed, CompareOptions, out=_OUT)

    from flatcl.experiments import compare

    with _Reporter(quiet=chosen.quiet) as reporter:
        reporter.say(chosen.options.headline())
        comparison = compare(chosen.options, out=chosen.out, progress=reporter)
    if chosen.json:
        print((chosen.out / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        _print_table(comparison, chosen.out)
    if comparison.broken and not any(m["n_seeds"] for m in comparison.summary["methods"].values()):
        reason = comparison.broken[0].reason
        raise NonFiniteError(f"no run ended well, so the options cannot be used: {reason}")
    for record in comparison.broken:
        told = f"{record.cell.method}, seed {record.cell.seed} {record.status}: {record.reason}"
        print(f"flatcl: {told}", file=sys.stderr)
    return 1 if comparison.broken else 0


def _print_table(comparison: Comparison, out: Path) -> None:
    print(comparison.options.headline())
    print()
    print(comparison.table())
    print()
    for name, entry in comparison.summary["methods"].items():
        print(_tuning_line(name, entry), end="")
    print(f"mean ± 95 % t-interval over seeds; figure and numbers in {out}")


def _tuning_line(name: str, entry: Mapping[str, Any]) -> str:
    if entry["grid"] is None:
        return ""
    tried = ", ".join(
        f"{step['value']:g}: " + ("diverged" if (acc := step["acc_val"]) is None else f"{acc:.1f}")
        for step in entry["grid"]
    )
    return f"{name}: {entry['hyperparameter']} {entry['value']:g} won on validation ({tried})\n"


class _Reporter:
    """Progress on stderr: a bar on a terminal, else a line for each run."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None

    def __enter__(self) -> _Reporter:
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(unit="run", file=sys.stderr, leave=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, line: str) -> None:
        """Print a line, beside the bar if there is one.

        Args:
            line: without its newline.
        """
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)

    def __call__(self, progress: Progress) -> None:
        """Show where the comparison is.

        Args:
            progress: told by ``compare``.
        """
        if self._bar is not None:
            self._bar.total = progress.total
            self._bar.n = progress.done
            self._bar.refresh()
        if progress.record is None:
            if progress.done:
                self.say(f"{progress.done} runs found, {progress.total - progress.done} to go")
            return
        cell = progress.record.cell
        what = "tuning" if cell.split == "val" else f"seed {cell.seed}"
        value = "" if cell.value is None else f" {cell.value:g}"
        line = f"{progress.done}/{progress.total} {cell.method}{value}, {what}: "
        line += f"{progress.record.status}, {sum(progress.record.seconds):.1f} s"
        if self._bar is None:
            self.say(line)
        else:
            self._bar.set_description(line)
