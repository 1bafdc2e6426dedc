"""Every example runs as it is and ends with a table or a picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_ends_with_a_table_or_a_picture(path: Path, tmp_path: Path) -> None:
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, env=variables,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    pictures = [word for word in words if word.endswith(".png") and Path(word).stat().st_size > 0]
    assert pictures or sum("%" in line for line in done.stdout.splitlines()) >= 2
