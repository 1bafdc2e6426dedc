"""The command: exit codes, one clear line for each mistake, and a --help that loads little."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from flatcl import __version__
from flatcl.cli.main import main


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flatcl.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_names_the_command() -> None:
    done = _run("--help")
    assert done.returncode == 0
    assert "compare" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from flatcl.cli.main import main; main(['compare', '--help']); "
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'avalanche', 'joblib', 'tqdm'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_compare_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    flags = (
        "data scenario tasks methods seeds seed epochs batch-size lr optimizer hidden momentum "
        "weight-decay model no-bias init max-angle pad strength pseudo-inputs interval source "
        "damping width no-centre rehearsal offset memory ewc-lambda train-size val-size device "
        "threads jobs config json quiet out"
    )
    described = text.split("options:")[1]
    for flag in flags.split():
        assert f"  --{flag} " in described.replace("\n", " "), flag


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flatcl {__version__}\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["comp"], {"compare"}),
        (["compare", "--str"], {"--strength"}),
        (["compare", "--scenario", "split-"], {"split-task", "split-domain", "split-class"}),
        (["analyze", "--samp"], {"--sampling"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(
    words: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out + (
        f"COMP_WORDS=(flatcl {' '.join(words)}); COMP_CWORD={len(words)}\n"
        '_shtab_flatcl; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == expected


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m flatcl.cli.main --print-completion bash | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["compere"], "invalid choice: 'compere'"),
        (["compare", "--speed", "3"], "unrecognized arguments: --speed"),
        (["compare", "--tasks", "five"], "--tasks: 'five': give N"),
        (["compare", "--tasks", "0"], "tasks is 0: give a whole number"),
        (["compare", "--hidden", "10,x"], "--hidden: '10,x': give N,N"),
        (["compare", "--strength", "-1"], "strength is -1.0: give a finite number, 0 or more"),
        (["compare", "--lr", "nan"], "lr is nan: give a finite number"),
        (["compare", "--methods", "gem"], "no method 'gem'; choose from"),
        (["compare", "--scenario", "spilt"], "invalid choice: 'spilt'"),
        (["compare", "--config", "absent.toml"], "config 'absent.toml' cannot be read"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flatcl: error: ")
    assert message in captured.err


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flatcl.experiments.compare", interrupted)
    assert main(["compare", "--quiet"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="/proc refuses new folders")
def test_a_folder_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = "compare --quiet --out /proc/flatcl --tasks 1 --seeds 1 --methods naive --epochs 1"
    assert main([*arguments.split(), "--train-size", "20", "--jobs", "1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
