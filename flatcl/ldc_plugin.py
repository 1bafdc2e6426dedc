"""``LDCPlugin``: LDC in any Avalanche strategy.

A thin adapter: hooks are translated into calls of ``flatcl.core.engine.Landscape``, nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatcl.core.describe import Description
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.core.shown import Shown
from flatcl.errors import OptionError, StateError
from flatcl.experience import boundary_of, random_batches, steps_of
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.core import BasePlugin  # noqa: E402
from avalanche.models import avalanche_forward  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

_OPTIONS = tuple(field.name for field in fields(LDCOptions))


class LDCPlugin(BasePlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Adds LDC to a strategy; it needs no argument.

    Any template serves that calls ``before_training_exp``, ``before_backward``, ``after_update``,
    ``after_training_exp``, ``before_eval`` and ``after_eval``; ``before_forward`` and
    ``after_forward`` save time. One plugin object serves one
    strategy.
    On several processes, wrap the model in ``DistributedDataParallel``.

    Args:
        **options: fields of ``flatcl.LDCOptions``.

    Raises:
        OptionError: an option is unknown or out of its range.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise OptionError(f"LDC has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}")
        self.options = LDCOptions(**options)
        self.landscape: Landscape | None = None
        self._owner: SupervisedTemplate | None = None
        self._shown, self._pass = Shown(), ExitStack()
        self._seen: list[Any] = []  # data of the running task, in parts if it comes as a stream

    def __getstate__(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the strategy that loads it becomes the owner.

        Returns:
            Attributes by name.
        """
        return {**vars(self), "_owner": None, "_shown": None, "_pass": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what ``__getstate__`` returned.

        Args:
            state: attributes by name.
        """
        self.__dict__.update(state)
        self._shown, self._pass = Shown(), ExitStack()

    def _forward(self, batch: Sequence[Tensor]) -> Tensor:
        assert self.landscape is not None
        outputs: Tensor = avalanche_forward(self.landscape.model, batch[0], batch[-1])
        return outputs

    def fit(self, model: nn.Module, batches: Iterable[Sequence[Tensor] | Tensor]) -> None:
        """Take a pretrained model as task zero, before the strategy trains it.

        Args:
            model: the strategy's, on the device where it will be trained.
            batches: as of ``Landscape.fit``; the last part of each the task labels, if it needs
                them.

        Raises:
            StateError: an experience has been trained on, or ``fit`` was called before.
        """
        if self.landscape is not None:
            raise StateError("fit comes once, before the first experience: make a new LDCPlugin")
        # The strategy's own optimiser takes this one's place; none is needed to fit.
        self.landscape = self._landscape(model, SGD(model.parameters(), lr=0.0))
        try:
            self.landscape.fit(batches)
        except BaseException:
            self.landscape = None
            raise

    def _landscape(self, model: nn.Module, optimizer: Optimizer) -> Landscape:
        return Landscape(model, optimizer, options=self.options, forward=self._forward)

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Begin a task, after Avalanche has adapted the model and the optimiser.

        One whose training was interrupted is given up with a warning, unless the experience is a
        further piece of it; the weights are taken as they are now.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.

        Raises:
            StateError: the plugin already serves another strategy.
        """
        if self._owner is not None and self._owner is not strategy:
            raise StateError(
                "this LDCPlugin already holds the tasks of another strategy: make one LDCPlugin "
                "for each strategy"
            )
        self._owner = strategy
        if self.landscape is None:
            self.landscape = self._landscape(strategy.model, strategy.optimizer)
        self._pass.close()  # of a pass that failed
        self._shown.give_up(self.landscape.model)
        boundary = boundary_of(strategy.experience, 1)
        if boundary.first:
            self._give_up()
            self.landscape.attach(strategy.model, strategy.optimizer)
            steps = steps_of(strategy, self.options) if boundary.last else None
            self.landscape.begin_task(steps)
            self._seen = []
        self._seen.append(strategy.experience.dataset.eval())

    def _give_up(self) -> None:
        assert self.landscape is not None
        if self.landscape.task is not None:
            warnings.warn(
                f"the training of task {self.landscape.tasks_ended} was interrupted: what it "
                "learned is not held, and the task that begins now counts in its place",
                stacklevel=3,
            )
            self.landscape.abandon_task()

    def before_forward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Let the coming pass of the network serve the rehearsal too.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        self._pass.close()  # of a pass that failed
        self._pass.enter_context(self.landscape.joining())

    def after_forward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Look at the pass that was made.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        self._pass.close()

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Add the rehearsal of the earlier tasks to the loss.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        strategy.loss = strategy.loss + self.landscape.rehearsal()

    def after_update(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Count the optimiser's step; pull where one is due; stop where the budget says so.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        self.landscape.step(len(strategy.mb_y) * self.landscape.peers.size)
        if self.landscape.over_budget:
            strategy.stop_training()

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """End the task: centre, measure, merge.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        if boundary_of(strategy.experience, len(self._seen)).last:
            peers, generator = self.landscape.peers, self.landscape.generator
            self.landscape.end_task(
                random_batches(
                    self._seen, self.options, generator, rank=peers.rank, size=peers.size
                )
                if self.options.source != "sgd"
                else None
            )
            self._seen = []
        if self.options.budget is not None and self.options.on_budget == "stop":
            # Avalanche clears the mark only when another epoch would have begun.
            strategy._stop_training = False

    def before_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Show pulled weights to an evaluation in mid-task.

        Args:
            strategy: the strategy that evaluates.
            **kwargs: unused.
        """
        if self.landscape is not None:
            self._shown.give_up(self.landscape.model)  # after an evaluation that failed
            self._shown.show(self.landscape)

    def after_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put the training's weights back, bit for bit.

        Args:
            strategy: the strategy that evaluates.
            **kwargs: unused.
        """
        self._shown.put_back()

    def bytes_held(self) -> int:
        """Return the bytes kept between tasks, constant in their number.

        Returns:
            Bytes, without the model and its optimiser.
        """
        return 0 if self.landscape is None else self.landscape.bytes_held()

    def describe(self) -> Description:
        """Return how every parameter of the model is held; ``print`` shows a table.

        Returns:
            One line a parameter.

        Raises:
            StateError: no task has begun.
        """
        if self.landscape is None:
            raise StateError("no task has begun: call describe() after the first train()")
        return self.landscape.describe()
