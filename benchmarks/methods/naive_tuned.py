"""Naive training whose learning rate decays from task to task, the core of Stable SGD."""

from __future__ import annotations

from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class DecayPlugin(SupervisedPlugin):
    """Learning rates lr · γ^(t−1) in task t, with γ = 1 / (1 + decay).

    Each parameter group decays from the rate that it had when it was first seen, whatever the
    optimiser. The rate of the last task stays in the optimiser when training ends, and a rate
    that another scheduler set within a task is overwritten when the next one begins.

    Source: Mirzadeh et al. 2020, arXiv 2006.06958, section 4 (Stable SGD: large initial rate,
    decay, dropout, small batches). Departure: of the four only the decay is the method here;
    the initial rate is tuned for every method, network and batch size are the stream's, so that
    runs pair. γ is written as 1 / (1 + decay) because the tuned number of a method is any finite
    number ≥ 0 on a grid of equal ratios, and 0 is plain Naive.

    Args:
        decay: 1/γ − 1, ≥ 0; the paper's γ between 0.4 and 0.9 are 1.5 to 0.11.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.factor = 1 / (1 + decay)
        self.tasks = 0
        self.first_rates: list[float] = []

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Set the task's learning rates."""
        groups = strategy.optimizer.param_groups
        self.first_rates += [group["lr"] for group in groups[len(self.first_rates) :]]
        for group, rate in zip(groups, self.first_rates, strict=True):
            group["lr"] = rate * self.factor**self.tasks
        self.tasks += 1


# γ = 0.91, 0.77, 0.5, 0.25, 0.09
RIVAL = Rival(
    "naive-tuned", "decay", (0.1, 0.3, 1.0, 3.0, 10.0), lambda value, _: [DecayPlugin(value)]
)
