"""Raw results that a benchmark goes on from: runs of a comparison, or entries of one file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flatcl.cells import Own, run_cell
from flatcl.io import write_json
from flatcl.protocol import CompareOptions
from flatcl.records import Cell, identity, load, save
from flatcl.versions import versions


def fill(
    folder: Path,
    options: CompareOptions,
    cell: Cell,
    *,
    any_code: bool = False,
    own: Own | None = None,
) -> None:
    """Make and keep one run, if it is missing; it takes the place of runs of it by other code.

    Args:
        folder: of the runs.
        options: of the comparison.
        cell: the run.
        any_code: count a run that other code of flatcl made too.
        own: what takes the place of the options' network, one for all runs of the folder.
    """
    if load(folder, options, cell, any_code=any_code) is not None:
        return
    record = run_cell(options, cell, own)
    path = save(folder, options, record)
    if record.status == "done":
        _supersede(path)


def _supersede(path: Path) -> None:
    """Delete the runs of the same by other code, whose mixture no page could be made from."""
    this = _run_of(_read(path))
    for other in path.parent.glob("*.json"):
        try:
            superseded = other != path and _run_of(_read(other)) == this
        except FileNotFoundError:  # another process has deleted it
            continue
        if superseded:
            other.unlink(missing_ok=True)


class Runs:
    """All runs of a folder by what was run, whichever code ran it.

    Args:
        folder: of the runs.
    """

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for path in sorted(folder.glob("runs/*.json")):
            content = _read(path)
            self._found[_run_of(content)].append(content)

    def get(self, options: CompareOptions, cell: Cell) -> dict[str, Any] | None:
        """Return the content of a run's record; one by the present code counts before any other.

        Args:
            options: of the comparison.
            cell: the run.

        Returns:
            The content, None if the run was never made.
        """
        code = identity(options, cell)["code"]
        made = self.every(options, cell)
        return max(made, key=lambda one: one["code"] == code, default=None)

    def every(self, options: CompareOptions, cell: Cell) -> list[dict[str, Any]]:
        """Return the contents of a run's records, one for each code that made it.

        Args:
            options: of the comparison.
            cell: the run.

        Returns:
            Contents, none if the run was never made.
        """
        wanted = {"cell": asdict(cell), "config": identity(options, cell)["config"]}
        return self._found.get(_run_of(wanted), [])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _run_of(content: dict[str, Any]) -> str:
    """Return what was run, whichever code ran it, as a key."""
    return json.dumps([content["cell"], content["config"]], sort_keys=True)


def completed(
    path: Path,
    setup: object,
    name: str,
    keys: Iterable[dict[str, Any]],
    measure: Callable[[dict[str, Any]], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Make the entries of a file that are missing, each written at once.

    Args:
        path: of the JSON file.
        setup: what they are made with.
        name: under which the file has them.
        keys: what tells each entry from the others.
        measure: from a key to the rest of its entry.

    Yields:
        Each new entry, after it is written.

    Raises:
        SystemExit: the file holds those of another set-up.
    """
    rows = entries(path, setup, name)
    for key in keys:
        if not any(key.items() <= row.items() for row in rows):
            rows.append(key | measure(key) | {"versions": dict(versions())})
            write_json(path, {"setup": setup, name: rows})
            yield rows[-1]


def entries(path: Path, setup: object, name: str) -> list[dict[str, Any]]:
    """Return the entries of a file of results.

    Args:
        path: of the JSON file.
        setup: what they must have been made with.
        name: under which the file has them.

    Returns:
        The entries, none without a file.

    Raises:
        SystemExit: the file holds those of another set-up.
    """
    if not path.exists():
        return []
    content = _read(path)
    if content["setup"] != setup:
        raise SystemExit(f"{path} holds another set-up, {content['setup']}: move it away")
    found: list[dict[str, Any]] = content[name]
    return found
