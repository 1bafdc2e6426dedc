"""Results on the disk that are damaged: made anew or refused in one line, never read as numbers."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import numbers
from spoiling import at, paths, spoilt, wrong
from torch import nn

from flatcl.analysis import analyze
from flatcl.analysis_kept import load_arrays
from flatcl.analysis_options import AnalyzeOptions
from flatcl.analysis_record import analyze_record
from flatcl.cli.main import main
from flatcl.errors import DataError, FlatclError, OptionError
from flatcl.experiments import compare
from flatcl.fluctuations import Recorder, open_record
from flatcl.generalize import generalize, missing
from flatcl.generalize_kept import keep, kept
from flatcl.generalize_options import GeneralizeOptions
from flatcl.generalize_runs import measure
from flatcl.generalize_settings import runs_of
from flatcl.protocol import CompareOptions
from flatcl.records import Cell, load, path_of

COMPARED = CompareOptions(
    methods=("naive",), tasks=2, seeds=1, epochs=1, train_size=48, hidden=(4,), jobs=1
)
CELL = Cell("naive", None, 0, "test")
STUDIED = GeneralizeOptions(
    hidden=(8, 8), train_size=100, test_size=40, max_epochs=20, seeds=1, jobs=1, lrs=(0.1, 0.2),
    batch_sizes=(), decays=(), dropouts=(), scales=(), train_sizes=(), noises=(),
)  # fmt: skip
ANALYSED = AnalyzeOptions(
    hidden=(12, 12), train_size=200, max_epochs=2, steps=100, subset=50, directions=10, spacing=4,
    panel=False, jobs=1,
)  # fmt: skip
JUNK = (
    b"", b"\xff\xfe", b"null", b"nan", b"0", b'"x"', b"[]", b"{}", b"{", b"[" * 100_000,
    b'{"status": []}', b'{"status": "done"}', b"\x00" * 300, b'{"a": 1e999}',
)  # fmt: skip
"""Contents that are no record."""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    compare(COMPARED, out=folder)
    return folder


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studied")
    generalize(STUDIED, folder)
    return folder


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysed")
    analyze(ANALYSED, folder)
    return folder


def cut_or_junk(whole: bytes, draw: random.Random) -> list[bytes]:
    return [*(whole[: draw.randrange(len(whole))] for _ in range(20)), *JUNK]


def test_a_run_s_file_that_is_no_record_is_missing(compared: Path, record_property: Any) -> None:
    path = path_of(compared, COMPARED, CELL)
    whole = path.read_bytes()
    for content in cut_or_junk(whole, random.Random(0)):
        path.write_bytes(content)
        assert load(compared, COMPARED, CELL) is None
        assert load(compared, COMPARED, CELL, any_code=True) is None
        record_property("inputs", 1)
    path.write_bytes(whole)
    assert load(compared, COMPARED, CELL) is not None


def test_no_spoilt_entry_of_a_run_is_read_as_a_number(compared: Path, record_property: Any) -> None:
    path = path_of(compared, COMPARED, CELL)
    whole, good = path.read_text(encoding="utf-8"), load(compared, COMPARED, CELL)
    content, refused = json.loads(whole), 0
    assert good is not None
    for way in paths(content):
        for kind, value in wrong(at(content, way)).items():
            if kind == "a tensor" or value == at(content, way):
                continue
            path.write_text(json.dumps(spoilt(content, way, value)), encoding="utf-8")
            found = load(compared, COMPARED, CELL)
            refused += found is None
            if found is not None:  # an entry that may be missing, or that says nothing of the run
                assert (found.accuracy, found.seconds) == (good.accuracy, good.seconds)
                assert found.bytes_held in (good.bytes_held, None)
                assert way[0] in {
                    "commit",
                    "machine",
                    "error",
                    "loss",
                    "task_end",
                    "bytes_first",
                    "bytes_held",
                }
    path.write_text(whole, encoding="utf-8")
    assert refused > 200
    record_property("inputs", refused)


def test_damaged_runs_are_made_anew_and_the_summary_is_the_same(compared: Path) -> None:
    before, path = numbers(compared), path_of(compared, COMPARED, CELL)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["accuracy"][1][0] = 7.5
    path.write_text(json.dumps(content), encoding="utf-8")
    for name in ("results.jsonl", "summary.json", "compare.png"):
        (compared / name).write_bytes(b"\xff")
    compare(COMPARED, out=compared)
    assert numbers(compared) == before


def test_a_network_s_file_that_is_no_record_is_missing(studied: Path) -> None:
    path = next((studied / "runs").iterdir())
    whole = path.read_bytes()
    for content in cut_or_junk(whole, random.Random(1)):
        path.write_bytes(content)
        assert len(missing(STUDIED, studied)) == 1
    path.write_bytes(whole)
    assert not missing(STUDIED, studied)


def test_a_spoilt_entry_of_a_network_is_made_anew_or_told_as_missing(
    studied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = runs_of(STUDIED)[0].setting
    good = kept(studied, setting)
    assert good is not None
    monkeypatch.setattr("flatcl.generalize.measure", lambda _: good)
    refused = 0
    for way in paths(good):
        if way[0] == "profile" and way[-1] not in {"rank", "size", 0}:
            continue  # one of each kind will do
        for kind, value in wrong(at(good, way)).items():
            if kind == "a tensor":
                continue
            path = studied / "runs" / f"{setting.name}.json"
            path.write_text(json.dumps(spoilt(good, way, value)), encoding="utf-8")
            found = kept(studied, setting)
            refused += found is None
            if found is None or kind not in {"nothing", "gone"}:
                continue
            told = generalize(STUDIED, studied)  # nothing that is missing stops the telling
            assert str(told)
    keep(studied, setting, good)
    assert refused > 200


def test_a_data_file_that_changed_under_its_name_is_studied_anew(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    path, found = tmp_path / "images.npz", []
    for _ in range(2):
        x = draw.integers(0, 255, (90, 4, 4), dtype=np.uint8)
        np.savez(
            path, x_train=x, y_train=np.arange(90) % 2, x_test=x[:40], y_test=np.arange(40) % 2
        )
        options = GeneralizeOptions(**{**vars(STUDIED), "data": str(path), "train_size": 80})
        found.append(generalize(options, tmp_path / "out").rows)
    assert found[0][0]["gap"] != found[1][0]["gap"]
    analysed = AnalyzeOptions(**{**vars(ANALYSED), "data": str(path), "train_size": None,
                                 "batch_size": 10})  # fmt: skip
    analyze(analysed, tmp_path / "analysis")
    np.savez(path, x_train=x + 1, y_train=np.arange(90) % 2, x_test=x, y_test=np.arange(90) % 2)
    with pytest.raises(OptionError, match="another content of data"):
        analyze(analysed, tmp_path / "analysis")


def test_a_named_data_set_whose_file_changed_is_studied_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATCL_DATA", str(tmp_path))
    draw, found = np.random.default_rng(0), []
    options = GeneralizeOptions(**{**vars(STUDIED), "data": "mnist", "train_size": 80})
    analysed = AnalyzeOptions(**{**vars(ANALYSED), "data": "mnist", "train_size": None,
                                 "batch_size": 10})  # fmt: skip
    labels = np.arange(90) % 2
    for again in (False, True):
        x = draw.integers(0, 255, (90, 4, 4), dtype=np.uint8)
        np.savez(
            tmp_path / "mnist.npz", x_train=x, y_train=labels, x_test=x[:40], y_test=labels[:40]
        )
        assert len(missing(options, tmp_path / "out")) == 2
        found.append(generalize(options, tmp_path / "out").rows)
        assert not missing(options, tmp_path / "out")
        if again:
            with pytest.raises(OptionError, match="another content of data"):
                analyze(analysed, tmp_path / "analysis")
        else:
            analyze(analysed, tmp_path / "analysis")
    assert found[0][0]["gap"] != found[1][0]["gap"]
    # Earlier code said nothing of a named set's content: its records still count.
    for path in (tmp_path / "out" / "runs").iterdir():
        record = json.loads(path.read_text(encoding="utf-8"))
        del record["content"]
        path.write_text(json.dumps(record), encoding="utf-8")
    assert not missing(options, tmp_path / "out")


def test_a_data_file_that_changed_within_a_process_is_compared_anew(tmp_path: Path) -> None:
    draw, path, found = np.random.default_rng(0), tmp_path / "images.npz", []
    for _ in range(2):
        x = draw.integers(0, 255, (200, 4, 4), dtype=np.uint8)
        np.savez(path, x_train=x, y_train=np.arange(200) % 2, x_test=x, y_test=np.arange(200) % 2)
        options = CompareOptions(**{**vars(COMPARED), "data": str(path)})
        found.append(compare(options, out=tmp_path / "out").rows)
    assert found[0] != found[1]


def altered(whole: bytes, draw: random.Random) -> list[bytes]:
    cut = [whole[: draw.randrange(len(whole))] for _ in range(3)]
    other = bytearray(whole)
    for _ in range(20):
        other[draw.randrange(len(whole))] ^= 255
    return [*cut, bytes(other), b"", b"\xff" * 50]


@pytest.mark.parametrize(
    "name", ["train.pt", "shuffle/network.pt", "shuffle/record.json", "shuffle/weights.bin",
             "arrays/pca.npz", "arrays/noise.npz", "arrays/run.npz", "points.json"]
)  # fmt: skip
def test_a_damaged_part_of_an_analysis_is_made_anew(
    analysed: Path, tmp_path: Path, name: str
) -> None:
    expected, whole = numbers(analysed), (analysed / name).read_bytes()
    bad = altered(whole, random.Random(name))
    if name.endswith(".bin"):
        bad = [content for content in bad if len(content) < len(whole)]  # of rows alone
    for number, content in enumerate(bad):
        folder = tmp_path / f"{number}"
        shutil.copytree(analysed, folder)
        (folder / name).write_bytes(content)
        analyze(ANALYSED, folder)
        assert numbers(folder) == expected


@pytest.mark.parametrize("content", JUNK)
def test_a_damaged_file_of_options_is_refused(
    analysed: Path, tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(analysed, folder)
    (folder / "options.json").write_bytes(content)
    with pytest.raises(OptionError, match=r"damaged|holds an analysis with another") as caught:
        analyze(ANALYSED, folder)
    assert "\n" not in str(caught.value)


class Trap:
    """What pickle makes a folder of, should anybody unpickle it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["train.pt", "shuffle/network.pt", "arrays/pca.npz"])
