"""Commands that are killed, interrupted, or out of disk, and go on to the same bits.

All of it, half an hour on one busy core::

    python -m pytest -m slow tests/hostile/test_kills.py
"""

from __future__ import annotations

import random
import signal
import time
from functools import cache
from pathlib import Path

import pytest
from killing import COMMANDS, Command, Process, files, kill_somewhere, leftovers, numbers

from flatcl.cli.main import main

KILLS = {"compare": 9, "compare, two workers": 5, "analyze": 9, "generalize": 8, "lab": 8}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """Of each command: the numbers of a run left alone, and the seconds of its work."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def made(name: str):
        process = Process(COMMANDS[name], folder / name)
        process.until(process.works, 120.0)
        begun = time.monotonic()
        code, said = process.finish()
        assert code == 0, said
        assert not leftovers(folder / name)
        return numbers(folder / name), time.monotonic() - begun

    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_again_and_again_it_ends_with_the_same_bits(
    tmp_path: Path, name: str, undisturbed, record_property
) -> None:
    expected, span = undisturbed(name)
    draw, kills, folders = random.Random(name), 0, 0
    while kills < KILLS[name]:
        out, code = tmp_path / f"{folders}", None
        while kills < KILLS[name] and code is None:
            code = kill_somewhere(Process(COMMANDS[name], out), draw, span)
            kills += code is None
        if code is None:
            code, said = Process(COMMANDS[name], out).finish()
            assert "Traceback" not in said
        assert code == 0
        found = numbers(out)
        assert list(found) == list(expected)
        for file, content in expected.items():
            assert found[file] == content, file
        folders += 1
    record_property("kills", kills)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted_it_says_so_in_one_line_and_goes_on(
    tmp_path: Path, name: str, undisturbed, record_property
) -> None:
    expected, span = undisturbed(name)
    draw, out, interrupts = random.Random(name), tmp_path / "out", 0
    for _ in range(2):
        process = Process(COMMANDS[name], out)
        process.until(process.works, 120.0)
        process.until(lambda: False, draw.uniform(0.0, 0.7 * span))
        code, said = process.signal(signal.SIGINT), process.said()
        if code != 0 and "numbers and figures in" not in said:  # else it had ended already
            interrupts += 1
            assert code == 130, said
            assert "interrupted; the same command goes on from here" in said.splitlines()[-1]
            assert "Traceback" not in said
            assert not leftovers(out)
    assert interrupts
    record_property("interrupts", interrupts)
    code, said = Process(COMMANDS[name], out).finish()
    assert code == 0, said
    assert numbers(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, name: str, undisturbed, record_property
) -> None:
    expected, _ = undisturbed(name)
    out = tmp_path / "out"
    quiet = [] if name == "lab" else ["--quiet"]
    for limit in (100, 1000, 5000, 30_000):  # bytes a file; Python itself needs a few
        code, said = Process(COMMANDS[name], out, *quiet, limit=limit).finish()
        if code == 0:
            assert limit > 1000
            continue
        assert code == 1, said
        record_property("full disks", 1)
        last = said.splitlines()[-1]
        assert last.startswith("flatcl: error: ")
        assert "File too large" in last
        assert said.count("File too large") == 1, said
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1 or name == "lab", said
        assert not leftovers(out)
    code, said = Process(COMMANDS[name], out).finish()
    assert code == 0, said
    assert numbers(out) == expected


def test_a_killed_study_goes_on_to_the_same_numbers(tmp_path: Path, record_property) -> None:
    """The one kill of the default suite; what follows it runs in this process, to spare time."""
    out = tmp_path / "killed"
    command = Command(
        "generalize --hidden 8,8 --train-size 150 --test-size 60 --max-epochs 40 --seeds 4 "
        "--lrs 0.1,0.2 --batch-sizes= --decays= --dropouts= --scales= --train-sizes= --noises="
    )
    process = Process(command, out)
    process.until(lambda: len(list(out.glob("runs/*.json"))) >= 2, 60.0)
    process.signal(signal.SIGKILL)
    record_property("kills", 1)
    made = {p.name: p.read_bytes() for p in out.glob("runs/*.json")}
    assert 2 <= len(made) < 8
    for folder in (out, tmp_path / "undisturbed"):
        line = [*command.words.split(), "--quiet", "--jobs", "1", "--out", str(folder)]
        assert main(line) == 0
    found, expected = numbers(out), numbers(tmp_path / "undisturbed")
    assert files(out) == list(expected)
    assert found == expected
    assert {name: (out / "runs" / name).read_bytes() for name in made} == made
