"""The forecast of forgetting as an Avalanche metric."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

from flatcl.avalanche import LDCPlugin
from flatcl.core.forecast import Forecast
from flatcl.errors import OptionError, StateError
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.evaluation.metric_definitions import PluginMetric  # noqa: E402
from avalanche.evaluation.metric_results import MetricValue  # noqa: E402
from avalanche.evaluation.metric_utils import get_metric_name  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

EmitAt = Literal["experience", "epoch"]

__all__ = ["EmitAt", "ForgettingForecast", "forgetting_forecast_metrics"]


class ForgettingForecast(PluginMetric):  # type: ignore[misc]  # Avalanche ships no types
    """Emits the predicted rise of the earlier experiences' loss, in nats, without their data.

    After an experience one value for each before it, named as Avalanche names a metric of an
    experience (``ForgettingForecast_Exp/train_phase/train_stream/Task000/Exp001``), and at each
    epoch's end their mean. Nothing is emitted while there is no earlier experience, nor with
    strength and witnesses both 0. A forecast that is not to be trusted is still emitted, and warned
    of once. ``LDC(witnesses=512)`` makes it far better: benchmarks/FORECAST.md.

    Args:
        emit_at: "experience" or "epoch".

    Attributes:
        forecasts: all so far, with the flag and the reason of each.

    Raises:
        OptionError: ``emit_at`` is another word.
    """

    def __init__(self, *, emit_at: EmitAt = "experience") -> None:
        super().__init__()
        if emit_at not in get_args(EmitAt):
            raise OptionError(f"emit_at is {emit_at!r}; choose one of {get_args(EmitAt)}")
        self.emit_at = emit_at
        self.forecasts: list[Forecast] = []
        self._warned = False

    def __str__(self) -> str:
        return "ForgettingForecast_Exp" if self.emit_at == "experience" else "ForgettingForecast"

    def reset(self) -> None:
        """Forget the forecasts so far."""
        self.forecasts.clear()

    def result(self) -> Forecast | None:
        """Return the latest forecast.

        Returns:
            The forecast, None if there is none.
        """
        return self.forecasts[-1] if self.forecasts else None

    def after_training_epoch(self, strategy: SupervisedTemplate) -> list[Any] | None:
        """Emit the mean over the earlier experiences; the last minibatch tells how to trust it.

        Args:
            strategy: the strategy that trains.

        Returns:
            One value, or None.
        """
        if self.emit_at != "epoch":
            return None
        found = self._forecast(strategy, running=True)
        if found is None:
            return None
        return [self._value(get_metric_name(self, strategy), found.mean, strategy)]

    def after_training_exp(self, strategy: SupervisedTemplate) -> list[Any] | None:
        """Emit one value for each earlier experience.

        Args:
            strategy: the strategy that trains.

        Returns:
            The values, or None.
        """
        if self.emit_at != "experience":
            return None
        found = self._forecast(strategy, running=False)
        if found is None:
            return None
        prefix = get_metric_name(self, strategy)
        return [
            self._value(f"{prefix}/Exp{number:03d}", rise, strategy)
            for number, rise in enumerate(found.rises[:-1])
        ]

    def _value(self, name: str, value: float, strategy: SupervisedTemplate) -> Any:
        return MetricValue(self, name, value, strategy.clock.train_iterations)

    def _forecast(self, strategy: SupervisedTemplate, *, running: bool) -> Forecast | None:
        plugin = next((p for p in strategy.plugins if isinstance(p, LDCPlugin)), None)
        if plugin is None:
            raise StateError(
                "ForgettingForecast reads LDC's constraints: use it with the LDC strategy or "
                "LDCPlugin"
            )
        landscape = plugin.landscape
        earlier = 0 if landscape is None else landscape.tasks_ended - (not running)
        if landscape is None or earlier < 1:
            return None
        if not (landscape.constraints or landscape.history.witnesses):
            return None
        found = landscape.forecast([strategy.mbatch] if running else None)
        self.forecasts.append(found)
        if not found.trusted and not self._warned:
            self._warned = True
            warnings.warn(
                f"the forecast of forgetting may be far off: {found.reason}", stacklevel=2
            )
        return found


def forgetting_forecast_metrics(
    *, epoch: bool = False, experience: bool = False
) -> list[ForgettingForecast]:
    """Return the metrics for an ``EvaluationPlugin``, in the way of Avalanche's own helpers.

    Args:
        epoch: emit the mean at each epoch's end.
        experience: emit a value for each earlier experience at each experience's end.

    Returns:
        The metrics asked for.
    """
    wanted: list[EmitAt] = []
    if epoch:
        wanted.append("epoch")
    if experience:
        wanted.append("experience")
    return [ForgettingForecast(emit_at=emit) for emit in wanted]
