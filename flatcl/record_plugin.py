"""Recording in Avalanche: a recorder of ``flatcl.fluctuations`` for each experience."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from flatcl.fluctuations.record import Recorder, SketchRecorder
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.core import BasePlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

__all__ = ["RecordPlugin"]


# The base without per-step hooks: an empty hook costs a call a step.
class RecordPlugin(BasePlugin):
    """Records each experience of a strategy, with a recorder of its own.

    What it records is the state after the plugins before it in the strategy's list: beside
    ``LDC``, which comes last, the weights before a pull, and in the next increment the pull too.

    Args:
        make: called with the model, after Avalanche has adapted it, and the number of experiences
            trained before; returns the recorder, for instance
            ``lambda model, number: Recorder(model, f"records/{number}")``.

    Attributes:
        recorders: those of the experiences that ended, closed, in order.
    """

    supports_distributed = False

    def __init__(self, make: Callable[[nn.Module, int], Recorder | SketchRecorder]) -> None:
        super().__init__()
        self.recorders: list[Recorder | SketchRecorder] = []
        self._make = make
        self._running: Recorder | SketchRecorder | None = None

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Make the experience's recorder.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        self._close()  # of an experience that an exception ended
        self._running = self._make(strategy.model, strategy.clock.train_exp_counter)

    def after_update(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Record the optimiser's step, if one is due.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self._running is not None
        self._running.step()

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Close the experience's recorder and keep it.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self._running is not None
        self.recorders.append(self._running)
        self._close()

    def _close(self) -> None:
        if isinstance(self._running, Recorder):
            self._running.close()
        self._running = None
