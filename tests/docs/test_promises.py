"""No promise without a test, and the page is the one that the results make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.promises import PROMISES, RESULTS, render

pytestmark = pytest.mark.slow  # of results that take hours to make again

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", sorted({file for one in PROMISES for file in one.tests}))
def test_a_promise_rests_on_tests_that_were_run_and_passed(file: str) -> None:
    assert "def test_" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))[file]
    assert found["failed"] == 0
    assert found["passed"] > 0


def test_the_page_is_made_of_the_results() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "promises.md").read_text(encoding="utf-8") == render(found)


def test_at_least_thirty_kills_are_on_record() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert sum(one.get("kills", 0) for one in found.values()) >= 30
