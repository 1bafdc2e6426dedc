"""A benchmark's runs: made once, and in place of those that other code made."""

import json
from dataclasses import replace

import pytest
from torch import nn

from benchmarks.kept import Runs, completed, entries, fill
from flatcl.cells import Own
from flatcl.protocol import CompareOptions
from flatcl.records import Cell

OPTIONS = CompareOptions(data="digits", tasks=2, epochs=1, train_size=48, hidden=(12,))


@pytest.fixture
def folder(tmp_path):
    """Return a folder of two runs of Naive, both as if by other code."""
    for seed in range(2):
        fill(tmp_path, OPTIONS, Cell("naive", None, seed, "test"))
    for path in (tmp_path / "runs").iterdir():
        content = json.loads(path.read_text())
        path.rename(path.with_name(f"by-other-code-{path.name}")).write_text(
            json.dumps(content | {"code": "other"})
        )
    return tmp_path


def code_of(folder, seed, options=OPTIONS):
    record = Runs(folder).get(options, Cell("naive", None, seed, "test"))
    return record and record["code"]


def test_a_run_takes_the_place_of_the_same_by_other_code_and_of_no_other(folder):
    fill(folder, OPTIONS, Cell("naive", None, 0, "test"))
    assert len(list((folder / "runs").iterdir())) == 2
    assert code_of(folder, 0) not in {None, "other"}
    assert code_of(folder, 1) == "other"
    assert code_of(folder, 0, replace(OPTIONS, lr=0.5)) is None


def test_runs_by_other_code_count_where_they_are_said_to(folder):
    before = sorted((folder / "runs").iterdir())
    fill(folder, OPTIONS, Cell("naive", None, 0, "test"), any_code=True)
    assert sorted((folder / "runs").iterdir()) == before


def test_a_network_of_the_callers_is_made_for_each_missing_run(tmp_path):
    asked = []

    def network(seed):
        asked.append(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    for seed in (3, 4, 3):
        fill(tmp_path, OPTIONS, Cell("naive", None, seed, "test"), own=Own(model=network))
    assert asked == [3, 4]
    assert code_of(tmp_path, 3) is not None


def test_missing_entries_are_made_once_each_written_before_the_next(tmp_path):
    path, keys = tmp_path / "file.json", [{"seed": seed} for seed in range(3)]

    def measure(key, last):
        if key["seed"] > last:
            raise KeyboardInterrupt
        return {"square": key["seed"] ** 2}

    def made(last, setup=1):
        found = completed(path, setup, "runs", keys, lambda key: measure(key, last))
        return [row["seed"] for row in found]

    with pytest.raises(KeyboardInterrupt):
        made(1)
    assert [row["square"] for row in entries(path, 1, "runs")] == [0, 1]
    assert made(2) == [2]
    assert made(-1) == []
    with pytest.raises(SystemExit, match="another set-up, 1"):
        made(2, setup=2)
