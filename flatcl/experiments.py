"""Comparisons of continual-learning methods: tuned, repeated, recorded, summed up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatcl.brought import Brought
from flatcl.cells import BenchmarkSource, ModelSource, OptimizerSource, check, run_cell
from flatcl.errors import FlatclError, NonFiniteError, OptionError, WorkerError
from flatcl.io import write_bytes, write_json, write_jsonl
from flatcl.protocol import CompareOptions
from flatcl.records import Cell, Record, load, save
from flatcl.rivals import RIVALS
from flatcl.scores import mean_ci95, scores
from flatcl.tables import markdown_table
from flatcl.tuning import choose, fixed_value, is_tuned, next_cells, refuse_untuned, report_cells
from flatcl.versions import commit, versions

__all__ = ["CompareOptions", "Comparison", "Progress", "compare"]


@dataclass(frozen=True)
class Progress:
    """Where a comparison is, told after each run.

    Attributes:
        done: runs that have ended, those found on the disk included.
        total: runs known to be needed by now; it grows where a grid is extended.
        record: the run that has just ended; None at the start.
    """

    done: int
    total: int
    record: Record | None


@dataclass(frozen=True)
class Comparison:
    """The outcome of ``compare``.

    Attributes:
        options: what was compared.
        rows: one dict per method, seed, experience trained and experience evaluated, both
            counted from 0, with ``accuracy`` in percent and the ``status`` of the run: the means
            are of those that are "done".
        summary: the content of ``summary.json``; accuracies in percent.
        broken: the reported runs that diverged or failed.
    """

    options: CompareOptions
    rows: list[dict[str, object]]
    summary: dict[str, Any]
    broken: list[Record]

    def table(self) -> str:
        """Return the summary as a Markdown table, one method a row.

        Returns:
            Means ± half-widths of 95 % t-intervals over seeds; "–" where nothing is defined.
        """
        header = ["method", "ACC %", "BWT", "forgetting", "learning %", "seconds", "bytes held"]
        rows = []
        for name, entry in self.summary["methods"].items():
            label = name
            if entry["hyperparameter"] is not None:
                value = entry["value"]
                label += f" ({entry['hyperparameter']} {value:g})" if value is not None else ""
            if entry["n_diverged"] or entry["n_failed"]:
                broken = entry["n_diverged"] + entry["n_failed"]
                label += f" [{broken} of {self.options.seeds} broken]"
            kinds = (("acc", 2), ("bwt", 2), ("forgetting", 2), ("learning", 2), ("seconds", 1))
            cells = [_cell(entry, kind, digits) for kind, digits in kinds]
            held = entry["bytes_held"]
            rows.append([label, *cells, "–" if held is None else f"{held:,}"])
        return markdown_table(header, rows)


def compare(
    options: CompareOptions,
    *,
    model: ModelSource | None = None,
    benchmark: BenchmarkSource | None = None,
    optimizer: OptimizerSource | None = None,
    out: str | Path | None = None,
    keep: Collection[str] = (),
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Return the comparison of methods on one stream, every method from the same start.

    In each repeat all methods share the tasks, the initial weights and the batches. The
    hyper-parameter of a rival is chosen first, on validation images and on a repeat that is never
    reported (its tasks included); LDC is not tuned.

    On a caller's own benchmark the batches of a task are shared as long as a method draws nothing
    while it trains it, as replay and dropout do. Where model and benchmark are fixed, repeats, that
    of the tuning too, differ in the draws of the training alone: with functions of the seed, tasks
    and weights vary as well.

    With ``out``, each run is kept in ``out/runs`` as soon as it ends and found there again by a
    later call with the options, code and versions that determine it, and ``results.jsonl``,
    ``summary.json`` and ``compare.png`` are written at the end. Runs on a caller's own model,
    benchmark or optimiser are always made anew, one after the other, since nothing says whether
    they are the same as before. Where a process that makes runs is killed, a WorkerError says so.

    Args:
        options: methods, stream, network, training.
        model: a network, copied for each run, or a function of the seed (below 2³²); made by the
            options if None. Of Avalanche's multi-head models all heads are made at the start.
        benchmark: an Avalanche benchmark, or a function of the seed (below 2³²); needs ``model``.
            Its ``train_stream`` is trained on; tuning needs a ``val_stream`` or ``valid_stream``.
        optimizer: makes the optimiser from the model's parameters; by the options if None.
        out: folder to write to; None writes nothing.
        keep: methods whose runs in ``out`` count although other code of flatcl made them.
        progress: called at the start and after each run.

    Returns:
        The comparison, with the runs that broke in ``broken``.

    Raises:
        OptionError: the options do not fit together, the data, or the benchmark; or a run of the
            tuning failed.
        NonFiniteError: no reported run on what the caller brought ended well.
    """
    if not isinstance(options, CompareOptions):
        raise OptionError(f"options is a {type(options).__name__}: give CompareOptions(...)")
    own = Brought(model, benchmark, optimizer)
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise OptionError(f"out is {str(folder)!r}, a file: give a folder")
    records: dict[Cell, Record] = {}

    def known(cell: Cell) -> Record | None:
        if cell not in records and folder is not None and not own.given:
            found = load(folder, options, cell, any_code=cell.method in keep)
            if found is not None:
                records[cell] = found
        return records.get(cell)

    tell = progress or (lambda _: None)
    wanted = next_cells(options, known)
    tell(Progress(len(records), len(records) + len(wanted), None))
    while wanted:
        total = len(records) + len(wanted)
        for record in _run(wanted, options, own, folder):
            records[record.cell] = record
            refuse_untuned(record)
            tell(Progress(len(records), total, record))
        wanted = next_cells(options, known)
    found = _finish(options, known, folder, own)
    ended_well = any(entry["n_seeds"] for entry in found.summary["methods"].values())
    if own.given and not ended_well:
        raise NonFiniteError(f"no run ended well: {found.broken[0].reason}")
    return found


