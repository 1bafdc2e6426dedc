"""Whatever is typed, or put into a configuration file, is taken or refused by one clear line.

Nothing is trained here: the call that would do so is replaced, all before it is real.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import files_of, lines_of

import flatcl.analysis
import flatcl.analysis_record
import flatcl.experiments
import flatcl.generalize
from flatcl.analysis_options import AnalyzeOptions
from flatcl.cli import analyze as analyze_command
from flatcl.cli.main import main
from flatcl.generalize_options import GeneralizeOptions
from flatcl.options import Options
from flatcl.protocol import CompareOptions

COMMANDS: dict[str, type[Options]] = {
    "compare": CompareOptions,
    "analyze": AnalyzeOptions,
    "generalize": GeneralizeOptions,
}
"""Subcommands and their options."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the commands print, and no work behind any command."""
    folder = tmp_path_factory.mktemp("out")
    for name in ("summary.json", "generalize.json"):
        (folder / name).write_text("{}\n")

    def compared(options: CompareOptions, **_: object) -> object:
        return SimpleNamespace(
            options=options, broken=[], summary={"methods": {}}, table=lambda: "| ψ |"
        )

    def analysed(options: AnalyzeOptions, *_: object) -> object:
        return SimpleNamespace(relation="| ψ |", summary={})

    def generalised(options: GeneralizeOptions, *_: object) -> object:
        return SimpleNamespace(rows=[])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatcl.experiments, "compare", compared)
        patch.setattr(flatcl.analysis, "analyze", analysed)
        patch.setattr(flatcl.analysis_record, "analyze_record", lambda *_: ({}, "| ψ |"))
        patch.setattr(analyze_command, "draw", lambda *_: None)
        patch.setattr(flatcl.generalize, "generalize", generalised)
        yield folder


def refused_or_taken(arguments: list[str]) -> int:
    """Run the command; its exit code, once what it printed has been checked."""
    said, told = (io.TextIOWrapper(io.BytesIO(), "utf-8", "strict") for _ in range(2))
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    lines = told.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]
    assert code in (0, 2), (code, lines)
    assert not any("Traceback" in line for line in lines)
    if code == 2:
        assert len([line for line in lines if line.startswith("flatcl: error:")]) == 1, lines
        assert lines[-1].startswith("flatcl: error:")
        assert len(lines) == 1, lines
        assert lines[0].isprintable(), lines
        assert len(lines[0]) < 1000
        assert not said.buffer.getvalue()  # type: ignore[attr-defined]
    return code


@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_line_is_taken_or_refused_by_one_line(
    command: str, out: Path, data: st.DataObject
) -> None:
    words = data.draw(lines_of(COMMANDS[command]))
    refused_or_taken([command, *words, "--out", str(out)])


@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_options_is_taken_or_refused_by_one_line(
    command: str, out: Path, data: st.DataObject
) -> None:
    path = out / "options.toml"
    path.write_bytes(data.draw(files_of(COMMANDS[command])))
    refused_or_taken([command, "--config", str(path), "--out", str(out)])
