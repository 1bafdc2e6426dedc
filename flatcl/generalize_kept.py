"""Records of ``flatcl generalize`` on the disk: written whole, read back only if they are whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flatcl.generalize_runs import NUMBERS, PROFILE
from flatcl.generalize_settings import VERSION, Setting
from flatcl.io import write_json
from flatcl.options import number_of
from flatcl.stamps import content_of


def keep(folder: Path, setting: Setting, record: Mapping[str, Any]) -> None:
    """Write the record of a run.

    Args:
        folder: of the study.
        setting: of the run.
        record: by ``measure``.
    """
    content = content_of(setting.data)
    of_file = {} if content is None else {"content": content}
    write_json(_path(folder, setting), {**record, **of_file})


def kept(folder: Path, setting: Setting) -> dict[str, Any] | None:
    """Return the record of a run.

    Args:
        folder: of the study.
        setting: of the run.

    Returns:
        The record; None if it is missing, damaged, or of other images under the same name.
    """
    try:
        record = json.loads(_path(folder, setting).read_text(encoding="utf-8"))
        same = record["version"] == VERSION and record.get("content") == content_of(setting.data)
        if not same or record["setting"] != json.loads(json.dumps(asdict(setting))):
            return None
        whole = record["status"] == "diverged" or (record["status"] == "done" and _whole(record))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if whole else None


def _path(folder: Path, setting: Setting) -> Path:
    return folder / "runs" / f"{setting.name}.json"


def _whole(record: Mapping[str, Any]) -> bool:
    numbers, profile = record["numbers"], record["profile"]
    told = [record[name] for name in ("epochs", "accuracy", "fitted_loss")]
    told += [numbers["gap"], numbers["matched_gap"], *record["seconds"].values(), *profile["rank"]]
    if not isinstance(record["reached"], bool) or any(_real(value) is None for value in told):
        return False
    lines = [profile[name] for name in PROFILE]
    values = [numbers[name] for name in NUMBERS] + [value for line in lines for value in line]
    return (
        all(value is None or _real(value) is not None for value in values)
        and all(len(line) == len(lines[0]) > 0 for line in lines)
        and all(rank >= 1 for rank in profile["rank"])
    )


def _real(value: object) -> float | None:
    number = number_of(value)
    return None if number is None or not math.isfinite(number) else number
