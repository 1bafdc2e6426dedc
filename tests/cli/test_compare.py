"""``flatcl compare`` on a handful of digits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from flatcl.cli.arguments import read_config
from flatcl.cli.main import main
from flatcl.errors import OptionError
from flatcl.protocol import CompareOptions

TINY = [
    "--methods=naive,ldc",
    "--tasks=2",
    "--seeds=2",
    "--epochs=1",
    "--train-size=48",
    "--hidden=12",
    "--interval=1",
    "--jobs=1",
]


def test_a_table_on_stdout_and_progress_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *TINY, "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "digits, 2 permuted tasks" in captured.out
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in table] == ["method", "------", "naive", "ldc"]
    assert "ACC %" in table[0]
    assert captured.err.count("done") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare.png",
        "results.jsonl",
        "runs",
        "summary.json",
    ]

    assert main(["compare", *TINY, "--out", str(tmp_path)]) == 0
    again = capsys.readouterr()
    assert again.out == captured.out
    assert "4 runs found, 0 to go" in again.err


def test_json_is_the_summary_and_quiet_is_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *TINY, "--out", str(tmp_path), "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == json.loads((tmp_path / "summary.json").read_text())


def test_a_diverged_run_is_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", *TINY, "--out", str(tmp_path), "--quiet", "--ewc-lambda", "1e30"]
    arguments += ["--epochs", "3", "--methods", "naive,ewc", "--seeds", "1"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "[1 of 1 broken]" in captured.out
    assert captured.err.startswith("flatcl: ewc, seed 0 diverged: ")
    assert captured.err.count("\n") == 1


def test_options_that_make_every_run_diverge_are_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", *TINY, "--out", str(tmp_path), "--quiet", "--lr", "1e6"]
    assert main([*arguments, "--epochs", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flatcl: error: no run ended well, so the options cannot be used: ")
    assert "diverged" in error
    assert error.count("\n") == 1


def test_flags_go_before_the_file_and_the_file_before_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'methods = ["naive"]\nhidden = "7,7"\ntrain-size = 30\nbatch_size = 9\nbias = false\n'
        "tasks = 4\nseeds = 1\nepochs = 1\njobs = 1\n"
    )
    arguments = ["compare", "--config", str(config), "--tasks", "2", "--out", str(tmp_path / "o")]
    assert main([*arguments, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)["config"]
    expected = {
        "methods": ["naive"],
        "hidden": [7, 7],
        "train_size": 30,
        "batch_size": 9,
        "bias": False,
        "tasks": 2,
        "optimizer": "sgd",
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr = ", "is no TOML"),
        ("learning-rate = 0.1", "unknown key 'learning-rate'; there are batch-size"),
        ("[compare]\nlr = 1", "unknown key 'compare'"),
        ('hidden = "a"', "hidden is 'a': give N,N"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(OptionError, match=message):
        read_config(str(path), CompareOptions)


def test_all_and_lists_in_a_config(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('train-size = "all"\nhidden = [3, 4]\n')
    assert read_config(str(path), CompareOptions) == {"train_size": None, "hidden": (3, 4)}


def _npz(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, object] = {
        "x_train": rng.integers(0, 255, (40, 4, 4), dtype=np.uint8),
        "y_train": np.arange(40) % 2,
        "x_test": rng.integers(0, 255, (20, 4, 4), dtype=np.uint8),
        "y_test": np.arange(20) % 2,
    }
    arrays |= changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(path, **kept)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("changes", "scenario"),
    [
        ({"y_test": None}, "permuted"),
        ({"y_train": np.arange(39) % 2}, "permuted"),
        ({"y_train": np.array([{}] * 40, dtype=object)}, "permuted"),
        ({}, "split-class"),  # two classes, three tasks
    ],
)
def test_bad_data_is_one_line_and_exit_code_two(
    tmp_path: Path,
    changes: dict[str, object],
    scenario: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = _npz(tmp_path / "images.npz", **changes)
    arguments = ["compare", *TINY, "--data", str(path), "--scenario", scenario, "--tasks", "3"]
    arguments += ["--quiet", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--train-size", "all"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("flatcl: error: ")
    assert captured.err.count("\n") == 1


def test_an_unknown_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", *TINY, "--data", "digit", "--quiet", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "digit" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_folders_place_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    assert main(["compare", *TINY, "--out", str(path), "--quiet"]) == 2
    assert "a file: give a folder" in capsys.readouterr().err
    assert path.read_text() == "mine"
