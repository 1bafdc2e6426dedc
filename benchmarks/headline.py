"""The lab in one table: LDC as it comes beside the best of others, tuned or as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.about import ProtocolAbout
from benchmarks.collected import Collected
from benchmarks.contenders import CONTROL, EWC, Entry, best, compared, joint_of, named
from benchmarks.families import WITHOUT_DATA
from benchmarks.gap import gap_closed, gaps, mean_sentence
from benchmarks.outcomes import Outcome
from benchmarks.statistics import REFERENCE, Verdict
from benchmarks.views import Cell, Column, Row, View, estimate_cell
from flatcl.tables import markdown_table

_MARKS: dict[Verdict, str] = {
    "above": " ↑", "below": "", "tie": " =", "untested": " ?",
}  # fmt: skip
COLUMNS = (
    Column("protocol"),
    Column("best Naive", falling=True),
    Column("best EWC", falling=True),
    Column("best other without data", falling=True),
    Column("LDC, default", falling=True),
    Column("LDC, tuned", "rate and strength chosen as each rival's", falling=True),
    Column("Joint", falling=True),
    Column("gap closed", "(LDC − best EWC or Naive) / (Joint − best EWC or Naive)", falling=True),
)
LEGEND = (
    "ACC in percent on test images, mean ± half-width of the 95 % t-interval over seeds. *Best* is "
    "the highest of the methods of its kind on these very images, tuned if nothing else is said, "
    "so that chance favours it over LDC, which has one setting for all (benchmarks/DEFAULTS.md "
    "tells how it was chosen). "
    "*LDC, tuned* is chosen as the others are, where it has been run. "
    "Beside LDC at its default: = no significant difference, ↑ "
    "significantly above LDC, ? too few seeds to test, no mark significantly below (paired t-test, "
    "p < 0.05, Holm-corrected over this table). *Gap closed*: (LDC − base) / (Joint − "
    "base), base being the better of EWC and Naive, which is EWC with λ = 0; – where Joint is not "
    "significantly above the base."
)


def headline_table(outcomes: Sequence[Outcome], about: Mapping[str, ProtocolAbout]) -> str:
    """Return the lab's headline as Markdown: a table, its legend and the mean gap closed.

    Args:
        outcomes: all runs.
        about: the protocols by name.

    Returns:
        Lines without a newline at the end.
    """
    collected = Collected(outcomes)
    view = headline_view(collected, about)
    own = [column.title for column in view.columns].index("LDC, default")
    rows = [
        [f"**{text}**" if place == own else text for place, text in enumerate(row.texts())]
        for row in view.rows
    ]
    text = markdown_table([column.title for column in view.columns], rows)
    return f"{text}\n\n{LEGEND} {mean_sentence(gaps(collected, about))}".rstrip()


def headline_view(collected: Collected, about: Mapping[str, ProtocolAbout]) -> View:
    """Return the headline table as cells.

    Args:
        collected: all runs.
        about: the protocols by name, in the order of the rows.

    Returns:
        A row a protocol that has runs.
    """
    rows = []
    lines = entries(collected)
    for protocol in (name for name in about if name in lines):
        naive, ewc, other, ldc, tuned, joint = lines[protocol]
        gap = gap_closed(collected, protocol)
        share = None if gap is None else gap.share
        cells = [
            Cell(about[protocol].title, about[protocol].title),
            _shown(naive, name=True),
            _shown(ewc, name=True),
            _shown(other, name=True),
            _shown(ldc),
            _shown(tuned),
            _shown(joint),
            Cell("–" if share is None else f"{100 * share:.0f} %", share),
        ]
        rows.append(Row(protocol, cells))
    return View(COLUMNS, rows, key="protocol")


def entries(collected: Collected) -> dict[str, list[Entry | None]]:
    """Return the headline's methods, each compared with LDC, p corrected over the whole table.

    Args:
        collected: all runs.

    Returns:
        By protocol: best Naive, best EWC, best other, LDC, LDC tuned, Joint; None without a
        finished run.
    """
    found: dict[str, list[Entry | None]] = {}
    for name in collected.protocols:
        found[name] = [
            best(collected, name, CONTROL),
            best(collected, name, EWC),
            best(collected, name, WITHOUT_DATA),
            named(collected, name, REFERENCE, "default"),
            named(collected, name, REFERENCE, "tuned"),
            joint_of(collected, name),
        ]
    there = [entry for line in found.values() for entry in line if entry is not None]
    results = iter(compared(collected, there))
    return {
        name: [None if entry is None else next(results) for entry in line]
        for name, line in found.items()
    }


def _shown(entry: Entry | None, *, name: bool = False) -> Cell:
    if entry is None:
        return Cell("–", None)
    text = estimate_cell(entry.acc).text
    if name:
        text += f" ({entry.method}{'' if entry.regime == 'tuned' else ', default'})"
    if entry.versus is not None:
        text += _MARKS[entry.versus.verdict]
    return Cell(text, entry.acc.mean)
