"""Commands as processes that can be killed, and what may differ between two of their folders."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
LAB = """
import sys
from pathlib import Path
from benchmarks import lab, protocol_files, run
out, words = Path(sys.argv[1]), sys.argv[2:]
lab.RESULTS, protocol_files.FOLDER = out / "lab", out.parent / "protocols"
render, folder = run.render, out / "project" / "benchmarks"
folder.mkdir(parents=True, exist_ok=True)
run.render = lambda found, known, _: render(found, known, folder)
sys.argv = ["run", *words]
sys.exit(run.main())
"""
PROTOCOL = """
title = "Two tasks of digits"
kind = "permuted"
follows = "nothing"
departs = "in everything"
seeds = 6
methods = "core"
[options]
data = "digits"
tasks = 2
epochs = 12
train_size = 300
hidden = [12]
"""
_OF_TIME = ("seconds", "task_end", "minutes", "commit")


@dataclass(frozen=True)
class Command:
    """A command, small enough to be run some dozen times.

    Attributes:
        words: of the command line, without the folder.
        jobs: processes at the same time.
    """

    words: str
    jobs: int = 1

    def line(self, out: Path) -> list[str]:
        """Return what is started."""
        words = [*self.words.split(), "--jobs", str(self.jobs)]
        if words[0] == "lab":
            protocols = out.parent / "protocols"
            protocols.mkdir(exist_ok=True)
            (protocols / "tiny.toml").write_text(PROTOCOL)
            return [sys.executable, "-c", LAB, str(out), *words[1:]]
        return [sys.executable, "-m", "flatcl.cli.main", *words, "--out", str(out)]


COMMANDS = {
    "compare": Command(
        "compare --methods naive,ldc,ewc-online --tasks 3 --seeds 3 --epochs 12 --train-size 300 "
        "--hidden 12"
    ),
    "compare, two workers": Command(
        "compare --methods naive,ldc --tasks 3 --seeds 8 --epochs 20 --train-size 300 --hidden 12",
        jobs=2,
    ),
    "analyze": Command(
        "analyze --hidden 12,12 --train-size 300 --max-epochs 150 --steps 6000 --subset 100 "
        "--directions 10 --spacing 4"
    ),
    "generalize": Command(
        "generalize --hidden 8,8 --train-size 150 --test-size 60 --loss 0.5 --max-epochs 150 "
        "--seeds 4 --lrs 0.1,0.2 --batch-sizes= --decays= --dropouts=0,0.1 --scales= "
        "--train-sizes= --noises=0,0.1"
    ),
    "lab": Command("lab tiny --methods ldc,naive --regimes default"),
}
"""What is killed."""


class Process:
    """A command in a session of its own, with its output in files beside its folder."""

    def __init__(self, command: Command, out: Path, *more: str, limit: int | None = None) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self._log = out.parent / f"{out.name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

        def prepared() -> None:
            # What starts the tests in the background may have them ignore interrupts, and theirs.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        with self._log.open("wb") as log:
            # A pipe knows no limit of a file's size.
            told = subprocess.PIPE if limit is not None else log
            self.process = subprocess.Popen(
                [*command.line(out), *more],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                start_new_session=True,
                preexec_fn=prepared,
            )

    def until(self, true: Callable[[], bool], seconds: float) -> None:
        """Wait for something, the end of the process, or the end of patience."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None and not true():
            time.sleep(0.005)

    def works(self) -> bool:
        """Whether it has said what it does: all is imported."""
        return self._log.stat().st_size > 0

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to the process and to all that it started; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        try:
            return self.process.wait(120)
        finally:
            self.end()

    def end(self) -> None:
        """See that nothing is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> tuple[int, str]:
        """Return the exit code and what it said."""
        try:
            said = self.process.communicate(timeout=300)
        finally:
            self.end()
        text = self._log.read_text() if said[0] is None else (said[0] + said[1]).decode()
        return self.process.returncode, text

    def said(self) -> str:
        """Return what it has said so far."""
        return self._log.read_text()


def files(out: Path) -> list[str]:
    """Return the files of a folder but those that a killed write leaves, which nobody reads."""
    found = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return [str(path.relative_to(out)) for path in found if not path.name.startswith(".")]


def leftovers(out: Path) -> list[str]:
    """Return the files that killed writes left."""
    return [path.name for path in out.rglob(".*") if path.is_file()]


def numbers(out: Path) -> dict[str, Any]:
    """Return the content of all files, times aside, so that equal means the same bits."""
    return {name: _content(out / name) for name in files(out)}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name].tobytes() for name in archive.files}
    if path.suffix == ".pt":
        return _bits(torch.load(path, weights_only=True))
    if path.suffix in {".md", ".html"}:
        return None  # they tell times
    return path.read_bytes()


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        kept = {k: v for k, v in content.items() if not k.startswith(_OF_TIME)}
        return {k: _timeless(v) for k, v in kept.items()}
    return [_timeless(v) for v in content] if isinstance(content, list) else content


def _bits(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        return content.numpy().tobytes()
    if isinstance(content, dict):
        return {k: _bits(v) for k, v in content.items()}
    return [_bits(v) for v in content] if isinstance(content, (list, tuple)) else content


def kill_somewhere(process: Process, draw: random.Random, span: float) -> int | None:
    """Kill a process and all of its own at a random moment; None, or the code it ended with first.

    One in ten while it imports, the others at any time of its work or right at a write.
    """
    way = draw.random()
    if way < 0.1:
        process.until(lambda: False, draw.uniform(0.0, 5.0))
    else:
        process.until(process.works, 120.0)
        if way < 0.6:
            process.until(lambda: False, draw.uniform(0.0, span))
        else:
            for _ in range(draw.randrange(1, 4)):
                process.until(_changing(process.out), 2 * span)
    code = process.process.poll()
    process.signal(signal.SIGKILL)
    return code


def _changing(out: Path) -> Callable[[], bool]:
    before = _sizes(out)
    return lambda: _sizes(out) != before


def _sizes(out: Path) -> dict[Path, int]:
    found = {}
    for path in out.rglob("*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            found[path] = path.stat().st_size
    return found
