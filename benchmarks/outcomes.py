"""What the lab's report is made from: finished runs and finished searches, whatever made them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Regime = Literal["default", "tuned"]
REGIMES: tuple[Regime, ...] = ("default", "tuned")


@dataclass(frozen=True)
class Outcome:
    """One reported run.

    Attributes:
        protocol: its name, as of the file in ``protocols/``.
        regime: "default", every method at its own or its paper's settings, nothing tuned for
            a stream; "tuned", each at the best of its grid on validation images.
        method: its name.
        settings: learning rate as "lr", and the method's own number by its name.
        seed: the repeat's; methods of one repeat share stream, order and initial weights.
        status: "done" or "diverged"; of a diverged run the matrices end where it did.
        accuracy: R[i][j] on task j's test images after task i, 0 … 1; None for rows not measured
            (all but the last for joint training).
        seconds: by phase: "training" with all that a method does in its steps, "task_end" what it
            does once a task.
        bytes_held: kept between tasks, after the first task and after the last.
        machine: the kind that the run was made on; None where its record does not name it.
    """

    protocol: str
    regime: Regime
    method: str
    settings: dict[str, float]
    seed: int
    status: Literal["done", "diverged"]
    accuracy: list[list[float] | None]
    seconds: dict[str, float]
    bytes_held: tuple[int, int] | None
    machine: str | None = None

    @property
    def taken(self) -> float:
        """Seconds, all phases together."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Tried:
    """One cell of a search: settings and what they reached.

    Attributes:
        settings: learning rate as "lr", and the method's own number by its name.
        acc_val: mean ACC on validation images over its repeats, 0 … 1; a run that diverged is 0.
        seconds: they took in all.
        repeats: 1, and more for the finalists, among which the best is chosen.
    """

    settings: dict[str, float]
    acc_val: float
    seconds: float
    repeats: int


@dataclass(frozen=True)
class Search:
    """The tuning of one method on one protocol.

    Attributes:
        protocol: its name.
        method: its name.
        tried: all cells.
        chosen: the best one's settings.
        on_edge: axes on whose edge the best lies although the grid was extended as far as allowed.
    """

    protocol: str
    method: str
    tried: list[Tried]
    chosen: dict[str, float]
    on_edge: tuple[str, ...] = field(default=())
