"""What flatcl promises, the tests that hold it, and what they have seen.

``python -m benchmarks.promises`` runs the tests of each promise, the slow ones too, file by file,
and keeps what pytest reports in ``benchmarks/results/promises.json``; naming files runs these
alone. The page, ``docs/promises.md``, has in addition what ``benchmarks.compatibility`` and
``benchmarks.scale`` measured; ``--render`` only renders. All of it takes about an hour, most of it
the kills.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import compatibility, scale
from benchmarks.scale_report import FIRST, LAST, slope, time_ratio
from flatcl.io import write_bytes, write_json
from flatcl.versions import commit

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "promises.json"
_COUNTED = ("kills", "interrupts", "full disks", "inputs")


@dataclass(frozen=True)
class Promise:
    """One promise.

    Attributes:
        text: what is promised.
        tests: files under ``tests/`` that hold it.
        seen: further figures, from other measurements; nothing if None.
    """

    text: str
    tests: tuple[str, ...]
    seen: Callable[[], str] | None = None


def _rows_of_compatibility() -> str:
    if not compatibility.RESULTS.exists():
        return "not measured"
    found = json.loads(compatibility.RESULTS.read_text(encoding="utf-8"))
    good = sum(not one["failed"] for one in found.values())
    return f"{good} of {len(compatibility.ROWS)} rows without a failure"


def _scale(name: str) -> list[dict[str, float]] | None:
    path = scale.RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _thousand() -> str:
    rows = _scale("stream-ldc")
    if rows is None:
        return "not measured"
    grown = rows[-1]["resident"] - rows[99]["resident"]
    held = {row["held"] for row in rows[99:]}
    naive = _scale("stream-naive") or rows
    first, last = (time_ratio(rows, naive, part) for part in (FIRST, LAST))
    return (
        f"{len(rows)} experiences: {grown:+.1f} MB from the 100th to the last, "
        f"{'as many' if len(held) == 1 else 'other'} bytes held after each, {first:.2f} times "
        f"Naive's time in the first 200 and {last:.2f} in the last"
    )


def _large() -> str:
    rows = _scale("large-ldc")
    if rows is None:
        return "not measured"
    last = rows[-1]
    return f"{last['weights'] / 1e6:.0f} million weights: {last['peak'] / 1024:.1f} GB at most"


def _soaked() -> str:
    rows = _scale("soak")
    if rows is None:
        return "not measured"
    hours, tasks = rows[-1]["minutes"] / 60, rows[-1]["tasks"]
    grown = slope(rows, scale.SOAK_FIRST)
    return f"{hours:.1f} h soaked, {tasks:,} tasks: {grown:+.1f} MB an hour"


PROMISES = (
    Promise(
        "Killed at any moment, interrupted or out of disk, a command loses nothing that was "
        "finished, leaves no half file, and goes on to the same bits.",
        ("hostile/test_kills.py",),
    ),
    Promise(
        "A wrong option or configuration is one line that names value, cause and remedy; exit code "
        "2, no traceback.",
        ("hostile/test_command_lines.py", "hostile/test_constructors.py", "cli/test_main.py"),
    ),
    Promise(
        "A damaged, truncated or foreign file of data, results or records is refused or made anew, "
        "never read as a number; no pickle is opened.",
        ("hostile/test_damaged_data.py", "hostile/test_damaged_results.py"),
    ),
    Promise(
        "A saved constraint loads without executing code, and what does not fit is not taken up.",
        ("hostile/test_damaged_states.py", "unit/core/test_resume.py"),
    ),
    Promise(
        "Weights stay finite where plain training's do: odd tasks, sizes, precisions, strengths, "
        "learning rates; but the largest rates that plain SGD stands may be too large for a "
        "class-incremental stream. Divergence is named.",
        ("hostile/test_numerics.py", "unit/core/test_precision.py"),
    ),
    Promise(
        "Tensors that cannot be meant are refused by the duality's functions.",
        ("hostile/test_odd_tensors.py",),
    ),
    Promise(
        "Memory and time of a task hardly grow with the number of tasks: in memory three numbers a "
        "task, in time less than a fifth over a thousand tasks, beside Naive's.",
        ("docs/test_measured.py", "unit/core/test_engine.py"),
        lambda: f"{_thousand()}; {_soaked()}",
    ),
    Promise(
        "A network of 10⁸ weights is held in less than 20 GB.",
        ("docs/test_measured.py", "unit/core/test_basis_option.py"),
        _large,
    ),
    Promise(
        "`LDC(...)` in place of `EWC(...)` runs in Avalanche, in its own example scripts too.",
        ("adapter/test_avalanche.py", "adapter/test_avalanche_examples.py"),
    ),
    Promise(
        "Lightning and Hugging Face's Trainer take LDC as a callback, in several processes too.",
        (
            "integration/test_lightning.py",
            "integration/test_transformers.py",
            "integration/test_trainer_processes.py",
        ),
    ),
    Promise(
        "The supported releases, oldest to newest, pass the suite from the installed wheel.",
        ("docs/test_measured.py",),
        _rows_of_compatibility,
    ),
    Promise(
        "Training that is saved goes on bit for bit, in a loop and in Avalanche.",
        ("unit/core/test_resume.py", "adapter/test_checkpointing.py"),
    ),
    Promise(
        "Every snippet of README and docs runs, every example ends with a table or a picture, "
        "every link leads somewhere.",
        ("docs/test_snippets.py", "docs/test_examples.py", "docs/test_pages.py"),
    ),
)


def measure(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run test files and return what pytest reports.

    Args:
        files: under ``tests/``.

    Returns:
        Of each: tests passed, skipped and failed, seconds, and what the tests counted.
    """
    found = {}
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow",
                       f"tests/{file}", f"--junitxml={report}"]  # fmt: skip
            subprocess.run(command, cwd=ROOT, check=False)
            found[file] = _read(report) | {"commit": commit()}
    return found


