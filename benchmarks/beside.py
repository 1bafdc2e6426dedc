"""Two versions of the code side by side on this machine: do they make the same runs?

``again.carry_over`` holds a run against its record, which another kind of machine may have made
whose kernels round otherwise. Here the earlier code, checked out beside the present, makes the run
too, at the same time on the same machine; the first tasks of a stream are enough to go through all
that a later task does.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.again import OUTCOME
from benchmarks.carried import Repeat
from benchmarks.lab import Lab, methods_of, report_jobs
from benchmarks.protocol_files import Protocol
from benchmarks.tune import Setting
from flatcl.errors import DataError, OptionError
from flatcl.protocol import CompareOptions
from flatcl.records import Cell

_ROOT = Path(__file__).parent.parent
_TASKS = 3  # the first measures, the second is pulled and merged, the third is pulled by the merged
# What both versions run, each from its own folder: a request a line, an answer a line.
_ANSWER = """
import base64, json, pickle, sys
from benchmarks.lab_methods import lab_methods
from flatcl.cells import run_cell
from flatcl.records import identity
lab_methods()
for line in sys.stdin:
    options, cell, run = pickle.loads(base64.b64decode(line))
    answer = {"code": identity(options, cell)["code"]}
    if run:
        record = run_cell(options, cell)
        answer |= {name: getattr(record, name) for name in %r}
    print("answer", json.dumps(answer), flush=True)
"""


@dataclass
class _Version:
    """A process that answers for one version of the code."""

    process: subprocess.Popen[str]

    def ask(self, options: CompareOptions, cell: Cell, *, run: bool) -> None:
        """Send a request; its answer is read later, so that another version works meanwhile."""
        request = base64.b64encode(pickle.dumps((options, cell, run))).decode()
        try:
            print(request, file=self.process.stdin, flush=True)
        except OSError as error:
            raise DataError(f"a version of the code ended early ({error}); see above") from error

    def answer(self) -> dict[str, Any]:
        """Return the answer to the earliest request that was not yet answered."""
        assert self.process.stdout is not None
        for line in self.process.stdout:  # whatever else a run prints is passed over
            if line.startswith("answer "):
                found: dict[str, Any] = json.loads(line.removeprefix("answer "))
                return found
        raise DataError("a version of the code ended before it answered; see above")


def carry_beside(
    lab: Lab, chosen: Sequence[Protocol], methods: Sequence[str], revision: str
) -> tuple[int, int]:
    """Let runs by an earlier revision count where it and the present code make the same ones.

    Each pair is kept at once, so that an interrupted call goes on where it was.

    Args:
        lab: of the finished runs.
        chosen: protocols.
        methods: names; all if empty.
        revision: of the earlier code, as git knows it.

    Returns:
        How many methods of a protocol came out the same, and how many did not.
    """
    jobs = [
        report_jobs(protocol, method, Setting(protocol.options.lr, method.default), 1)[0]
        for protocol in chosen
        for method in methods_of(protocol, methods)
    ]
    same = other = 0
    with _tree(revision) as tree, _version(tree) as earlier, _version(_ROOT) as present:
        for job in jobs:
            earlier.ask(job.options, job.cell, run=False)
        changed = [(job, code) for job in jobs if (code := earlier.answer()["code"]) != job.code]
        wanted = [(job, code) for job, code in changed if code not in lab.codes(job)]
        for i, (job, code) in enumerate(wanted, 1):
            options = replace(job.options, first_tasks=min(_TASKS, job.options.tasks))
            earlier.ask(options, job.cell, run=True)
            present.ask(options, job.cell, run=True)
            before, now = earlier.answer(), present.answer()
            alike = all(before[name] == now[name] for name in OUTCOME)
            said = "the same" if alike else "other runs"
            print(f"{i} of {len(wanted)}: {job.protocol}, {job.method}: {said}", flush=True)
            same, other = same + alike, other + (not alike)
            if alike:
                seed, tasks = job.cell.seed, options.first_tasks
                lab.carry([Repeat(job.protocol, job.method, seed, code, job.code, tasks)])
    return same, other


@contextmanager
def _tree(revision: str) -> Iterator[Path]:
    """Check a revision out beside, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "earlier"
        made = _git("worktree", "add", "--detach", str(tree), revision)
        if made.returncode:
            raise OptionError(f"git cannot check out {revision!r}: {made.stderr.strip()}")
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False
    )


@contextmanager
def _version(root: Path) -> Iterator[_Version]:
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _ANSWER % (OUTCOME,)],
        cwd=root,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield _Version(process)
    finally:
        process.kill()
        process.communicate()
