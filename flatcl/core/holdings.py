"""What a landscape holds of the tasks that have ended, on which model, and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from flatcl.core.checkpoint import bytes_of
from flatcl.core.constraint import Constraint
from flatcl.core.describe import Description, Holding, describe
from flatcl.core.distributed import Peers
from flatcl.core.forecast import History
from flatcl.core.gaussians import InputGaussians
from flatcl.core.gradients import Forward
from flatcl.core.growth import Network
from flatcl.core.layers import Unit, matrix_views, trained_parameters
from flatcl.core.metric import StepMetric
from flatcl.core.network import NetworkConstraint
from flatcl.core.options import LDCOptions
from flatcl.core.record import Kept
from flatcl.core.saved import State
from flatcl.core.state import state_of, take_up
from flatcl.core.statistics import MixedStatistics, running_statistics
from flatcl.core.task import RunningTask
from flatcl.core.unheld import frozen, holdings_of, unreached
from flatcl.core.wrappers import unwrapped
from flatcl.errors import StateError


class Holdings:
    """The constraints of a model's earlier tasks, and what is known of them.

    ``Landscape`` adds the life of a task, and tells what the arguments are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        options: LDCOptions | None = None,
        forward: Forward | None = None,
        network: NetworkConstraint | None = None,
    ) -> None:
        self.options = options or LDCOptions()
        self.forward: Forward = forward or self._of_inputs
        self.network = network
        self.metric = StepMetric(optimizer)
        self._task: RunningTask | None = None
        self.attach(model, optimizer)
        self.constraints: dict[str, Constraint] = {}
        self.tasks_ended = 0
        self.probe_scale: float | None = None
        self.generator = torch.Generator().manual_seed(self.options.seed)
        self.history = History()
        self.inputs = InputGaussians()
        self.frozen_until: dict[str, int] = {}
        self._dtype: torch.dtype | None = None
        self._layout()

    @property
    def task(self) -> RunningTask | None:
        """The running task; meanwhile running statistics may be mixed, and optimisers watched."""
        return self._task

    @task.setter
    def task(self, task: RunningTask | None) -> None:
        if self._task is not None:
            self._task.release_()
        if task is not None:
            task.begin_()
        self._task = task

    def attach(
        self, model: nn.Module, optimizer: Optimizer, *, group: ProcessGroup | None = None
    ) -> None:
        """Go on with another model or optimiser object, between tasks.

        Needed wherever the loop makes a new one: pulls go by the learning rates and the state of
        the optimiser known here.

        Args:
            model: the network; parameters are known by their names. If it is wrapped in
                ``DistributedDataParallel``, all its processes take part in ``end_task``.
            optimizer: the one that trains it.
            group: of the processes that train the model, where something else wraps it, as a
                trainer does; None where ``model`` tells.

        Raises:
            StateError: a task is running, and the model or the optimiser is not the one that it
                began with, which it goes on pulling.
        """
        if self.task is not None:
            other = unwrapped(model) is not self.model
            if other or optimizer is not self.metric.optimizer:
                raise StateError(
                    f"a task is running that began with another {'model' if other else 'optimiser'}"
                    ": attach after end_task or abandon_task, before begin_task"
                )
        self.model: nn.Module = unwrapped(model)
        self.peers = Peers(model, group)
        if self.metric.optimizer is not optimizer:
            self.metric = StepMetric(optimizer)

    def energy(self) -> Tensor:
        """Return Σ ½ xᵀKx over all units, the predicted rise of the earlier tasks' loss.

        Returns:
            A scalar, nats, on the model's device.
        """
        total = self._present().energy(self.constraints)
        return total if self.network is None else total + self.network.energy(self.parameters)

    def bytes_held(self) -> int:
        """Return the bytes kept between tasks; the number of tasks is no matter.

        Returns:
            Bytes of bases, stiffness, anchors, Gaussians of inputs and witnesses, without the model
            and its optimiser.
        """
        apart = self.inputs.bytes_held() + self.history.bytes_held() + self._bytes_of_network()
        return bytes_of(self.constraints) + apart

    def describe(self) -> Description:
        """Return how every parameter is held, or why it is not; ``print`` shows a table.

        Returns:
            One line a parameter, with the bytes held after a task; before one, those to come. Last
            running statistics, and the inputs, witnesses and a network constraint, once a task has
            ended; and parameters that some ended tasks are not held in.
        """
        units, others = matrix_views(self.model), []
        if statistics := running_statistics(self.model):
            number = sum(buffer.numel() for buffer in statistics.values())
            share = self.options.use_hold_statistics
            held = f"share {share:g}, BatchNorm's, from the second task on" if share else "not held"
            others.append(Holding("running statistics", (number,), held, 0))
        if witnesses := [w for w in self.history.witnesses if w is not None]:
            number = sum(len(w.expected) for w in witnesses)
            size = self.history.bytes_held()
            others.append(Holding("witnesses", (number,), "for the forecast", size))
        if (size := self._bytes_of_network()) > 0:
            weights = sum(p.numel() for p in self.parameters.values())
            others.append(Holding("all parameters", (weights,), "by a network constraint", size))
        others += holdings_of(self._unreached(), self.model, self.constraints)
        return describe(self.model, units, self.constraints, self.options, self.inputs, others)

    def state_dict(self) -> State:
        """Return all that is held, a running task's progress included, for ``torch.save``.

        With the states of the model, the optimiser and its scheduler, taken after the same
        ``step``, training goes on bit for bit.

        Returns:
            Tensors, numbers, strings, lists, None and dicts keyed by parameter name. Later steps
            do not change it: constraints are never written to, the rest is copied. A running task
            under a network constraint is a StateError: save between tasks.
        """
        return state_of(self)

    def load_state_dict(self, state: State) -> None:
        """Take up a saved state; the model must have the parameters that it names.

        If a task was running, it goes on: call ``step`` next, not ``begin_task``. Options that
        differ from this landscape's are named in a warning; this landscape's count.

        Args:
            state: from ``state_dict``.

        Raises:
            StateError: a task is running, the version is unknown, a parameter is missing, a
                shape does not fit, or only one of the two has a network constraint; nothing is
                changed then.
        """
        if self.task is not None:
            raise StateError(
                "a task is running: load a state between tasks, or call abandon_task to forget it"
            )
        self._layout()
        take_up(self, state)

    def views(self) -> dict[str, Tensor]:
        """Return the weights as the constraints see them.

        Returns:
            Each unit's view by its name, w.
        """
        return {unit.name: unit.gather(self.parameters).detach() for unit in self._units}

    def begun(
        self,
        constraints: Mapping[str, Constraint],
        tasks_ended: int,
        steps: int | None,
        statistics: MixedStatistics,
    ) -> RunningTask:
        """Return a task that begins at the present weights.

        Args:
            constraints: of the tasks before it, by unit's name.
            tasks_ended: their number.
            steps: the task's length, if known.
            statistics: mixed while it runs.

        Returns:
            The task.
        """
        return RunningTask(
            self.model,
            self._units,
            self.parameters,
            constraints,
            self.metric,
            self.options,
            strength=self.options.strength_over(tasks_ended),
            earlier=tasks_ended,
            steps=steps,
            statistics=statistics,
            network=self.network,
        )

    def _kept(self) -> Kept:
        """Return what is held, to be added to: nothing here changes with it."""
        inputs, history = self.inputs.to(self._device), self.history.to(self._device)
        return Kept(dict(self.constraints), history, inputs, self.probe_scale)

    def _take_over(self, kept: Kept) -> None:
        """Hold this from now on; a task has ended."""
        self.constraints, self.history, self.inputs, self.probe_scale, self.tasks_ended = (
            kept.constraints,
            kept.history,
            kept.inputs,
            kept.probe_scale,
            self.tasks_ended + 1,
        )
        self.frozen_until |= dict.fromkeys(frozen(self.model), self.tasks_ended)

    def _bytes_of_network(self) -> int:
        held = [] if self.network is None else self.network.state_dict().values()
        return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))

    def _of_inputs(self, batch: Sequence[Tensor]) -> Tensor:
        outputs: Tensor = self.model(batch[0])
        return outputs

    def _unreached(self) -> dict[str, float]:
        return unreached(self.model, self.constraints, self.frozen_until)

    def _layout(self) -> None:
        self._units: list[Unit] = matrix_views(self.model)
        self.parameters = trained_parameters(self.model)
        first = next(iter(self.parameters.values()))
        # Inputs that came in the weights' dtype go on in it.
        cast = {} if self._dtype is None else {self._dtype: first.dtype}
        self._device, self._dtype = first.device, first.dtype
        self.inputs = self.inputs.to(self._device, cast)
        self.history = self.history.to(self._device, cast)
        for unit in self._units:
            if (held := self.constraints.get(unit.name)) is not None:
                weight = unit.gather(self.parameters).detach()
                self.constraints[unit.name] = held.to(weight.device).grown_to(weight)

    def _present(self) -> Network:
        device = next(iter(self.parameters.values())).device
        if device != self._device and self.task is None:  # moved since the last task
            self._layout()
        return Network(self.model, self._units, self.parameters, self.forward)