def _run(
    cells: list[Cell], options: CompareOptions, own: Brought, folder: Path | None
) -> Iterator[Record]:
    from joblib import Parallel, cpu_count, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    jobs = min(options.jobs or max(1, cpu_count() // options.threads), len(cells))
    if jobs == 1 or own.given:
        kept = None if own.given else folder
        yield from (_attempt(options, cell, own, kept) for cell in cells)
        return
    check(options)  # here and not in every worker
    # A worker of its own for each job imports torch and Avalanche first, some seconds.
    parallel = Parallel(
        n_jobs=jobs, batch_size=1, pre_dispatch=jobs, return_as="generator_unordered"
    )
    try:
        for outcome in parallel(delayed(_guarded)(options, cell, folder) for cell in cells):
            if isinstance(outcome, FlatclError):
                raise outcome
            yield outcome
    except TerminatedWorkerError as error:
        raise WorkerError(
            f"one of {jobs} worker processes was killed, for want of memory perhaps: give fewer "
            "jobs; the same comparison goes on from the runs that were kept"
        ) from error


def _guarded(options: CompareOptions, cell: Cell, folder: Path | None) -> Record | FlatclError:
    try:  # an exception in a worker would reach the caller wrapped in the worker's traceback
        return _attempt(options, cell, Brought(), folder)
    except FlatclError as error:
        return error


def _attempt(options: CompareOptions, cell: Cell, own: Brought, folder: Path | None) -> Record:
    record = run_cell(options, cell, own.of(cell))
    if folder is not None:
        save(folder, options, record)
    return record


def _finish(
    options: CompareOptions,
    known: Callable[[Cell], Record | None],
    folder: Path | None,
    own: Brought,
) -> Comparison:
    reported: dict[str, list[Record]] = {}
    methods: dict[str, dict[str, Any]] = {}
    for method in options.methods:
        value, grid = fixed_value(options, method), None
        if is_tuned(options, method):
            choice = choose(method, known)
            value = choice.value
            grid = [
                {"value": v, "acc_val": None if acc is None else 100 * acc}
                for v, acc in choice.tried.items()
            ]
        found = [known(cell) for cell in report_cells(options, method, value)]
        reported[method] = [record for record in found if record is not None]
        name = None if method == "ldc" else RIVALS[method].hyperparameter
        tuning = {"hyperparameter": name, "value": value, "grid": grid}
        methods[method] = _summary(reported[method]) | tuning
    rows = [row for records in reported.values() for record in records for row in _rows(record)]
    summary = {
        "config": own.config(options),
        "versions": dict(versions()),
        "commit": commit(),
        "methods": methods,
    }
    broken = [r for records in reported.values() for r in records if r.status != "done"]
    if folder is not None:
        from flatcl.plots import plot_comparison, png

        write_jsonl(folder / "results.jsonl", rows)
        write_json(folder / "summary.json", summary)
        whole = [r for records in reported.values() for r in records if r.status == "done"]
        drawn = [row for record in whole for row in _rows(record)]
        picture = folder / "compare.png"
        if drawn:  # of the runs that the table averages
            write_bytes(picture, png(plot_comparison(drawn, own.headline(options))))
        else:  # one of an earlier comparison would stand beside these numbers
            picture.unlink(missing_ok=True)
    return Comparison(options, rows, summary, broken)


def _rows(record: Record) -> Iterable[dict[str, object]]:
    for trained, row in enumerate(record.accuracy):
        for evaluated, accuracy in enumerate(row or ()):
            yield {
                "method": record.cell.method,
                "seed": record.cell.seed,
                "trained": trained,
                "evaluated": evaluated,
                "status": record.status,
                "accuracy": 100 * accuracy,
            }


def _summary(records: list[Record]) -> dict[str, Any]:
    done = [record for record in records if record.status == "done"]
    each = [scores(record.accuracy) for record in done]
    columns: Mapping[str, list[float | None]] = {
        "acc": [100 * score.acc for score in each],
        "bwt": [_percent(score.bwt) for score in each],
        "forgetting": [_percent(score.forgetting) for score in each],
        "learning": [_percent(score.learning) for score in each],
        "seconds": [sum(record.seconds) for record in done],
    }
    entry: dict[str, Any] = {}
    for name, values in columns.items():
        numbers = [value for value in values if value is not None]
        mean, half = mean_ci95(numbers) if numbers else (None, None)
        entry |= {f"{name}_mean": mean, f"{name}_ci95": half}
    held = [record.bytes_held for record in done if record.bytes_held is not None]
    return entry | {
        "bytes_held": max(held, default=None),
        "n_seeds": len(done),
        "n_diverged": sum(record.status == "diverged" for record in records),
        "n_failed": sum(record.status == "failed" for record in records),
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _cell(entry: Mapping[str, Any], kind: str, digits: int) -> str:
    mean, half = entry[f"{kind}_mean"], entry[f"{kind}_ci95"]
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
