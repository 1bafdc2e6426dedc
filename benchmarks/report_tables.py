"""The report's tables of results, of searches and of published figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.about import ProtocolAbout
from benchmarks.collected import Collected
from benchmarks.families import family, in_order, information
from benchmarks.noise import noise_sentence
from benchmarks.outcomes import Regime, Search
from benchmarks.statistics import WILCOXON_PAIRS, Line, Paired, table
from benchmarks.targets import Judged
from benchmarks.views import (
    Cell,
    Column,
    Row,
    View,
    bytes_text,
    estimate_cell,
    p_text,
    settings_text,
)

RESULT_COLUMNS = (
    Column("method"),
    Column("ACC %", "mean over tasks of the final test accuracy", falling=True),
    Column("less LDC", "points of ACC, paired by seed", falling=True),
    Column("beside LDC", "paired t-test, p Holm-corrected over this table; tie from 0.05 on"),
    Column("learning %", "accuracy on each task just after it", falling=True),
    Column("BWT", "backward transfer: final accuracy less that just after the task", falling=True),
    Column("forgetting", "from the best accuracy that a task ever had (Chaudhry's form)"),
    Column("intransigence", "joint training's final accuracy less that just after the task"),
    Column("seconds", "a run: training and the ends of tasks"),
    Column("× Naive", "seconds of the fastest run relative to Naive's, on one kind of machine"),
    Column("held, first", "bytes kept after the first task"),
    Column("held, last", "bytes kept after the last task"),
    Column("seeds", "runs that came to their end", falling=True),
    Column("settings", "learning rate, and the method's own number", wordy=True),
)
TUNING_COLUMNS = (
    Column("method"),
    Column("tried", "every value of each axis", wordy=True),
    Column("cells", "of the grid as it was at the end", falling=True),
    Column("diverged", "cells that did"),
    Column("chosen", wordy=True),
    Column("validation ACC %", "of the chosen cell, mean of its repeats", falling=True),
    Column("on an edge", "axes on whose edge the best lies"),
    Column("hours", "of the whole search"),
)
TARGET_COLUMNS = (
    Column("method"),
    Column("published %", falling=True),
    Column("ours %", falling=True),
    Column("regime", "of ours: default where nothing of the method was tuned there, else tuned"),
    Column("difference", falling=True),
    Column("tolerance", "points in either direction; – where the two are not to be compared"),
    Column("verdict", "two-sided"),
    Column("source", wordy=True),
)


def result_view(
    collected: Collected,
    protocol: str,
    regime: Regime,
    searches: Mapping[str, Search],
    judged: Sequence[Judged] = (),
    about: ProtocolAbout | None = None,
) -> View:
    """Return the table of a protocol and regime.

    Args:
        collected: all runs.
        protocol: its name.
        regime: whose.
        searches: that chose the protocol's settings, by method; they concern the tuned regime
            alone.
        judged: published figures; those of this regime's concern the table.
        about: the protocol; methods that belong there and have no run are named below.

    Returns:
        A row a method.
    """
    lines = table(collected, protocol, regime)
    held = [one for one in judged if one.regime == regime]
    notes: list[str] = []
    rows = []
    for line in lines:
        search = searches.get(line.method) if regime == "tuned" else None
        own = [*_notes(line, regime, search), *_misses(line.method, held)]
        own += [*_beside(line, lines), *_guessed(line, regime, about)]
        notes += [note for note in own if note not in notes]
        rows.append(
            Row(
                line.method,
                _cells(line),
                sorted(notes.index(note) + 1 for note in own),
            )
        )
    remarks = [*_remarks(lines, about.methods if about else ())]
    if any(line.times_naive for line in lines) and (rough := noise_sentence(collected, protocol)):
        remarks.append(rough)
    return View(RESULT_COLUMNS, rows, notes, remarks=remarks)


def _cells(line: Line) -> list[Cell]:
    versus, held = line.versus, line.bytes_held or (None, None)
    cost = line.times_naive
    return [
        Cell(line.method, line.method),
        estimate_cell(line.acc),
        estimate_cell(versus.difference if versus else None, signed=True),
        _verdict(versus),
        estimate_cell(line.learning),
        estimate_cell(line.bwt, signed=True),
        estimate_cell(line.forgetting),
        estimate_cell(line.intransigence, signed=True),
        estimate_cell(line.seconds, digits=0 if line.seconds and line.seconds.mean >= 100 else 1),
        Cell("–" if cost is None else f"{cost:.2f}", cost),
        *(Cell("–" if size is None else bytes_text(size), size) for size in held),
        Cell(str(line.n_seeds), line.n_seeds),
        Cell(settings_text(line.settings), settings_text(line.settings)),
    ]


def _notes(line: Line, regime: Regime, search: Search | None) -> Iterable[str]:
    for told in information(line.method):
        yield f"{told[0].upper()}{told[1:]}."
    if line.n_diverged:
        runs = line.n_seeds + line.n_diverged
        yield f"{line.n_diverged} of {runs} runs diverged: counted, not in the means."
    if search is not None and search.on_edge:
        yield (
            f"The best lies on the edge of the grid ({', '.join(search.on_edge)}), which was "
            "extended as far as allowed: more might be reached beyond."
        )
    if search is not None and dict(search.chosen) != dict(line.settings):
        yield f"Run at other settings than the search chose ({settings_text(search.chosen)})."
    versus = line.versus
    if versus is not None and line.reference != regime:
        yield f"Less LDC of the {line.reference} regime: it has no run in this one."
    if versus is not None and versus.difference.n < line.n_seeds:
        yield f"Paired with LDC on {versus.difference.n} seeds only."
    if versus is not None and versus.doubtful and versus.p_wilcoxon is not None:
        yield f"Wilcoxon's test does not bear the difference out (p {p_text(versus.p_wilcoxon)})."


def _beside(line: Line, lines: Sequence[Line]) -> Iterator[str]:
    """Yield what only the other rows of the table tell of one."""
    if family(line.method) == "bound" and line.acc is not None:
        level = line.acc.mean
        above = [other.method for other in lines if other.acc and other.acc.mean > level]
        if above:
            yield f"No bound here: {', '.join(above)} come{'s' * (len(above) == 1)} out above it."
    er = next((other.bytes_held for other in lines if other.method == "er"), None)
    if line.method == "agem" and er and line.bytes_held and line.bytes_held[1] < er[1]:
        yield (
            f"Holds {bytes_text(line.bytes_held[1])}, where er holds {bytes_text(er[1])}: it keeps "
            "as many samples as the protocol gives a memory, not as LDC's bytes hold."
        )


def _guessed(line: Line, regime: Regime, about: ProtocolAbout | None) -> Iterator[str]:
    if regime == "default" and about and line.method in about.guessed:
        yield "Its number is the middle of our grid: none is taken from its paper or library."


def _remarks(lines: Sequence[Line], compared: Sequence[str]) -> Iterator[str]:
    pairs = max((line.versus.difference.n for line in lines if line.versus), default=0)
    if 1 <= pairs < WILCOXON_PAIRS:
        yield f"{pairs} pairs at most: Wilcoxon's test, from 6 on, cannot check the t-test."
    absent = set(compared) - {line.method for line in lines}
    if absent:
        yield f"Still to be run of what the protocol compares: {', '.join(in_order(absent))}."


def _misses(method: str, judged: Sequence[Judged]) -> Iterable[str]:
    for found in judged:
        if (
            found.target.method == method
            and found.verdict == "missed"
            and found.reached is not None
        ):
            gap = found.reached - found.target.published
            yield (
                f"Not the published {found.target.published:g} ({gap:+.1f}, tolerance "
                f"{found.target.tolerance:g})."
            ).replace("-", "−")


def tuning_view(searches: Sequence[Search]) -> View:
    """Return the table of what was tried.

    Args:
        searches: of one protocol.

    Returns:
        A row a method.
    """
    by_method = {search.method: search for search in searches}
    rows = []
    for method in in_order(by_method):
        search = by_method[method]
        best = max((c.acc_val for c in search.tried if c.settings == search.chosen), default=None)
        hours = sum(cell.seconds for cell in search.tried) / 3600
        lost = sum(cell.acc_val == 0 for cell in search.tried)
        cells = [
            Cell(method, method),
            Cell(tried := _tried(search), tried),
            Cell(str(len(search.tried)), len(search.tried)),
            Cell(str(lost), lost),
            Cell(chosen := settings_text(search.chosen), chosen),
            Cell("–" if best is None else f"{100 * best:.1f}", best),
            Cell(edge := ", ".join(search.on_edge), edge or None),
            Cell(f"{hours:.2f}", hours),
        ]
        rows.append(Row(method, cells))
    return View(TUNING_COLUMNS, rows)


def _tried(search: Search) -> str:
    values: dict[str, set[float]] = {}
    for cell in search.tried:
        for name, value in cell.settings.items():
            values.setdefault(name, set()).add(value)
    return "; ".join(f"{n}: {' '.join(f'{v:g}' for v in sorted(v))}" for n, v in values.items())


def target_view(judged: Sequence[Judged]) -> View:
    """Return the table of published figures.

    Args:
        judged: of one protocol.

    Returns:
        A row a figure, misses among them.
    """
    rows = []
    rivals = [one for one in judged if one.verdict in {"reached", "missed"}]
    rivals = [one for one in rivals if family(one.target.method) not in {"control", "bound"}]
    blunt = sum(not one.telling for one in rivals)
    for found in judged:
        target, ours = found.target, found.reached
        said: str = found.verdict
        if said in {"reached", "missed"} and not found.telling:
            said += ", not discriminating"
        gap = None if ours is None else ours - target.published
        tolerance = target.tolerance
        cells = [
            Cell(target.method, target.method),
            Cell(f"{target.published:g}", target.published),
            Cell("–" if ours is None else f"{ours:.2f}", ours),
            Cell(found.regime or "–", found.regime),
            Cell("–" if gap is None else f"{gap:+.2f}".replace("-", "−"), gap),
            Cell("–" if tolerance is None else f"± {tolerance:g}", tolerance),
            Cell(said, said),
            Cell(text := " ".join((f"{target.source}.", target.discrepancy)).strip(), text),
        ]
        rows.append(Row(target.method, cells))
    remarks = []
    if blunt:
        remarks.append(
            f"{blunt} of {len(rivals)} judged figures of rivals are not discriminating: our Naive, "
            "of the same regime, lies within their tolerance too."
        )
    return View(TARGET_COLUMNS, rows, remarks=remarks)


def _verdict(versus: Paired | None) -> Cell:
    if versus is None:
        return Cell("–", None)
    if versus.p_holm is None:
        return Cell("untested", None)
    return Cell(f"{versus.verdict}, p {p_text(versus.p_holm)}", versus.p_holm)
