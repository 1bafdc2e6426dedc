"""When a task's last epoch ended: what comes after it is the work of the task's end."""

from __future__ import annotations

import time

from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class EpochClock(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Notes when the latest epoch ended.

    Attributes:
        epoch_ended: by ``time.perf_counter``, seconds; 0 before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch_ended = 0.0

    def after_training_epoch(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Note the time.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        self.epoch_ended = time.perf_counter()
