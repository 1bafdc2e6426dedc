"""Runs and comparisons, on a handful of digits: reproducible, resumable, honest about failures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import SGD, Optimizer

from flatcl import cells, records, versions
from flatcl.cells import run_cell
from flatcl.data import load_images
from flatcl.errors import OptionError
from flatcl.experiments import Comparison, Progress, compare
from flatcl.protocol import METHODS, CompareOptions
from flatcl.records import TUNING_SEED, Cell
from flatcl.streams import StreamOptions, make_stream

TINY = CompareOptions(
    methods=("naive", "ldc"),
    tasks=2,
    seeds=2,
    epochs=1,
    train_size=48,
    hidden=(12,),
    interval=1,
    jobs=1,
)
VALUES = {"ewc": 10.0, "ewc-online": 10.0, "si": 10.0, "mas": 0.1, "lwf": 1.0}


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


def _trained(options: CompareOptions, out: Path) -> tuple[Comparison, list[Cell]]:
    cells_run: list[Cell] = []

    def note(progress: Progress) -> None:
        if progress.record is not None:
            cells_run.append(progress.record.cell)

    return compare(options, out=out, progress=note), cells_run


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_bit_for_bit_the_same_twice_and_leaves_the_global_state(method: str) -> None:
    cell = Cell(method, VALUES.get(method), 3, "test")
    torch.manual_seed(11)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = run_cell(TINY, cell)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(12)
    again = run_cell(TINY, cell)
    assert first.status == "done", first.error
    assert first.accuracy == again.accuracy
    assert first.bytes_held == again.bytes_held


@pytest.mark.parametrize("scenario", ["rotated", "split-task", "split-domain", "split-class"])
def test_every_scenario_runs(scenario: str) -> None:
    options = replace(TINY, scenario=scenario)
    for method in ("naive", "ldc"):
        record = run_cell(options, Cell(method, None, 0, "test"))
        assert record.status == "done", record.error
        assert len(record.accuracy) == len(record.seconds) == 2


def test_with_strength_zero_and_no_centre_ldc_is_naive() -> None:
    options = replace(TINY, strength=0.0, centre=False)
    naive, ldc = (run_cell(options, Cell(name, None, 0, "test")) for name in ("naive", "ldc"))
    assert ldc.accuracy == naive.accuracy


def test_a_runaway_is_recorded_as_diverged() -> None:
    record = run_cell(replace(TINY, lr=1e6, epochs=3), Cell("naive", None, 0, "test"))
    assert record.status == "diverged"
    assert record.bytes_held is None
    assert "lower" in str(record.error)


def test_what_a_run_raises_is_kept_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> list[float]:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(cells, "judge", broken)
    record = run_cell(TINY, Cell("naive", None, 0, "test"))
    assert record.status == "failed"
    assert "RuntimeError: out of luck" in str(record.error)


def test_files_hold_the_outcome(tmp_path: Path) -> None:
    comparison, ran = _trained(TINY, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(comparison.summary))
    assert set(summary) == {"config", "versions", "commit", "methods"}
    assert set(summary["methods"]) == {"naive", "ldc"}
    entry = summary["methods"]["naive"]
    for name in ("acc_mean", "acc_ci95", "bwt_mean", "forgetting_mean", "learning_mean"):
        assert isinstance(entry[name], float)
    assert entry["seconds_mean"] > 0
    assert (entry["bytes_held"], entry["n_seeds"]) == (0, 2)
    assert summary["methods"]["ldc"]["bytes_held"] > 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2 * 2  # methods, seeds, trained, evaluated
    last = [r["accuracy"] for r in rows if r["method"] == "naive" and r["trained"] == 1]
    assert sum(last) / len(last) == pytest.approx(entry["acc_mean"])
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert len(ran) == 4


def test_the_same_call_again_trains_nothing_and_more_seeds_only_the_new(tmp_path: Path) -> None:
    first, _ = _trained(TINY, tmp_path)
    before = _files(tmp_path)
    again, ran = _trained(TINY, tmp_path)
    assert ran == []
    assert _files(tmp_path) == before
    assert again.summary == first.summary
    _, ran = _trained(replace(TINY, seeds=3), tmp_path)
    assert [(cell.method, cell.seed) for cell in ran] == [("naive", 2), ("ldc", 2)]


@pytest.mark.parametrize("damage", ["", "{", "[]", "nan", '{"status": "done"}'])
def test_a_damaged_record_is_made_again(tmp_path: Path, damage: str) -> None:
    options = replace(TINY, methods=("naive",), seeds=1)
    first, _ = _trained(options, tmp_path)
    (path,) = (tmp_path / "runs").iterdir()
    path.write_text(damage)
    again, ran = _trained(options, tmp_path)
    assert len(ran) == 1
    assert again.rows == first.rows


def test_options_of_ldc_leave_the_rivals_records_alone(tmp_path: Path) -> None:
    _trained(TINY, tmp_path)
    _, ran = _trained(replace(TINY, strength=3.0, memory=7), tmp_path)
    assert {cell.method for cell in ran} == {"ldc"}
    _, ran = _trained(replace(TINY, lr=0.02), tmp_path)
    assert {cell.method for cell in ran} == {"naive", "ldc"}


def test_other_code_makes_the_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(TINY, methods=("naive",), seeds=1)
    _trained(options, tmp_path)
    monkeypatch.setattr(records, "code_of", lambda *_: "another")
    assert len(_trained(options, tmp_path)[1]) == 1


def test_kept_methods_runs_by_other_code_count_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = _trained(replace(TINY, seeds=1), tmp_path)
    monkeypatch.setattr(records, "code_of", lambda *_: "other")
    ran: list[Cell] = []

    def note(progress: Progress) -> None:
        if progress.record is not None:
            ran.append(progress.record.cell)

    after = compare(replace(TINY, seeds=1), out=tmp_path, keep=("naive",), progress=note)
    assert [cell.method for cell in ran] == ["ldc"]
    assert after.rows == before.rows
    longer = compare(replace(TINY, seeds=1, epochs=2), out=tmp_path, keep=("naive",))
    assert longer.rows != before.rows  # other options are another run, whatever is kept


def test_a_rival_is_tuned_on_validation_images_of_a_repeat_of_its_own(tmp_path: Path) -> None:
    options = replace(TINY, methods=("ewc",), seeds=1)
    comparison, ran = _trained(options, tmp_path)
    tuning, reported = [c for c in ran if c.split == "val"], [c for c in ran if c.split == "test"]
    assert {cell.seed for cell in tuning} == {TUNING_SEED}
    entry = comparison.summary["methods"]["ewc"]
    assert [(cell.seed, cell.value) for cell in reported] == [(0, entry["value"])]
    assert [step["value"] for step in entry["grid"]] == sorted(cell.value or 0 for cell in tuning)
    best = max(step["acc_val"] for step in entry["grid"])
    assert best == next(s["acc_val"] for s in entry["grid"] if s["value"] == entry["value"])
    assert f"ewc (ewc_lambda {entry['value']:g})" in comparison.table()


def test_a_diverged_run_is_named_and_left_out_of_the_means() -> None:
    comparison = compare(replace(TINY, methods=("naive",), lr=1e6, epochs=3))
    assert [record.status for record in comparison.broken] == ["diverged"] * 2
    entry = comparison.summary["methods"]["naive"]
    assert (entry["acc_mean"], entry["n_seeds"], entry["n_diverged"]) == (None, 0, 2)
    assert "naive [2 of 2 broken]" in comparison.table()


def test_the_figure_averages_the_runs_that_the_table_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(TINY, out=tmp_path)
    cell = Cell("naive", None, 1, "test")
    whole = records.load(tmp_path, TINY, cell)
    assert whole is not None
    half = replace(whole, status="diverged", accuracy=whole.accuracy[:1], error="lower it")
    records.save(tmp_path, TINY, half)
    drawn: list[dict[str, Any]] = []

    def plot(rows: list[dict[str, Any]], title: str) -> Figure:
        drawn.extend(rows)
        return Figure()

    monkeypatch.setattr("flatcl.plots.plot_comparison", plot)
    comparison = compare(TINY, out=tmp_path)
    assert [record.cell for record in comparison.broken] == [cell]
    assert {(row["method"], row["seed"]) for row in drawn} == {("naive", 0), ("ldc", 0), ("ldc", 1)}
    last = [row["accuracy"] for row in drawn if (row["method"], row["trained"]) == ("naive", 1)]
    mean = comparison.summary["methods"]["naive"]["acc_mean"]
    assert sum(last) / len(last) == pytest.approx(mean)
    assert len(comparison.rows) == len(drawn) + 2  # the raw rows of the first task stay


def test_workers_give_what_one_process_gives(tmp_path: Path) -> None:
    alone, _ = _trained(replace(TINY, seeds=1), tmp_path / "one")
    together, _ = _trained(replace(TINY, seeds=1, jobs=2), tmp_path / "two")
    assert together.rows == alone.rows
    assert set(_files(tmp_path / "one")) == set(_files(tmp_path / "two"))


def test_ones_own_model_benchmark_and_optimiser(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    made: list[Optimizer] = []

    def optimizer(weights: Iterable[nn.Parameter]) -> Optimizer:
        made.append(SGD(weights, lr=0.1))
        return made[-1]

    options = StreamOptions(tasks=2, train_size=48)
    benchmark = make_stream(load_images("digits"), options, seed=0).benchmark
    call: dict[str, Any] = {"model": model, "benchmark": benchmark, "optimizer": optimizer}
    comparison = compare(TINY, **call, out=tmp_path)
    assert len(made) == 4
    assert len({id(one) for one in made}) == 4
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert comparison.summary["methods"]["ldc"]["n_seeds"] == 2
    compare(TINY, **call, out=tmp_path)
    assert len(made) == 8  # nothing says that it is the same model: made again
    assert not (tmp_path / "runs").exists()


def test_functions_of_the_seed_are_called_with_it() -> None:
    seen: list[tuple[str, int]] = []
    images = load_images("digits")

    def model(seed: int) -> nn.Module:
        seen.append(("model", seed))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def benchmark(seed: int) -> object:
        seen.append(("benchmark", seed))
        return make_stream(images, StreamOptions(tasks=2, train_size=48), seed=seed).benchmark

    compare(replace(TINY, methods=("naive",), seed=5), model=model, benchmark=benchmark)
    assert sorted(seen) == [("benchmark", 5), ("benchmark", 6), ("model", 5), ("model", 6)]


def test_a_benchmark_without_a_model_or_a_validation_stream_is_refused() -> None:
    stream = make_stream(load_images("digits"), StreamOptions(tasks=2, train_size=48), seed=0)
    with pytest.raises(OptionError, match="give model= that fits it"):
        compare(TINY, benchmark=stream.benchmark)

    class Bare:
        train_stream = stream.benchmark.train_stream
        test_stream = stream.benchmark.test_stream

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(OptionError, match=r"no val_stream: .*fix ewc_lambda"):
        compare(replace(TINY, methods=("ewc",)), model=model, benchmark=Bare())


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(OptionError, match=r"device 'gpu9' cannot be used .* try cpu"):
        compare(replace(TINY, device="gpu9"))


def test_the_offset_changes_the_runs_of_split_class() -> None:
    options = replace(TINY, scenario="split-class", epochs=3)
    cell = Cell("naive", None, 0, "test")
    plain, shifted = run_cell(options, cell), run_cell(replace(options, offset=5.0), cell)
    assert plain.status == shifted.status == "done"
    assert plain.accuracy[0] == shifted.accuracy[0]  # there are no old classes yet
    assert plain.accuracy[1] != shifted.accuracy[1]


def test_the_rehearsal_is_added_to_every_method_but_ldc() -> None:
    options = replace(TINY, epochs=3)
    rehearsed = replace(options, rehearsal=True)
    cell = Cell("naive", None, 0, "test")
    plain, changed = run_cell(options, cell), run_cell(rehearsed, cell)
    assert plain.status == changed.status == "done"
    assert plain.accuracy[0] == changed.accuracy[0]
    assert plain.accuracy[-1] != changed.accuracy[-1]
    assert plain.bytes_held == 0
    assert changed.bytes_held is not None
    assert changed.bytes_held > 0
    ldc = Cell("ldc", None, 0, "test")
    assert records.identity(options, ldc) == records.identity(rehearsed, ldc)
    assert records.identity(options, cell) != records.identity(rehearsed, cell)


def test_commit_is_the_checkouts_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = versions.commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "__init__.py").write_text("")  # in somebody's checkout, but not of it
    monkeypatch.setattr(versions, "_PACKAGE", tmp_path)
    versions.commit.cache_clear()
    try:
        assert versions.commit() is None
    finally:
        monkeypatch.undo()
        versions.commit.cache_clear()


def test_identity_is_json_and_has_every_option_that_matters() -> None:
    cell = Cell("ldc", None, 0, "test")
    content = records.identity(TINY, cell)
    json.dumps(content, allow_nan=False)
    left_out = {"methods", "seeds", "seed", "jobs", "ewc_lambda", "memory", "max_angle", "offset"}
    left_out |= {"rehearsal", "first_tasks", "class_order"}  # of other methods, or at rest
    assert set(content["config"]) == set(asdict(TINY)) - left_out  # type: ignore[call-overload]


def test_the_first_tasks_alone_are_the_whole_streams_first() -> None:
    whole = run_cell(replace(TINY, tasks=3), Cell("ldc", None, 0, "test"))
    first = run_cell(replace(TINY, tasks=3, first_tasks=2), Cell("ldc", None, 0, "test"))
    assert len(first.accuracy) == len(first.seconds) == 2
    assert first.accuracy == [row[:2] for row in whole.accuracy[:2] if row]
    joint = run_cell(replace(TINY, tasks=3, first_tasks=2), Cell("joint", None, 0, "test"))
    assert [row is None for row in joint.accuracy] == [True, False]


def test_a_record_has_losses_the_time_of_task_ends_and_bytes_after_the_first(
    tmp_path: Path,
) -> None:
    cell = Cell("ewc", 10.0, 0, "test")
    record = run_cell(TINY, cell)
    assert record.loss is not None
    assert record.task_end is not None
    assert [len(row or ()) for row in record.loss] == [2, 2]
    assert all(
        0 < end < all_of for end, all_of in zip(record.task_end, record.seconds, strict=True)
    )
    assert record.bytes_held == 2 * (record.bytes_first or 0)  # separate: grows with the tasks
    records.save(tmp_path, TINY, record)
    assert records.load(tmp_path, TINY, cell) == record
