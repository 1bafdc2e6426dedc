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


def recorded(path: Path) -> Path:
    model = nn.Linear(20, 10, bias=False).double()
    generator = torch.Generator().manual_seed(0)
    with Recorder(model, path) as recorder:
        for _ in range(200):
            with torch.no_grad():
                model.weight.add_(torch.randn(10, 20, generator=generator, dtype=torch.float64))
            recorder.step()
    return path


def test_a_record_s_analysis_and_another_never_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walk, second = recorded(tmp_path / "walk"), recorded(tmp_path / "second")
    own, out = ["analyze", "--out", str(tmp_path / "own")], tmp_path / "out"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "analysis.json").write_text("kept")
    (tmp_path / "own" / "options.json").write_text('{"lr": 0.1}')
    assert main([*own, "--record", str(walk)]) == 2
    assert "holds an analysis with another lr, record: " in capsys.readouterr().err
    assert (tmp_path / "own" / "analysis.json").read_text() == "kept"
    for _ in range(2):
        assert main(["analyze", "--record", str(walk), "--out", str(out)]) == 0
    before = (out / "analysis.json").read_bytes()
    for more in (["--record", str(second)], ["--lr", "0.1"]):
        assert main(["analyze", *more, "--out", str(out)]) == 2
        assert "another --out" in capsys.readouterr().err
    assert (out / "analysis.json").read_bytes() == before


def test_options_of_a_training_are_refused_beside_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walk, out = recorded(tmp_path / "walk"), tmp_path / "out"
    (tmp_path / "a.toml").write_text("lr = 0.2")
    for given, named in (
        (["--lr", "0.2", "--no-panel"], "--lr, --no-panel"),
        (["--config", str(tmp_path / "a.toml")], "--config"),
    ):
        assert main(["analyze", *given, "--record", str(walk), "--out", str(out)]) == 2
        assert f"{named} beside --record" in capsys.readouterr().err
        assert not out.exists()


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
