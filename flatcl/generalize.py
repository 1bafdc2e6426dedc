"""``flatcl generalize``: which knob of training acts through sharpness, which through size.

``OUT/runs/*.json`` (one a trained network, named by a hash of its setting) →
``OUT/generalize.jsonl`` (one row a network and knob) → ``OUT/generalize.json``. Each is whole or
absent; a network that is there is not trained again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from flatcl.generalize_effects import Effect, effects, left_out, levels
from flatcl.generalize_kept import keep, kept, makers_of
from flatcl.generalize_options import GeneralizeOptions
from flatcl.generalize_runs import measure
from flatcl.generalize_settings import VERSION, Run, Setting, runs_of
from flatcl.generalize_summary import (
    correlations_table,
    effects_table,
    facts_of,
    levels_table,
    rank_correlations,
    rows_of,
)
from flatcl.generalize_training import choose_images
from flatcl.io import finite, write_json, write_jsonl

_EVERY = 10.0  # seconds from one line of progress to the next

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """All that was found.

    Attributes:
        rows: as in ``generalize.jsonl``.
        records: of the runs, in the rows' order.
        effects: what each knob does.
        correlations: of the gap with each measure, Spearman.
    """

    rows: list[dict[str, Any]]
    records: list[dict[str, Any]]
    effects: list[Effect]
    correlations: dict[str, float]

    def __str__(self) -> str:
        """Return all tables and what they rest on."""
        parts = [
            effects_table(self.effects),
            "\n".join(left_out(self.rows)),
            levels_table(levels(self.rows)),
            correlations_table(self.rows),
            "\n".join(facts_of(self.rows)),
        ]
        return "\n\n".join(part for part in parts if part)


def generalize(options: GeneralizeOptions, out: str | Path, say: Say = lambda line: None) -> Study:
    """Return the study, made as far as it is missing.

    Args:
        options: what to train.
        out: folder of all that is kept.
        say: told of progress, a line each.

    Returns:
        The study; its files are in the folder.
    """
    folder, runs = Path(out), runs_of(options)
    settings = _settings(runs)
    for setting in settings:  # before anything is trained
        choose_images(setting)
    found = {one: kept(folder, one) for one in settings}
    wanted = [one for one, record in found.items() if record is None]
    if len(wanted) < len(settings):
        say(f"{len(settings) - len(wanted)} of {len(settings)} networks found")
    _fill(folder, wanted, options.jobs or os.cpu_count() or 1, say)
    found |= {one: kept(folder, one) for one in wanted}
    return _told(options, folder, runs, [found[run.setting] or {} for run in runs])


def missing(options: GeneralizeOptions, out: str | Path) -> list[Setting]:
    """Return the networks that are still to be trained.

    Args:
        options: of the study.
        out: its folder.

    Returns:
        Their settings.
    """
    return [one for one in _settings(runs_of(options)) if kept(Path(out), one) is None]


def _settings(runs: Sequence[Run]) -> list[Setting]:
    """Return each network once, though it may be a row of several knobs."""
    return list(dict.fromkeys(run.setting for run in runs))


def _fill(folder: Path, wanted: Sequence[Setting], jobs: int, say: Say) -> None:
    jobs = min(jobs, len(wanted))
    if jobs > 1:
        work = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        made = work(delayed(_measured)(one) for one in wanted)
    else:
        made = map(_measured, wanted)
    begun = said = time.monotonic()
    for number, (setting, record) in enumerate(made, 1):
        keep(folder, setting, record)
        left = (time.monotonic() - begun) / number * (len(wanted) - number)
        if number == len(wanted) or time.monotonic() - said > _EVERY:
            said = time.monotonic()
            say(f"{number} of {len(wanted)} networks trained and measured; about {left:.0f} s left")


def _measured(setting: Setting) -> tuple[Setting, dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of more cores, networks make better use than steps this small
    try:
        return setting, measure(setting)
    finally:
        torch.set_num_threads(threads)


def _told(
    options: GeneralizeOptions, folder: Path, runs: Sequence[Run], records: list[dict[str, Any]]
) -> Study:
    rows = rows_of([(r.knob, r.value, one) for r, one in zip(runs, records, strict=True)])
    study = Study(rows, records, effects(rows), rank_correlations(rows))
    write_jsonl(folder / "generalize.jsonl", rows)
    summary = {
        "version": VERSION,
        "config": asdict(options),
        "made_by": makers_of(records),
        "effects": [
            asdict(one) | {"through": one.through, "monotone": one.monotone}
            for one in study.effects
        ],
        "levels": [asdict(one) for one in levels(rows)],
        "rank_correlations": study.correlations,
        "facts": [*left_out(rows), *facts_of(rows)],
    }
    write_json(folder / "generalize.json", finite(summary))
    return study
