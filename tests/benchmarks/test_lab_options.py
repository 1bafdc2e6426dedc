"""What the lab's command would not heed, it refuses."""

from __future__ import annotations

import sys

import pytest

from benchmarks import run

pytestmark = pytest.mark.usefixtures("lab_methods_apart")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--check --methods ldc", "--check has no use for --methods"),
        ("--check --seeds 1", "--check has no use for --seeds"),
        ("--check feng-tu-two-task --regimes tuned", "--check has no use for --regimes"),
        ("--carry-over --seeds 1", "--carry-over has no use for --seeds"),
        ("--carry-over --hours 2", "--carry-over has no use for --hours"),
        ("--carry-over --regimes tuned", "--carry-over has no use for --regimes"),
        ("--list --hours 2", "--list has no use for --hours"),
        ("--render feng-tu-two-task", "--render has no use for PROTOCOL"),
        ("--render --part short", "--render has no use for --part"),
        ("--list --check", "not allowed with argument --list"),
    ],
)
def test_options_that_would_be_ignored_are_a_usage_error(
    given: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", *given.split()])
    with pytest.raises(SystemExit) as caught:
        run.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ("--check feng-tu-two-task", "check"),
        ("--check --part short", "check"),
        ("--carry-over --methods ldc --jobs 1 permuted-mnist-5", "carry_over"),
        ("--render", "render"),
    ],
)
def test_options_that_are_heeded_are_taken(
    given: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    results = {"check": True, "carry_over": (0, 0), "render": None}

    def note(*_: object) -> object:
        calls.append(called)
        return results[called]

    monkeypatch.setattr(run, called, note)
    monkeypatch.setattr(sys, "argv", ["run", *given.split()])
    run.main()
    assert calls == [called]
