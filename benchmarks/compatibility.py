"""Compatibility: built, installed and tested in a fresh environment, release by release.

``python -m benchmarks.compatibility`` builds sdist and wheel, and for every row installs the wheel
with that row's releases into a fresh virtual environment, asks ``pip check``, and runs the tests of
the sdist against the installed wheel, far from any checkout. What it finds is kept row by row in
``benchmarks/results/compatibility.json`` and rendered as ``benchmarks/COMPATIBILITY.md``.
Interpreters are those on the PATH, ``python3.10`` and so on; a row without one is left as it was,
aloud. A row takes about ten minutes; naming rows makes these alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from packaging.requirements import Requirement

from flatcl.io import write_bytes, write_json
from flatcl.tables import markdown_table
from flatcl.versions import commit

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "compatibility.json"
PACKAGES = ("torch", "numpy", "avalanche-lib", "scipy", "scikit-learn", "matplotlib")


@dataclass(frozen=True)
class Row:
    """One set of releases.

    Attributes:
        python: the interpreter's version.
        about: why this row.
        pins: further requirements for pip.
        lowest: whether every dependency is at the oldest release that flatcl allows.
        tested: whether ``constraints.txt`` counts.
    """

    python: str
    about: str
    pins: tuple[str, ...] = ()
    lowest: bool = False
    tested: bool = False


ROWS = {
    "oldest": Row("3.10", "every dependency at its lower bound", lowest=True),
    "3.10": Row("3.10", "the newest that this Python takes"),
    "numpy-1": Row("3.11", "the last NumPy 1", pins=("numpy==1.26.*", "torch==2.6.*")),
    "3.11": Row("3.11", "the releases of `constraints.txt`", tested=True),
    "3.12": Row("3.12", "the newest"),
    "3.13": Row("3.13", "the newest"),
}


def lowest(root: Path) -> list[str]:
    """Return flatcl's dependencies, each at its lower bound.

    Args:
        root: of the project.

    Returns:
        Requirements for pip, those of the tests too; what has no lower bound is left to pip.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        one = Requirement(text)
        bounds = [s.version for s in one.specifier if s.operator == ">="]
        if bounds and one.name not in {"mypy", "ruff"}:  # no test needs them
            marker = f"; {one.marker}" if one.marker else ""
            found.append(f"{one.name}=={bounds[0]}{marker}")
    return found


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it.

    Args:
        folder: where to.

    Returns:
        The wheel, and the unpacked sdist without the package, so that tests meet the wheel alone.
    """
    _run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    shutil.rmtree(source / "flatcl")
    return wheel, source


def measure(row: Row, interpreter: str, wheel: Path, source: Path, folder: Path) -> dict[str, Any]:
    """Install and test one row.

    Args:
        row: of ``ROWS``.
        interpreter: path of its Python.
        wheel: of flatcl.
        source: the sdist without the package.
        folder: of the virtual environment.

    Returns:
        What the table tells.
    """
    _run([interpreter, "-m", "venv", "--clear", str(folder)])
    python = str(folder / "bin" / "python")
    pins = [*row.pins, *(lowest(source) if row.lowest else ())]
    tested = ["-c", str(source / "constraints.txt")] if row.tested else []
    _run([python, "-m", "pip", "install", "--quiet", *tested, f"{wheel}[test]", *pins])
    _run([python, "-m", "pip", "check"])
    begun = time.perf_counter()
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = _run(tests, cwd=source, check=False)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done)}
    return {
        "python": _run([python, "-c", "import platform; print(platform.python_version())"]).strip(),
        "versions": {name: _version(python, name) for name in PACKAGES},
        **{word: counts.get(word, 0) for word in ("passed", "skipped")},
        "failed": counts.get("failed", 0) + counts.get("error", 0) + (not counts),
        "failures": re.findall(r"^(?:FAILED|ERROR) (\S+)", done, re.MULTILINE),
        "seconds": time.perf_counter() - begun,
        "commit": commit(),
    }


def _version(python: str, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return _run([python, "-c", code]).strip()


def _run(command: Sequence[str], *, cwd: Path | None = None, check: bool = True) -> str:
    variables = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "FLATCL_DATA"}}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page.

    Args:
        found: rows measured, by name.

    Returns:
        Markdown.
    """
    rows = []
    for name, row in ROWS.items():
        one = found.get(name)
        if one is None:
            rows.append([row.python, row.about, *["–"] * (len(PACKAGES) + 3)])
            continue
        rows.append(
            [one["python"], row.about, *(one["versions"][p].split("+")[0] for p in PACKAGES)]
            + [f"{one[word]:,}" for word in ("passed", "skipped", "failed")]
        )
    header = ["Python", "releases", *PACKAGES, "passed", "skipped", "failed"]
    failures = [f"- {name}: `{test}`" for name in found for test in found[name]["failures"]]
    return "\n".join(
        [
            "# Compatibility",
            "",
            "`python -m benchmarks.compatibility` builds sdist and wheel, installs the wheel into "
            "a fresh environment for each row (`pip check` clean), and runs the default suite of "
            "the sdist against it, warnings as errors. Skipped are tests of hosts that are not "
            "installed (Lightning, Transformers, curvature libraries, a browser).",
            "",
            markdown_table(header, rows),
            *(["", "Failed:", "", *failures] if failures else []),
            "",
        ]
    )


def main() -> None:
    """Measure the rows named, or all; then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--render", action="store_true", help="only render")
    chosen = parser.parse_args()
    strange = [name for name in chosen.rows if name not in ROWS]
    if strange:
        parser.error(f"there is no row {strange[0]!r}")
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not chosen.render:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            wheel, source = build(folder)
            for name in chosen.rows or ROWS:
                interpreter = shutil.which(f"python{ROWS[name].python}")
                if interpreter is None:
                    print(f"{name}: no python{ROWS[name].python} on the PATH", file=sys.stderr)
                    continue
                print(f"{name}: {ROWS[name].about}", file=sys.stderr)
                found[name] = measure(ROWS[name], interpreter, wheel, source, folder / "venv")
                write_json(RESULTS, found)
                print(f"{found[name]}", file=sys.stderr)
    write_bytes(HERE / "COMPATIBILITY.md", render(found).encode())


if __name__ == "__main__":
    main()
