"""Two versions of the code on one machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from lab_runs import TEXT

import flatcl
from benchmarks import beside, lab
from benchmarks.carried import Carried
from benchmarks.protocol_files import read
from flatcl.errors import OptionError

PACKAGES = [Path(str(module.__file__)).parent for module in (flatcl, beside)]  # as installed


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab_methods_apart: None) -> Path:
    """The project with one commit, and results of its own."""
    root = tmp_path / "project"
    ignored = shutil.ignore_patterns("results", "__pycache__", "*.png", "*.html", "_pages")
    for package in PACKAGES:
        shutil.copytree(package, root / package.name, ignore=ignored)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "before")
    monkeypatch.setattr(beside, "_ROOT", root)
    monkeypatch.setattr(lab, "RESULTS", tmp_path / "results")
    return root


def test_a_revision_that_makes_the_same_runs_is_carried_and_another_is_not(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The present code is that of this process; the copy has the earlier one."""
    tiny = tmp_path / "tiny.toml"
    tiny.write_text(TEXT, encoding="utf-8")
    protocol = read(tiny)
    path = copy / "flatcl" / "clock.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "\n# no change of any number\n", encoding="utf-8")
    git(copy, "commit", "-qam", "a comment")
    models = copy / "flatcl" / "models.py"
    models.write_text(
        models.read_text(encoding="utf-8").replace(
            'derive_seed(seed, "weights")', 'derive_seed(seed, "others")'
        ),
        "utf-8",
    )
    git(copy, "commit", "-qam", "other initial weights")
    path.write_text(text, encoding="utf-8")
    git(copy, "checkout", "-q", "HEAD~2", "--", "flatcl")  # what the present process has
    found = {}
    for revision in ("HEAD~1", "HEAD"):
        found[revision] = beside.carry_beside(lab.Lab(), [protocol], ("naive",), revision)
    assert found == {"HEAD~1": (1, 0), "HEAD": (0, 1)}
    (repeat,) = Carried.read(tmp_path / "results").repeats
    assert (repeat.method, repeat.tasks) == ("naive", 2)
    said = capsys.readouterr().out
    assert "naive: the same" in said
    assert "naive: other runs" in said


def test_what_git_does_not_know_is_refused(copy: Path) -> None:
    with pytest.raises(OptionError, match="git cannot check out 'nowhere'"):
        beside.carry_beside(lab.Lab(), [], (), "nowhere")
