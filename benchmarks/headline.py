"""The lab in one table: LDC as it comes beside the best of others, tuned or as they come."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from benchmarks.about import ProtocolAbout
from benchmarks.against import BOUND, KEEPING, REHEARSING, RIVALS, against_rivals
from benchmarks.collected import Collected
from benchmarks.contenders import CONTROL, EWC, Entry, best, better, named
from benchmarks.defaults import STREAMS
from benchmarks.families import STOCK, WITHOUT_DATA, family, in_order
from benchmarks.gap import gap_closed, gaps, mean_sentence
from benchmarks.outcomes import Search
from benchmarks.statistics import REFERENCE, Verdict
from benchmarks.streams import stream_options
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
    Column("best with LDC's rehearsal", "of Naive, EWC and others without data", falling=True),
    Column("ER", "replay of as many images as LDC's bytes hold", falling=True),
    Column("LDC, default", falling=True),
    Column("LDC, tuned", "rate and strength chosen as each rival's", falling=True),
    Column("Joint", "trained on all tasks at once", falling=True),
    Column("gap closed", "(LDC − best EWC or Naive) / (Joint − best EWC or Naive)", falling=True),
    Column("by the best other", "the same of the best other without data", falling=True),
)
LEGEND = (
    "ACC in percent on test images, mean ± half-width of the 95 % t-interval over seeds. *Best* "
    "is the highest of the methods of its kind on these very images, tuned if nothing else is "
    "said, so that chance favours it over LDC, which has one setting for all. That was chosen on "
    "validation images of the same data sets, on streams whose classes come in the order "
    "reported here and with all of their tasks (benchmarks/DEFAULTS.md); the searches of the "
    "others, and that of *LDC, tuned*, see other orders of classes and the first three tasks of "
    "a long stream. † marks data on which LDC's defaults were not chosen. Beside its constraint "
    "LDC rehearses at draws from Gaussians of earlier inputs. *Best with LDC's rehearsal* is of "
    "those that were given it, the rows +r of a section: on streams with one head for all "
    "classes each method without data, on other short ones Naive, online EWC and LwF, as far as "
    "they were run (a section names what is still to be). *ER* replays images, as many as LDC's "
    "bytes hold as float32; as uint8 they would hold four times as many. *Edge*: the settings "
    "lie on the edge of their grid, which was extended as far as allowed. Runs that diverged are "
    "named and not in the mean. Beside LDC at its default, as each protocol's section has it: = "
    "no significant difference, ↑ significantly above LDC, ? too few seeds to test, no mark "
    "significantly below (paired t-test, p < 0.05, Holm-corrected over the protocol's methods "
    "without data, over those given the rehearsal, for *ER* over those that keep samples, for "
    "*Joint* alone). *Joint* is a reference, and no bound where another is above it. *Gap "
    "closed*: (LDC − base) / (Joint − base), base being the better of EWC and Naive, which is "
    "EWC with λ = 0; – where Joint is not significantly above the base."
)
_FIRST = "-first"  # ends the name of a method by its settings for some streams


def headline_table(view: View, paragraphs: Sequence[str]) -> str:
    """Return the lab's headline as Markdown: a table and what is to be known of it.

    Args:
        view: of ``headline_view``.
        paragraphs: of ``legend``.

    Returns:
        Lines without a newline at the end.
    """
    own = [column.title for column in view.columns].index("LDC, default")
    rows = [
        [f"**{text}**" if place == own else text for place, text in enumerate(row.texts())]
        for row in view.rows
    ]
    text = markdown_table([column.title for column in view.columns], rows)
    return "\n\n".join([text, *paragraphs])


def legend(collected: Collected, about: Mapping[str, ProtocolAbout]) -> list[str]:
    """Return what is to be known of the headline table.

    Args:
        collected: all runs.
        about: the protocols by name.

    Returns:
        Paragraphs: how it is read with the mean gap closed, and which methods lack where.
    """
    parts = [f"{LEGEND} {mean_sentence(gaps(collected, about))}".rstrip()]
    return [part for part in (*parts, absent(collected, about)) if part]


def headline_view(
    collected: Collected, about: Mapping[str, ProtocolAbout], searches: Sequence[Search] = ()
) -> View:
    """Return the headline table as cells.

    Args:
        collected: all runs.
        about: the protocols by name, in the order of the rows.
        searches: the tuning.

    Returns:
        A row a protocol that has runs.
    """
    rows = []
    lines = entries(collected)
    chosen_on = {stream_options(name, "sgd").data for name in STREAMS}
    for protocol in (name for name in about if name in lines):
        one = about[protocol]
        naive, ewc, other, given, er, ldc, tuned, joint = lines[protocol]
        gap = gap_closed(collected, protocol)
        source = one.settings_of or protocol
        edges = {s.method for s in searches if s.protocol == source and s.on_edge}
        title = one.title + (" †" if one.data and one.data not in chosen_on else "")
        cells = [
            Cell(title, title),
            *(_shown(entry, edges, name=True) for entry in (naive, ewc, other, given)),
            *(_shown(entry, edges) for entry in (er, ldc, tuned, joint)),
            _share(gap.share if gap else None),
            _share(gap.other_share if gap else None),
        ]
        rows.append(Row(protocol, cells))
    return View(COLUMNS, rows, key="protocol")


def entries(collected: Collected) -> dict[str, list[Entry | None]]:
    """Return the headline's methods, each with the verdict that its protocol's section has.

    Args:
        collected: all runs.

    Returns:
        By protocol: best Naive, best EWC, best other, best that is given LDC's rehearsal, ER, LDC,
        LDC tuned, Joint; None without a finished run.
    """
    found: dict[str, list[Entry | None]] = {}
    for name in collected.protocols:
        tested = {
            entry.method: entry
            for families in (RIVALS, REHEARSING, KEEPING, BOUND)
            for entry, _ in against_rivals(collected, name, families)
        }
        line = [
            best(collected, name, CONTROL),
            best(collected, name, EWC),
            best(collected, name, WITHOUT_DATA),
            best(collected, name, REHEARSING),
            better(collected, name, "er"),
            named(collected, name, REFERENCE, "default"),
            named(collected, name, REFERENCE, "tuned"),
            better(collected, name, "joint"),
        ]
        found[name] = [entry and tested.get(entry.method, entry) for entry in line]
    return found


def absent(collected: Collected, about: Mapping[str, ProtocolAbout]) -> str:
    """Return which methods the best is not taken of, since they have no runs on a protocol.

    Args:
        collected: all runs.
        about: the protocols by name.

    Returns:
        Sentences; empty if every protocol has the same methods.
    """
    there = {name: _alike(collected.methods(name)) for name in about}
    names = [name for name in about if there[name]]
    known = set().union(*(there[name] | _alike(about[name].methods) for name in names))
    lacking: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        if lack := tuple(in_order(known - there[name])):
            lacking.setdefault(lack, []).append(about[name].title)
    if not lacking:
        return ""
    said = (f"on {'; '.join(on)}: {', '.join(lack)}." for lack, on in lacking.items())
    return f"The columns choose among unequal sets of methods. Not run {' Not run '.join(said)}"


def _alike(methods: Collection[str]) -> set[str]:
    """Return the methods that the headline chooses among, by one name whatever the stream."""
    families = (*RIVALS, *KEEPING)
    chosen = (m for m in methods if family(m) in families and not m.endswith(STOCK))
    return {m.removesuffix(_FIRST) for m in chosen if family(m) not in KEEPING or m == "er"}


def _share(share: float | None) -> Cell:
    return Cell("–" if share is None else f"{100 * share:.0f} %", share)


def _shown(entry: Entry | None, edges: Collection[str], *, name: bool = False) -> Cell:
    if entry is None:
        return Cell("–", None)
    told = [entry.method] if name else []
    if entry.regime != "tuned" and entry.method != REFERENCE:
        told.append("default")
    if entry.diverged:
        told.append(f"{entry.diverged} of {entry.acc.n + entry.diverged} diverged")
    if entry.regime == "tuned" and entry.method in edges:
        told.append("edge")
    text = estimate_cell(entry.acc).text + (f" ({', '.join(told)})" if told else "")
    if entry.versus is not None:
        text += _MARKS[entry.versus.verdict]
    return Cell(text, entry.acc.mean)
