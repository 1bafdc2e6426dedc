"""Records of ``flatcl generalize`` on the disk: written whole, read back only if they are whole."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flatcl.generalize_runs import NUMBERS, PROFILE
from flatcl.generalize_settings import VERSION, Setting
from flatcl.io import write_json
from flatcl.options import number_of
from flatcl.stamps import NAMES, content_of
from flatcl.versions import commit, versions


def keep(folder: Path, setting: Setting, record: Mapping[str, Any]) -> None:
    """Write the record of a run.

    Args:
        folder: of the study.
        setting: of the run.
        record: by ``measure``.
    """
    made_by = {"commit": commit(), "versions": dict(versions())}
    stamps = {"content": content_of(setting.data), "made_by": made_by}
    write_json(_path(folder, setting), {**record, **stamps})


def kept(folder: Path, setting: Setting) -> dict[str, Any] | None:
    """Return the record of a run, whatever code and versions made it: the record says which.

    Args:
        folder: of the study.
        setting: of the run.

    Returns:
        The record; None if it is missing, damaged, or of other images under the same name.
    """
    try:
        record = json.loads(_path(folder, setting).read_text(encoding="utf-8"))
        content = content_of(setting.data)
        if setting.data in NAMES and "content" not in record:
            record["content"] = content  # records of earlier code said it of files alone
        same = record["version"] == VERSION and record.get("content") == content
        if not same or record["setting"] != json.loads(json.dumps(asdict(setting))):
            return None
        if not _is_maker(record.get("made_by")):
            return None
        whole = record["status"] == "diverged" or (record["status"] == "done" and _whole(record))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if whole else None


def makers_of(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return which code made how many networks; None of those whose record does not say.

    Args:
        records: of the runs; one that is there twice counts once.

    Returns:
        ``networks``, ``commit`` and ``versions``, one dict for each that differs.
    """
    single = {json.dumps(record["setting"]): record.get("made_by") for record in records}
    unknown = {"commit": None, "versions": None}
    told = Counter(json.dumps(maker or unknown, sort_keys=True) for maker in single.values())
    return [{"networks": number, **json.loads(maker)} for maker, number in told.items()]


def _is_maker(content: object) -> bool:
    """Return whether it says what made a record, or says nothing."""
    if content is None:
        return True
    if not isinstance(content, dict) or {*content} != {"commit", "versions"}:
        return False
    told = content["versions"]
    if not isinstance(told, dict) or not isinstance(content["commit"], str | None):
        return False
    return all(isinstance(value, str) for value in told.values())


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