def _read(report: Path) -> dict[str, Any]:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    numbers = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    counted = dict.fromkeys(_COUNTED, 0)
    for one in suite.iter("property"):
        if one.attrib["name"] in counted:
            counted[one.attrib["name"]] += int(one.attrib["value"])
    failed = numbers["failures"] + numbers["errors"]
    return {
        "passed": numbers["tests"] - failed - numbers["skipped"],
        "skipped": numbers["skipped"],
        "failed": failed,
        "seconds": float(suite.attrib["time"]),
        **{name: number for name, number in counted.items() if number},
    }


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page.

    Args:
        found: what ``measure`` returned, of all files.

    Returns:
        Markdown.
    """
    rows = []
    for one in PROMISES:
        known = [found[file] for file in one.tests if file in found]
        words = []
        for word in ("passed", "skipped", "failed", *_COUNTED):
            number = sum(row.get(word, 0) for row in known)
            if number or word == "passed":
                words.append(f"{number:,} {word}")
        missing = [file for file in one.tests if file not in found]
        words += [f"`{file}` not run" for file in missing]
        seen = "; ".join([", ".join(words), *([one.seen()] if one.seen else [])])
        tests = "<br>".join(f"`tests/{file}`" for file in one.tests)
        rows.append(f"| {one.text} | {tests} | {seen} |")
    return "\n".join(
        [
            "# Promises",
            "",
            "What flatcl promises, the tests that hold it, and what these saw when they were run "
            "last. `python -m benchmarks.promises` runs them, the slow ones too, and makes this "
            "page; the releases are those of [COMPATIBILITY.md](../benchmarks/COMPATIBILITY.md), "
            "sizes and hours those of [SCALE.md](../benchmarks/SCALE.md). *Inputs* are those that "
            "property-based and damaging tests tried, *kills* processes that were killed while "
            "they worked. Skipped are tests whose host, data set or scripts were not at hand.",
            "",
            "| promise | held by | seen |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Run what is named, or all; then render."""
    known = list(dict.fromkeys(file for one in PROMISES for file in one.tests))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help=", ".join(known))
    parser.add_argument("--render", action="store_true", help="only render")
    chosen = parser.parse_args()
    strange = [file for file in chosen.files if file not in known]
    if strange:
        parser.error(f"no promise rests on {strange[0]!r}")
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for file in () if chosen.render else chosen.files or known:
        found |= measure([file])
        write_json(RESULTS, found)
    write_bytes(ROOT / "docs" / "promises.md", render(found).encode())


if __name__ == "__main__":
    main()
