"""The lab's report: two pages and a summary, all rendered from the runs as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from benchmarks.about import ProtocolAbout
from benchmarks.against import verdict
from benchmarks.collected import Collected
from benchmarks.contenders import CONTROL, EWC, best
from benchmarks.families import WITHOUT_DATA, in_order
from benchmarks.figure_matrices import accuracy_matrices
from benchmarks.figure_replay import replay_against_memory
from benchmarks.figure_style import Styles, svg
from benchmarks.figure_tuning import search_curves
from benchmarks.figures import (
    accuracy_against_overhead,
    accuracy_over_time,
    forgetting_against_bytes,
)
from benchmarks.headline import headline_table, headline_view, legend
from benchmarks.hours import hours_text
from benchmarks.markers import insert
from benchmarks.noise import noise_sentence, twin_costs
from benchmarks.outcomes import REGIMES, Outcome, Regime, Search
from benchmarks.report_tables import result_view, target_view, tuning_view
from benchmarks.statistics import REFERENCE, table
from benchmarks.summary import write_summary
from benchmarks.targets import Judged, judge
from benchmarks.views import View
from flatcl.errors import DataError
from flatcl.io import write_bytes
from flatcl.tables import markdown_table

TEMPLATES = Path(__file__).parent / "templates"
MEANINGS: dict[Regime, str] = {
    "default": "Every method at the protocol's learning rate and its own or its paper's number, or "
    "where none is taken from these, as its footnote says, at the middle of our grid; nothing was "
    "tuned for a stream, but LDC's defaults were chosen on streams of MNIST and Fashion-MNIST.",
    "tuned": "Each method at the best of its grid on validation images, learning rate included.",
}
READING = (
    "Default regime: every method at the protocol's learning rate and its own or its paper's "
    "number; where none is taken from these (a footnote says so) at the middle of our grid. LDC's "
    "defaults were chosen once, on validation images of MNIST and Fashion-MNIST, not of CIFAR-100, "
    "on streams whose classes come in the order reported here and with all of their tasks "
    "(DEFAULTS.md); the searches of the tuned regime, LDC's too, see other orders of classes and "
    "the first tasks of a long stream. Tuned regime: learning rate "
    "and the method's own number at the best of a grid on validation images, on seeds that are "
    "not reported; a best on an edge of the grid extends it, and what stays there is marked. Each "
    "cell has one run; the three best have two more on seeds of their own, and so have the next "
    "best while one with a single run is above their means; the best of these means is taken: one "
    "run a cell would choose the lucky ones of a method that scatters. "
    "Every method is tried at Naive's best rate too: a penalty of weight 0 is Naive. Settings "
    "chosen on a stream's first tasks or on another stream have to last through the whole one, on "
    "validation images of the search's first repeat; where they diverge there the next best are "
    "taken.",
    "Methods of one seed share stream, order, initial weights and network, so that they are "
    "compared in pairs: paired t-test, p Holm-corrected over all methods of a table, Wilcoxon's "
    "signed-rank test as a check. From p = 0.05 on it is called a tie.",
    "Learning is the accuracy on each task just after it; backward transfer (BWT) the final "
    "accuracy less that, forgetting the fall from the best that a task ever had (Chaudhry's form).",
    "Intransigence is measured from joint training on all tasks: its final accuracy on task j, "
    "same seed, less the accuracy on task j just after it. Joint on the tasks so far is not run.",
    "Runs that diverged are counted and not averaged, which favours the method that they are of.",
    "Seconds are of one run, ends of tasks included, tuning not, on the machine and beside the "
    "load that it met; runs of one table may be days apart. × Naive compares the fastest run of "
    "each, of either regime, since load only slows, on one kind of machine, since kinds differ by "
    "several times; where both have no run on the same kind there is none. It is a rough guide "
    "still; what naive-tuned reads, whose steps are Naive's, is said below each table. "
    "OVERHEAD.md has the cost, measured in turns. Bytes are all that a method keeps between tasks "
    "beside the network itself; samples count as float32.",
    "A published figure is an anchor and enters no test. It is held against ours, two-sided: a "
    "figure far above it is a miss too; one whose tolerance our Naive lies in as well is called "
    "not discriminating. One without a tolerance is shown and not judged, for the "
    "reason that its source line gives.",
    "Generative replay (dgr) stands among the published figures of split MNIST. Of replay of "
    "inner features none was found for these streams: it is published with the convolutional "
    "features of CIFAR-100 (van de Ven, Siegelmann and Tolias 2020).",
)


def write_report(
    outcomes: Sequence[Outcome],
    searches: Sequence[Search],
    about: Mapping[str, ProtocolAbout],
    folder: Path,
) -> None:
    """Write ``README.md``, ``REPORT.html`` and ``summary.json``, and the main page's table.

    Args:
        outcomes: all runs.
        searches: the tuning.
        about: protocols by name, in the order of the report.
        folder: where to; the main page is the ``README.md`` of its parent, if that has a place
            ``<!-- generated: lab -->``.

    Raises:
        DataError: there are no runs, runs of a protocol that ``about`` has not, or runs that
            cannot stand side by side.
    """
    if not outcomes:
        raise DataError("there are no runs to report: make some first")
    names = list(about)
    strange = sorted({run.protocol for run in outcomes} - set(names))
    if strange:
        raise DataError(f"nothing is told about the runs of {strange}: give them in about=")
    outcomes = sorted(outcomes, key=lambda run: names.index(run.protocol))
    collected = Collected(outcomes)
    methods = in_order({run.method for run in outcomes} | {s.method for s in searches})
    styles = Styles(methods)
    known = collected.protocols
    view, paragraphs = headline_view(collected, about, searches), legend(collected, about)
    headline = headline_table(view, paragraphs)
    context = {
        "counts": f"{len(outcomes)} runs of {len(methods)} methods on {len(known)} protocols. "
        + hours_text(outcomes, searches, {name: about[name].part for name in known}),
        "reading": READING,
        "meanings": MEANINGS,
        "regimes": REGIMES,
        "methods": methods,
        "own": REFERENCE,
        "headline": view,
        "headline_text": headline,
        "legend": [re.sub(r"\*+", "", part) for part in paragraphs],
        "sections": [_section(collected, name, about[name], searches, styles) for name in known],
        "missing": [entry.title for name, entry in about.items() if name not in known],
    }
    write_bytes(folder / "README.md", _readme(context).encode())
    write_bytes(folder / "REPORT.html", _page(context).encode())
    write_summary(folder / "summary.json", outcomes, searches)
    insert(folder.parent / "README.md", "lab", headline)


def _section(
    collected: Collected,
    name: str,
    about: ProtocolAbout,
    searches: Sequence[Search],
    styles: Styles,
) -> dict[str, object]:
    judged = _judged(collected, name, about)
    chosen_on = about.settings_of or name
    by_method = {search.method: search for search in searches if search.protocol == chosen_on}
    searches = [search for search in searches if search.protocol == name]
    return {
        "name": name,
        "title": about.title,
        "kind": f"{about.kind}-incremental"
        if about.kind in {"task", "domain", "class"}
        else about.kind,
        "description": about.description,
        "follows": about.follows.rstrip("."),
        "departs": about.departs,
        "verdict": verdict(collected, name),
        "tables": [
            {
                "regime": regime,
                "view": result_view(collected, name, regime, by_method, judged, about),
            }
            for regime in collected.regimes(name)
        ],
        "figures": _figures(collected, name, about.title, searches, styles),
        "targets": target_view(judged) if judged else None,
        "tuning": tuning_view(searches) if searches else None,
    }


def _judged(collected: Collected, name: str, about: ProtocolAbout) -> list[Judged]:
    reached: dict[Regime, dict[str, float | None]] = {
        regime: {e.method: e.acc.mean if e.acc else None for e in table(collected, name, regime)}
        for regime in collected.regimes(name)
    }
    return judge(about.targets, reached)


def _figures(
    collected: Collected, name: str, title: str, searches: Sequence[Search], styles: Styles
) -> list[dict[str, object]]:
    regimes = collected.regimes(name)
    last = regimes[-1]
    lines = table(collected, name, last)
    rivals = [best(collected, name, families) for families in (CONTROL, EWC, WITHOUT_DATA)]
    chosen = [*(entry.method for entry in rivals if entry), "er", REFERENCE]
    shown = [method for method in chosen if method in collected.methods(name, last)]
    drawn: list[tuple[str, str, str, Figure | None]] = [
        (
            f"time-{regime}",
            regime,
            f"Mean accuracy over the tasks seen so far, {regime} regime. The vertical axis does "
            "not start at 0; joint training is the dashed level.",
            accuracy_over_time(collected, name, regime, styles),
        )
        for regime in reversed(regimes)
    ]
    drawn += [
        (
            "overhead",
            last,
            f"ACC, {last} regime, against the fastest run's seconds relative to Naive's; bars are "
            "95 % intervals, the dotted line is Naive's cost, the shade what its steps read at "
            f"other times. {noise_sentence(collected, name)}".rstrip(),
            accuracy_against_overhead(lines, styles, list(twin_costs(collected).values())),
        ),
        (
            "bytes",
            last,
            f"Forgetting against the bytes held after the last task, {last} regime; bars are "
            "95 % intervals.",
            forgetting_against_bytes(lines, styles),
        ),
        (
            "replay",
            "default",
            "ACC against the size of a replay buffer, alone and beside LDC, default regime; bars "
            "are 95 % intervals. The dotted line is where replay alone overtakes LDC without one.",
            replay_against_memory(collected, name, "default", styles),
        ),
        (
            "matrix",
            last,
            f"Accuracy on every task after every task, mean over seeds, {last} regime.",
            accuracy_matrices(collected, name, last, shown),
        ),
        (
            "search",
            "tuned",
            "What tuning saw: validation ACC by the method's own number, each at the best learning "
            "rate tried with it; the best cells by their mean over three repeats, the others by "
            "one. The ring is the best of these means, a cross a value that only diverged.",
            search_curves(searches, styles),
        ),
    ]
    return [
        {
            "regime": regime,
            "broad": kind in {"matrix", "search"},
            "caption": caption,
            "svg": _labelled(svg(figure, f"{name}-{kind}"), f"{title}: {caption}"),
        }
        for kind, regime, caption, figure in drawn
        if figure is not None
    ]


def _labelled(element: str, label: str) -> str:
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = _markdown
    return environment


def _markdown(view: View) -> str:
    rows = [
        [
            f"**{text}**" if row.key == REFERENCE and place == 0 else text
            for place, text in enumerate(row.texts())
        ]
        for row in view.rows
    ]
    text = markdown_table([column.title for column in view.columns], rows)
    notes = [f"[{number}] {note}" for number, note in enumerate(view.notes, 1)]
    notes = [*view.remarks, *notes]
    return "\n\n".join([text, "  \n".join(notes)] if notes else [text])


def _readme(context: Mapping[str, object]) -> str:
    text = _environment(html=False).get_template("README.md.j2").render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _page(context: Mapping[str, object]) -> str:
    parts = {
        kind: (TEMPLATES / f"report.{kind}").read_text(encoding="utf-8").strip()
        for kind in ("css", "js")
    }
    text = _environment(html=True).get_template("report.html.j2").render({**context, **parts})
    return text.strip() + "\n"
