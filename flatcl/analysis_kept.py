"""What ``flatcl analyze`` keeps in its folder: whose analysis it is, and arrays."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatcl.analysis_options import AnalyzeOptions
from flatcl.errors import DataError, OptionError
from flatcl.fluctuations.along import Part
from flatcl.io import write_bytes, write_json
from flatcl.stamps import content_of
from flatcl.versions import code_of, versions

# What makes the parts that are kept; the rest of the package only tells of them.
_CODE = (
    "analysis.py", "analysis_task.py", "core/eigenbasis.py", "core/gradients.py", "core/layers.py",
    "core/moments.py", "data.py", "fluctuations/*.py", "plain_network.py", "seeds.py",
    "trajectory.py",
)  # fmt: skip


def claim(folder: Path, options: AnalyzeOptions) -> None:
    """Make a folder that of an analysis, by this code and these versions of packages.

    The number of jobs may differ from one call to the next. A folder that holds another analysis,
    one that other code made, or a damaged one is refused with an OptionError.

    Args:
        folder: of all that is kept.
        options: of the analysis.
    """
    mine = json.loads(json.dumps(asdict(options)))
    del mine["jobs"]
    content = content_of(options.data)
    if content is not None:
        mine["content of data"] = content
    _claim(folder, mine | {"code of flatcl": code_of(_CODE), **versions()})


def claim_record(folder: Path, record: str | Path) -> None:
    """Make a folder that of a record's analysis, of which nothing is kept but the numbers.

    A folder that holds another analysis, or a damaged one, is refused with an OptionError.

    Args:
        folder: to write to.
        record: its path.
    """
    _claim(folder, {"record": str(Path(record).resolve())})


def _claim(folder: Path, mine: dict[str, Any]) -> None:
    path = folder / "options.json"
    if not path.exists():
        write_json(path, mine)
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        theirs = None
    if not isinstance(theirs, dict):
        raise OptionError(
            f"{path} is damaged, so nobody knows whose analysis {folder} holds: choose another "
            "--out, or remove it"
        )
    if theirs != mine:
        other = sorted(k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k))
        raise OptionError(
            f"{folder} holds an analysis with another {', '.join(other)}: choose another --out, or "
            "remove it"
        )


def load_arrays(path: Path) -> Part:
    """Return the arrays that a file holds, as tensors.

    Args:
        path: an npz file without pickles.

    Returns:
        Name → tensor.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        # numpy leaves a file that it opened itself open when it cannot read it
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return Kept(path, {name: torch.from_numpy(archive[name]) for name in archive.files})
    except Exception as error:  # of the archive, of its compression, of an array's header
        raise DataError(f"{path} cannot be read ({error}): remove it, it is made again") from error


class Kept(dict[str, torch.Tensor]):
    """Arrays of a file; one that is missing is the file's fault.

    Args:
        path: of the file.
        arrays: by name.
    """

    def __init__(self, path: Path, arrays: Part) -> None:
        super().__init__(arrays)
        self._path = path

    def __missing__(self, name: str) -> torch.Tensor:
        raise DataError(f"{self._path} lacks {name}: remove it, it is made again")


def save_arrays(path: Path, part: Part) -> None:
    """Write arrays whole.

    Args:
        path: of the npz file.
        part: name → tensor.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: t.detach().cpu().numpy() for name, t in part.items()}
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
