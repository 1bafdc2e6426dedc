"""What the lab's runs take, by sums done by hand."""

from __future__ import annotations

import pytest
from lab_runs import run

from benchmarks.hours import hours, hours_text
from benchmarks.outcomes import Search, Tried


def test_runs_take_what_the_fastest_of_their_kind_took():
    outcomes = [
        run("ldc", 0, 0.9, seconds=30),
        run("ldc", 1, 0.9, seconds=10),
        run("ldc", 1, 0.9, seconds=10, regime="default"),  # the same run, reported twice
        run("ewc", 0, 0.8, seconds=50),
        run("ewc", 1, 0.8, seconds=3, status="diverged"),  # ended early: no measure for others
    ]
    tried = [Tried({"lr": 0.1}, 0.9, 24.0, 3), Tried({"lr": 1.0}, 0.8, 4.0, 1)]
    tried.append(Tried({"lr": 9.0}, 0.0, 1.0, 1))
    found = hours(outcomes, [Search("p", "ldc", tried, {"lr": 0.1})])
    assert found.recorded * 3600 == pytest.approx(30 + 10 + 50 + 3 + 24 + 4 + 1)
    assert found.unhindered * 3600 == pytest.approx(2 * 10 + 50 + 3 + 4 * 4 + 1)


def test_each_part_of_the_lab_is_summed_by_itself():
    outcomes = [
        run("ldc", 0, 0.9, protocol="a", seconds=7200),
        run("ldc", 0, 0.9, protocol="b", seconds=3600),
        run("ldc", 1, 0.9, protocol="b", seconds=10800),
    ]
    text = hours_text(outcomes, [], {"a": "short", "b": "long"})
    assert "2.0 hours for the short ones and 4.0 hours for the long ones" in text
    assert "2.0 and 2.0 if each" in text
    assert "long ones" not in hours_text(outcomes[:1], [], {"a": "short"})