def test_nothing_kept_is_unpickled(analysed: Path, tmp_path: Path, name: str) -> None:
    folder, sprung = tmp_path / "out", tmp_path / "sprung"
    shutil.copytree(analysed, folder)
    trap = Trap(str(sprung))
    if name.endswith(".pt"):
        torch.save({"weights": trap, "mean": trap}, folder / name)
    else:
        stream = io.BytesIO()
        np.savez(stream, width=np.array([trap], dtype=object), allow_pickle=True)
        (folder / name).write_bytes(stream.getvalue())
    analyze(ANALYSED, folder)
    assert not sprung.exists()
    assert numbers(folder) == numbers(analysed)
    pickle.loads(pickle.dumps(trap))
    assert sprung.exists()


def test_an_array_that_a_part_lacks_is_named(analysed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(analysed, folder)
    path = folder / "arrays" / "pca.npz"
    arrays = {k: v.numpy() for k, v in load_arrays(path).items() if k != "width"}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"pca.npz lacks width: remove it, it is made again"):
        analyze(ANALYSED, folder)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "walk"
    model, draw = nn.Linear(12, 6, bias=False), torch.Generator().manual_seed(0)
    with Recorder(model, path, every=2) as recorder:
        for _ in range(200):
            with torch.no_grad():
                model.weight.add_(torch.randn(6, 12, generator=draw), alpha=1e-3)
            recorder.step()
    return path


