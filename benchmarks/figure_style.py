"""How the lab's figures look: one colour and mark a method, and SVG that a page can take in."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.families import Family, family, in_order

INK = "#1b1b1b"
"""Text and axes; in an SVG it becomes ``currentColor``, so that it shows on any background."""
GRID = "#8a8a8a"
OWN = "#0072B2"
"""LDC's colour; in an SVG a page may lighten it by its variable ``--own-ink``."""

# Okabe and Ito's colours, told apart by colour-blind readers, less their yellow, which is lost on
# white, and a purple. A family has some of them; marks tell methods apart.
_COLOURS: dict[Family, tuple[str, ...]] = {
    "control": ("#8a8a8a",),
    "ewc": ("#D55E00", "#E69F00"),
    "regulariser": ("#CC79A7", "#56B4E9", "#7B4EA3"),
    "projection": ("#009E73", "#6A8F00"),
    "given": ("#7B4EA3", "#56B4E9"),
    "rehearsal": ("#8C6D1F",),
    "other": ("#8a8a8a",),
    "ldc": (OWN,),
    "bound": (INK,),
}
_MARKS = "osD^vPX<>ph8"


class Styles:
    """Colours and marks of the methods of a report, the same in all of its figures.

    Args:
        methods: all that any figure shows.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self._styles: dict[str, tuple[str, str]] = {}
        count: dict[Family, int] = {}
        for rank, method in enumerate(in_order(set(methods))):
            kind = family(method)
            place = count.get(kind, 0)
            count[kind] = place + 1
            colours = _COLOURS[kind]
            mark = "*" if method == "ldc" else _MARKS[rank % len(_MARKS)]
            self._styles[method] = (colours[place % len(colours)], mark)

    def colour(self, method: str) -> str:
        """Return a method's colour.

        Args:
            method: one of those given.

        Returns:
            As matplotlib takes it.
        """
        return self._styles[method][0]

    def mark(self, method: str) -> str:
        """Return a method's mark.

        Args:
            method: one of those given.

        Returns:
            As matplotlib takes it.
        """
        return self._styles[method][1]


def size_of_mark(method: str) -> float:
    """Return how large a method's mark is drawn.

    Args:
        method: its name.

    Returns:
        Points; LDC's star needs more to look as large.
    """
    return 11.0 if method == "ldc" else 6.0


def frame(axes: Axes, title: str = "") -> None:
    """Give axes a faint grid, no box, and a title to the left.

    Args:
        axes: to dress.
        title: above them.
    """
    axes.set_title(title, fontsize=9.5, loc="left", color=INK)
    axes.grid(color=GRID, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return places for labels that keep a distance, each as near to its own as that allows.

    Neighbours that would touch are set evenly about their common mean, group by group.

    Args:
        places: where the labels belong.
        gap: the least distance of two.

    Returns:
        Where to put them, in the order given.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[list[int]] = []

    def middle(group: list[int]) -> float:
        return sum(places[i] for i in group) / len(group)

    def reach(group: list[int]) -> float:
        return gap * (len(group) - 1) / 2

    for i in order:
        groups.append([i])
        while len(groups) > 1:
            low, high = groups[-2], groups[-1]
            if middle(high) - reach(high) - middle(low) - reach(low) >= gap - 1e-9:
                break
            groups[-2:] = [low + high]
    found = [0.0] * len(places)
    for group in groups:
        for rank, i in enumerate(group):
            found[i] = middle(group) - reach(group) + gap * rank
    return found


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an ``<svg>`` element to stand in a page, always the same text.

    Letters stay letters, the background is the page's, ink is the page's text colour, and every
    id begins with ``name``, so that two figures of a page never share one.

    Args:
        figure: to draw.
        name: unlike that of any other figure of the page; letters, digits and hyphens.

    Returns:
        The element, without XML declaration.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "flatcl", "svg.fonttype": "none"}):
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "system-ui, sans-serif", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(INK, "currentColor", text, flags=re.IGNORECASE)
    text = re.sub(OWN, f"var(--own-ink, {OWN})", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d)\.(\d\d)\d+", r".\1", text)
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)
