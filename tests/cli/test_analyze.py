"""``flatcl analyze`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flatcl.cli.main import main
from flatcl.fluctuations import Recorder

SMALL = [
    "--hidden", "12,12", "--train-size", "300", "--max-epochs", "5", "--steps", "200",
    "--subset", "100", "--directions", "10", "--spacing", "4", "--jobs", "1",
]  # fmt: skip


def test_it_prints_the_panel_and_writes_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", *SMALL, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "null: noise at frozen weights" in shown.out
    assert "ψ" in shown.out
    assert "measuring: hessian" in shown.err
    for name in ("analysis.json", "points.json", "analysis.png", "options.json"):
        assert (tmp_path / name).stat().st_size > 0
    assert (tmp_path / "analysis.png").read_bytes().startswith(b"\x89PNG")

    assert main(["analyze", *SMALL, "--out", str(tmp_path), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out) == json.loads((tmp_path / "analysis.json").read_text())


def test_a_record_of_ones_own_is_analysed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(20, 10, bias=False).double()
    with Recorder(model, tmp_path / "walk", facts={"lr": 0.1}) as recorder:
        for _ in range(300):
            with torch.no_grad():
                noise = torch.randn(10, 20, generator=generator, dtype=torch.float64)
                model.weight.add_(noise, alpha=1e-3)
            recorder.step()
    out = tmp_path / "out"
    code = main(["analyze", "--record", str(tmp_path / "walk"), "--out", str(out), "--json"])
    assert code == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers == json.loads((out / "analysis.json").read_text())
    assert numbers["n_snapshots"] == 300
    assert numbers["psi"] is None
    assert numbers["variance_fraction_pc1"] == pytest.approx(0.61, abs=0.12)  # a walk's share
    assert numbers["walk_like_of_20"] > 2
    assert numbers["facts"] == {"lr": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "0"], "lr is 0"),
        (["--steps", "10"], "steps is 10"),
        (["--sampling", "never"], "invalid choice"),
        (["--record", "nowhere"], "nowhere"),
        (["--data", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("flatcl: error:")
    assert message in error


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--sampling", "--record", "--steps", "--batch-size", "--no-panel", "--seed"):
        assert flag in shown