def test_a_damaged_header_of_a_record_is_refused(recorded: Path, record_property: Any) -> None:
    path = recorded / "record.json"
    whole = path.read_bytes()
    for content in cut_or_junk(whole, random.Random(2)):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_record(recorded)
        assert "\n" not in str(caught.value)
        record_property("inputs", 1)
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("every", 0, id="a stride of 0"),
        pytest.param("every", -1, id="a negative stride"),
        pytest.param("shapes", [[-6, -12]], id="negative sides"),
        pytest.param(None, b"[" * 100_000, id="lists without end"),
    ],
)
def test_a_header_out_of_range_is_refused(
    recorded: Path, tmp_path: Path, field: str | None, value: Any
) -> None:
    folder = tmp_path / "walk"
    shutil.copytree(recorded, folder)
    header = folder / "record.json"
    if field is None:
        header.write_bytes(value)
    else:
        header.write_text(json.dumps(json.loads(header.read_text()) | {field: value}))
    with pytest.raises(DataError):
        open_record(folder)


def test_a_record_cut_anywhere_is_its_first_snapshots(recorded: Path, tmp_path: Path) -> None:
    whole, draw = (recorded / "weights.bin").read_bytes(), random.Random(3)
    expected = open_record(recorded).weights()
    for number in range(10):
        folder = tmp_path / f"{number}"
        shutil.copytree(recorded, folder)
        size = draw.randrange(len(whole))
        (folder / "weights.bin").write_bytes(whole[:size])
        record = open_record(folder)
        assert record.count == size // (72 * 4)
        if record.count:
            assert torch.equal(record.weights(), expected[: record.count])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_record_with_a_number_that_is_none_is_refused(
    recorded: Path, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "walk"
    shutil.copytree(recorded, folder)
    rows = np.memmap(folder / "weights.bin", "float32", "r+", shape=(100, 72))
    rows[50, 3] = value
    rows.flush()
    assert main(["analyze", "--record", str(folder), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("flatcl: error: ")
    assert shown.count("\n") == 1


def test_facts_that_are_no_numbers_are_told_as_missing(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "walk"
    shutil.copytree(recorded, folder)
    header = folder / "record.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"facts": {"lr": float("nan")}}))
    numbers_, _ = analyze_record(folder, tmp_path / "out")
    assert numbers_["facts"] == {"lr": None}


@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
def test_a_spoilt_header_is_refused_or_says_the_same(recorded: Path, data: st.DataObject) -> None:
    path = recorded / "record.json"
    whole = path.read_text(encoding="utf-8")
    content = json.loads(whole)
    way = data.draw(st.sampled_from(list(paths(content))))
    kinds = wrong(at(content, way))
    kind = data.draw(st.sampled_from(sorted(set(kinds) - {"a tensor", "negative"})))
    try:
        path.write_text(json.dumps(spoilt(content, way, kinds[kind])), encoding="utf-8")
        found = open_record(recorded)
        assert found.width * found.count <= 7200
    except FlatclError:
        pass
    finally:
        path.write_text(whole, encoding="utf-8")


def test_measure_tells_what_a_record_must_have() -> None:
    """The names that are asked for when a record is read are those that are written."""
    from flatcl.generalize_runs import NUMBERS, PROFILE

    made = measure(runs_of(STUDIED)[0].setting)
    assert set(made["numbers"]) == set(NUMBERS)
    assert set(made["profile"]) == set(PROFILE)
