"""What takes hours is measured on its own; here its committed results are held to the promises."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import compatibility, scale
from benchmarks.scale_report import FIRST, LAST, slope, time_ratio

pytestmark = pytest.mark.slow  # of results that take hours to make again


def rows(name: str) -> Any:
    return json.loads((scale.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", compatibility.ROWS)
def test_a_row_of_releases_passed_the_suite(name: str) -> None:
    found = json.loads(compatibility.RESULTS.read_text(encoding="utf-8"))[name]
    assert found["python"].startswith(compatibility.ROWS[name].python)
    assert found["failed"] == 0
    assert found["passed"] > 1000


def test_the_rows_span_what_is_supported() -> None:
    found = json.loads(compatibility.RESULTS.read_text(encoding="utf-8"))
    pythons = {one["python"].rsplit(".", 1)[0] for one in found.values()}
    assert pythons == {"3.10", "3.11", "3.12", "3.13"}
    numpys = {one["versions"]["numpy"].split(".")[0] for one in found.values()}
    assert numpys == {"1", "2"}


def test_a_thousand_experiences_cost_no_memory() -> None:
    ldc, naive = rows("stream-ldc"), rows("stream-naive")
    assert len(ldc) == len(naive) == 1000
    assert len({row["held"] for row in ldc[100:]}) == 1
    assert ldc[-1]["resident"] - ldc[99]["resident"] < 10  # MB
    assert (ldc[-1]["saved"] - ldc[99]["saved"]) / 900 < 100  # bytes an experience: its history


def test_a_thousand_experiences_hardly_cost_more_time() -> None:
    ldc, naive = rows("stream-ldc"), rows("stream-naive")
    assert time_ratio(ldc, naive, LAST) < 1.2 * time_ratio(ldc, naive, FIRST)


def test_a_hundred_million_weights_stay_below_twenty_gigabytes() -> None:
    for row in rows("large-ldc"):
        assert row["weights"] >= 100_000_000
        assert row["peak"] < 20 * 1024
        assert row["finite"] == 1.0


def test_an_hour_of_training_does_not_grow() -> None:
    found = rows("soak")
    assert found[-1]["minutes"] >= 59.5
    assert abs(slope(found, scale.SOAK_FIRST)) < 20  # MB an hour
    assert found[-1]["held"] == found[len(found) // 10]["held"]
