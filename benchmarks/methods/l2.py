"""L2: every weight is held alike at its value after the latest task."""

from __future__ import annotations

from benchmarks.methods._weights import QuadraticPenalty, weights_of
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class L2Plugin(QuadraticPenalty):
    """The penalty ``½ λ ‖w − w_old‖²`` on the distance from the latest task's weights.

    It keeps P numbers.

    Source: the baseline "L2" of Kirkpatrick et al. 2017, arXiv 1612.00796, fig. 2A, and of Hsu et
    al. 2018, arXiv 1810.12488. Hsu's has no ½, so that a λ of theirs is twice as large here.

    Args:
        l2_lambda: λ ≥ 0, nats/w².
    """

    def __init__(self, l2_lambda: float) -> None:
        super().__init__(l2_lambda / 2)

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Take the weights as the anchor of the tasks to come.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        self.anchor = weights_of(strategy.model)


RIVAL = Rival("l2", "l2_lambda", (1e-3, 1e-2, 0.1, 1.0, 10.0), lambda x, _: [L2Plugin(x)])
"""Hsu et al. find 0.04 on permuted and 0.02, 1 and 200 on split MNIST, in λ as it is here."""
