"""What the report tells of a protocol besides its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.protocol_files import Kind, Part
from benchmarks.targets import Target


@dataclass(frozen=True)
class ProtocolAbout:
    """A protocol in words.

    Attributes:
        title: of its section.
        description: one line: stream, network, optimiser, epochs.
        follows: whose protocol it is.
        departs: where it departs from that, and why; empty if nowhere.
        kind: how its tasks differ.
        targets: published figures, each (method, published, tolerance, source).
        methods: that it compares; a table names those of them that have no run in it.
        part: of the lab.
        data: name of the data set.
        guessed: methods whose number, where nothing is tuned, is the middle of the lab's grid.
        settings_of: the protocol whose searches chose the tuned settings; None if its own.
    """

    title: str
    description: str
    follows: str
    departs: str
    kind: Kind
    targets: Sequence[Target] = ()
    methods: Sequence[str] = ()
    part: Part = "short"
    data: str = ""
    guessed: Sequence[str] = ()
    settings_of: str | None = None
