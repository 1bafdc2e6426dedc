"""``flatcl generalize`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flatcl.cli.main import main
from flatcl.duality_plots import plot_profile
from flatcl.errors import DataError, OptionError
from flatcl.generalize import generalize
from flatcl.generalize_options import GeneralizeOptions
from flatcl.generalize_runs import measure
from flatcl.generalize_settings import Setting, runs_of
from flatcl.generalize_training import fit_network, load_sets
from flatcl.versions import commit, versions

SMALL = [
    "--hidden", "8,8", "--train-size", "120", "--test-size", "60", "--loss", "0.05", "--jobs", "1",
    "--seeds", "2", "--lrs", "0.1,0.2", "--batch-sizes", "", "--decays", "0,0.01",
    "--regularised-epochs", "5", "--dropouts", "0,0.1", "--scales", "1,2", "--train-sizes", "",
    "--noises", "0,0.1",
]  # fmt: skip


def test_it_prints_all_tables_writes_all_files_and_trains_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["generalize", *SMALL, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "gap moves through" in shown.out
    assert "against the value before" in shown.out
    assert "Dropout 0 is not compared" in shown.out
    assert "Spearman with the gap" in shown.out
    assert "networks trained and measured" in shown.err
    assert (tmp_path / "generalize.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "generalize.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 5 * 2 * 2  # five knobs, two values, two seeds
    for name in ("knob", "value", "seed", "gap", "matched_gap", "sharpness", "size", "correlation"):
        assert all(name in row for row in rows)
    assert all(row["identity_error"] < 1e-10 for row in rows)
    assert len(list((tmp_path / "runs").iterdir())) == 6 * 2  # the same network in every knob

    # One network's file is cut short, as by a kill: it alone is made again, to the same bytes.
    path = next((tmp_path / "runs").iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    made: list[Setting] = []

    def counted(setting: Setting) -> dict[str, Any]:
        made.append(setting)
        return measure(setting)

    monkeypatch.setattr("flatcl.generalize.measure", counted)
    assert main(["generalize", *SMALL, "--out", str(tmp_path), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert len(made) == 1
    again = json.loads(path.read_text())
    assert again | {"seconds": 0} == json.loads(whole) | {"seconds": 0}
    assert shown.err == ""
    assert json.loads(shown.out) == json.loads((tmp_path / "generalize.json").read_text())


def test_a_knob_acts_on_the_factor_that_it_must() -> None:
    """Trained alike but for the initial scale, tenfold weights make larger dual moves."""
    base = GeneralizeOptions(seeds=1, train_size=200, scales=(1.0, 4.0), loss=0.02)
    runs = [r for r in runs_of(base) if r.knob == "initial scale"]
    found = [measure(r.setting)["numbers"] for r in runs]
    assert found[1]["size"] > found[0]["size"]
    assert all(abs(one["matched_gap"] - one["gap"]) < 0.1 * one["gap"] for one in found)


def test_sizes_are_those_of_the_data_where_none_are_given() -> None:
    digits, mnist = GeneralizeOptions(), GeneralizeOptions(data="mnist")
    assert (digits.train_size, digits.train_sizes) == (700, (350, 700, 1400))
    assert (mnist.train_size, mnist.train_sizes) == (4000, (2000, 4000, 8000))
    assert GeneralizeOptions(train_size=1).train_sizes == (1, 2)
    assert GeneralizeOptions(train_sizes=()).train_sizes == ()


def test_images_are_those_that_were_asked_for() -> None:
    options = GeneralizeOptions(seeds=1, train_size=200, noises=(0.1,))
    (run,) = [r for r in runs_of(options) if r.knob == "label noise"]
    sets = load_sets(run.setting)
    assert len(sets.x) == 200
    assert len(sets.noisy) == 20
    whole = load_sets(
        runs_of(GeneralizeOptions(seeds=1, train_size=1437, noises=(), train_sizes=()))[0].setting
    )
    rows = {tuple(row.tolist()): int(label) for row, label in zip(whole.x, whole.y, strict=True)}
    clean = {tuple(row.tolist()) for row in sets.x}
    for row, label in zip(sets.noisy, sets.wrong, strict=True):
        assert rows[tuple(row.tolist())] != int(label)
        assert tuple(row.tolist()) not in clean


def test_training_stops_at_the_loss_or_says_that_it_did_not() -> None:
    options = GeneralizeOptions(
        seeds=1, train_size=100, loss=0.1, decays=(0.01,), regularised_epochs=300
    )
    runs = {run.knob: run.setting for run in runs_of(options)}
    good = fit_network(runs["learning rate"], load_sets(runs["learning rate"]))
    assert good.reached
    assert good.loss < 0.1
    decayed = fit_network(runs["weight decay"], load_sets(runs["weight decay"]))
    assert decayed.epochs >= 300
    short = GeneralizeOptions(seeds=1, train_size=100, loss=1e-9, max_epochs=2)
    setting = runs_of(short)[0].setting
    assert not fit_network(setting, load_sets(setting)).reached


def test_a_class_of_one_image_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each test image asks for a second partner; any run of the study may be the one without."""
    monkeypatch.setattr("flatcl.generalize.measure", lambda setting: pytest.fail(f"{setting}"))
    few: dict[str, Any] = {
        "seeds": 2, "batch_size": 5, "lrs": (), "batch_sizes": (), "decays": (), "dropouts": (),
        "scales": (), "noises": (), "jobs": 1,
    }  # fmt: skip
    options = GeneralizeOptions(train_size=60, train_sizes=(40, 12), **few)
    with pytest.raises(DataError, match=r"class 0 has 1 of 12 training images.* needs 2 of each"):
        generalize(options, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_each_record_says_what_made_it_and_the_study_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GeneralizeOptions(
        hidden=(8, 8), train_size=100, test_size=40, max_epochs=20, seeds=2, jobs=1, lrs=(0.1, 0.2),
        batch_sizes=(), decays=(), dropouts=(), scales=(1,), train_sizes=(), noises=(),
    )  # fmt: skip

    def told() -> Any:
        return json.loads((tmp_path / "generalize.json").read_text())["made_by"]

    generalize(options, tmp_path)
    own: dict[str, Any] = {"commit": commit(), "versions": dict(versions())}
    assert told() == [{"networks": 4, **own}]
    first, second, *_ = sorted((tmp_path / "runs").iterdir())
    record = json.loads(first.read_text())
    record["made_by"]["versions"]["torch"] = "0.4"
    first.write_text(json.dumps(record))
    record = json.loads(second.read_text())
    del record["made_by"]
    second.write_text(json.dumps(record))
    monkeypatch.setattr("flatcl.generalize.measure", lambda setting: pytest.fail("trained"))
    generalize(options, tmp_path)
    other = own | {"versions": own["versions"] | {"torch": "0.4"}}
    unknown = {"commit": None, "versions": None}
    expected = [{"networks": 2, **own}, {"networks": 1, **other}, {"networks": 1, **unknown}]
    assert sorted(told(), key=str) == sorted(expected, key=str)


def test_what_diverges_is_a_row_of_its_own(tmp_path: Path) -> None:
    options = GeneralizeOptions(
        seeds=1, train_size=100, lrs=(1e6,), batch_sizes=(), decays=(), dropouts=(), scales=(),
        train_sizes=(), noises=(), jobs=1,
    )  # fmt: skip
    study = generalize(options, tmp_path)
    assert [row["status"] for row in study.rows] == ["diverged"]
    assert "1 of 1 runs did not reach the loss" in str(study)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "0"], "lr is 0"),
        (["--hidden", "8"], "hidden is (8,)"),
        (["--dropouts", "1"], "dropouts is"),
        (["--batch-sizes", "2.5"], "batch-sizes is"),
        (["--lrs", "fast"], "'fast'"),
        (["--train-sizes", "100000"], "100000 training images"),
        (["--data", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generalize", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("flatcl: error:")
    assert message in error


def test_a_profile_of_something_else_is_refused() -> None:
    with pytest.raises(OptionError, match="quantity is 'beauty'"):
        plot_profile({"a": []}, "beauty")
