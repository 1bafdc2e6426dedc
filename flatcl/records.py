"""Records of single runs: what determines one, where it is kept, what is read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from flatcl.io import write_json
from flatcl.protocol import OF_LDC, CompareOptions
from flatcl.record_content import Cell, Record, record_of
from flatcl.rivals import RIVALS
from flatcl.seeds import derive_seed
from flatcl.stamps import NAMES, content_of
from flatcl.versions import code_of, commit, versions

__all__ = [
    "TUNING_SEED",
    "Cell",
    "Record",
    "identity",
    "load",
    "path_of",
    "save",
]

TUNING_SEED = derive_seed("tuning")
"""The repeat that hyper-parameters are chosen on; beyond every seed that can be reported."""

_SCHEMA = 1
_OF_LDC = (*OF_LDC, "centre")
# Fields that say which runs there are, or in whose cell they are already.
_NOT_OF_A_RUN = ("methods", "seeds", "seed", "jobs", "ewc_lambda")
_LDC_CODE = ("avalanche.py", "ldc_plugin.py", "experience.py", "core/*.py")
_PUBLISHED_CODE = (
    "published/*.py", "published_plugin.py", "fluctuations/finite.py", "fluctuations/flatness.py",
    "fluctuations/loss.py", "fluctuations/pca.py", "fluctuations/surface.py",
    "fluctuations/watch.py",
)  # fmt: skip
_RUN_CODE = (
    "cells.py", "clock.py", "data.py", "datasets.py", "evaluation.py", "feed.py", "footprint.py",
    "models.py", "offset.py", "rivals.py", "seeds.py", "streams.py", "tasks.py", "views.py",
)  # fmt: skip


def identity(options: CompareOptions, cell: Cell) -> dict[str, object]:
    """Return everything that determines a run: options that matter to it, code, versions.

    A data set that has a name counts by it alone, unlike one of a path: who changes a file of
    ``FLATCL_DATA`` has to compare in another folder.

    Args:
        options: of the comparison.
        cell: the run.

    Returns:
        A JSON-ready dict; two runs with the same one come out the same on the same machine.
    """
    config = {name: value for name, value in asdict(options).items() if name not in _NOT_OF_A_RUN}
    if cell.method != "ldc":
        config = {name: value for name, value in config.items() if name not in _OF_LDC}
    if not _has_buffer(cell.method):
        del config["memory"]
    if options.scenario != "rotated":
        del config["max_angle"]
    if options.first_tasks is None:
        del config["first_tasks"]
    if options.class_order == "natural":
        del config["class_order"]
    if options.scenario != "split-class":
        del config["offset"]  # no class is absent
    rehearsed = options.rehearsal and not cell.method.startswith("ldc")
    if not rehearsed:
        del config["rehearsal"]
    code: tuple[str, ...] = _RUN_CODE
    if cell.method.startswith("ldc") or rehearsed:
        code += _LDC_CODE + (_PUBLISHED_CODE if options.source == "published" else ())
    return {
        "schema": _SCHEMA,
        "cell": asdict(cell),
        "config": json.loads(json.dumps(config)),  # tuples as a reader sees them
        "data": options.data if options.data in NAMES else content_of(options.data) or options.data,
        "code": code_of(code, RIVALS[cell.method].code if cell.method in RIVALS else ()),
        "versions": versions(),
    }


def _has_buffer(method: str) -> bool:
    return method != "joint" and method in RIVALS and RIVALS[method].stores_data


def path_of(folder: Path, options: CompareOptions, cell: Cell) -> Path:
    """Return where a run's record is kept.

    Args:
        folder: the comparison's output folder.
        options: of the comparison.
        cell: the run.

    Returns:
        ``folder/runs/<hash of its identity>.json``.
    """
    return _path(folder, identity(options, cell))


def _path(folder: Path, wanted: Mapping[str, object]) -> Path:
    text = json.dumps(wanted, sort_keys=True)
    return folder / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def save(folder: Path, options: CompareOptions, record: Record) -> Path:
    """Return the file that the record was written to, in one step.

    Args:
        folder: the comparison's output folder.
        options: of the comparison.
        record: the run's outcome.

    Returns:
        The path written.
    """
    content = identity(options, record.cell) | asdict(record) | {"commit": commit()}
    return write_json(path_of(folder, options, record.cell), content)


def load(
    folder: Path,
    options: CompareOptions,
    cell: Cell,
    *,
    code: str | None = None,
    any_code: bool = False,
) -> Record | None:
    """Return the record of a run that was made before, if it can be used.

    Args:
        folder: the comparison's output folder.
        options: of the comparison.
        cell: the run.
        code: hash of the code that made it; None for the present code.
        any_code: take a record that other code of flatcl made too, where there is no other.

    Returns:
        The record; None if there is none, it cannot be read, or the run had failed.
    """
    wanted, tasks = (
        identity(options, cell),
        min(options.tasks, options.first_tasks or options.tasks),
    )
    if code is not None:
        wanted["code"] = code
    path = _path(folder, wanted)
    if any_code and not path.exists():
        del wanted["code"]
        found = (_read(other, wanted, cell, tasks) for other in sorted(path.parent.glob("*.json")))
        return next((record for record in found if record is not None), None)
    return _read(path, wanted, cell, tasks)


def _read(path: Path, wanted: Mapping[str, object], cell: Cell, tasks: int) -> Record | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(content[name] != value for name, value in wanted.items()):
            return None
        return record_of(content, cell, tasks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
