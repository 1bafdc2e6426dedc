"""Pseudo-rehearsal: the earlier tasks' loss beyond its quadratic forecast, without their data.

A quadratic constraint is exact near its anchor; along the way of a whole task units switch on and
off, and the forecast falls short. Here the old network itself is asked. At pseudo-inputs x̃, drawn
from Gaussians of the earlier tasks' inputs (``gaussians``), the predictions p of the network as it
was when the task began are compared with the present ones q:

    R = ⟨KL(p(x̃) ‖ q(x̃))⟩,

in nats like the loss that it is added to. It is the mean rise of the earlier tasks' cross-entropy
where the pseudo-inputs stand for their inputs and p for their labels. The constraint holds what the
Gaussians miss, R what the quadratic misses. Its weight is 1 however many the tasks: the sum over
tasks would be the exact weight, and would cross the stability limit of a learning rate chosen for
the new task's loss.

For the same reason R is limited: where it exceeds L = ``LIMIT``, the loss is R · L / R₀, R₀ being
its value, a constant. Its gradient grows like √R, and a step of SGD that overshoots at a large R
meets a larger one: rates at which plain SGD learns ran away, most often right after a pull, when
the new task's gradient is large too. Above L the gradient keeps its direction; below it the loss is
R itself.

Source: pseudo-rehearsal, Robins, Connection Science 7 (1995) 123–146; distillation, Hinton et al.,
arXiv 1503.02531 (2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from flatcl.core.gaussians import InputGaussians
from flatcl.core.gradients import Forward, evaluation_mode, outputs_of
from flatcl.core.predictions import floats_an_input, log_predictions, predictions_at
from flatcl.core.riders import Ride, rides_free
from flatcl.core.saved import State, entry
from flatcl.errors import StateError

LIMIT = 0.5  # nats
_POOL = 1024  # pseudo-inputs a task, visited in turn
_POOL_FLOATS = 2**24  # of inputs and of predictions, at most, whatever the size of one


class Rehearsal:
    """One task's rehearsal of the tasks before it.

    A handful of rows costs what its operations cost to launch, so all but −⟨p log q⟩ is made
    beforehand.

    Args:
        parts: a pool of pseudo-inputs, with the batch's other parts.
        p: of the old network there over the rows of a visit, [visits, number · … · C].
        constants: ⟨p log p⟩ of each visit, nats.
        number: pseudo-inputs a step.
        free: with how many arguments the network must be called for pseudo-inputs to ride along
            with a batch; 0 if they may not. See ``riders``.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        p: Tensor,
        constants: Sequence[float],
        *,
        number: int,
        free: int,
    ) -> None:
        self.parts, self.number, self.free = list(parts), number, free
        self._p, self._constants = p, list(constants)
        self._limit = torch.tensor(LIMIT, dtype=p.dtype, device=p.device)
        self._ride: tuple[int, Ride] | None = None  # the step it is of, and what it brought

    @classmethod
    def against(
        cls, parts: Sequence[Tensor], expected: Tensor, *, number: int, free: int
    ) -> Rehearsal:
        """Return the rehearsal of a pool at which the old network's predictions are known.

        Args:
            parts: see above.
            expected: log p there, [n, …, C].
            number: see above.
            free: see above.

        Returns:
            The rehearsal.
        """
        visits = len(expected) // number
        p = expected.exp().reshape(visits, -1)
        p /= p.shape[1] // expected.shape[-1]
        constants = (p * expected.reshape(visits, -1)).sum(1).tolist()
        return cls(parts, p, constants, number=number, free=free)

    @classmethod
    def begun(
        cls,
        gaussians: InputGaussians,
        model: nn.Module,
        forward: Forward,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Rehearsal:
        """Return the rehearsal of a task that begins at the present weights.

        Args:
            gaussians: of the earlier tasks' inputs, of one group at least.
            model: the network, whose modes are left as they are.
            forward: from a batch to outputs [..., C].
            number: pseudo-inputs a step, ≥ 1.
            generator: on the CPU.

        Returns:
            The rehearsal.
        """
        visits = max(1, min(_POOL, _POOL_FLOATS // math.prod(gaussians.shape)) // number)
        parts = gaussians.draw(visits * number, generator)
        some = [part[:number].clone() for part in parts]
        floats = floats_an_input(model, forward, some)
        fewer = max(1, _POOL_FLOATS // floats // number)
        if fewer < visits:
            parts = [part[: fewer * number].clone() for part in parts]
        expected = predictions_at(model, forward, parts, floats=floats)
        free = rides_free(model, forward, some)
        return cls.against(parts, expected, number=number, free=free)

    def joined(self, model: nn.Module, step: int) -> AbstractContextManager[object]:
        """Let the next pass of the network carry the step's pseudo-inputs along, if it can.

        Args:
            model: the network.
            step: steps made in the task.

        Returns:
            A context, for the pass.
        """
        if not self.free:
            return nullcontext()
        ride = Ride(model, self._at(step), self.free)
        self._ride = step, ride
        return ride

    def loss(self, model: nn.Module, forward: Forward, step: int) -> Tensor:
        """Return the limited R at a step, to be differentiated.

        Args:
            model: the network, in evaluation mode meanwhile.
            forward: from a batch to outputs [..., C].
            step: steps made in the task.

        Returns:
            A scalar, nats, ``LIMIT`` at most: R at the step's pseudo-inputs.
        """
        ride, self._ride = self._ride, None  # one of an earlier step would be of other weights
        outputs = None if ride is None or ride[0] != step else ride[1].outputs
        if outputs is None:
            with evaluation_mode(model):
                outputs = outputs_of(forward, self._at(step))
        visit = step % len(self._p)
        found: Tensor = self._constants[visit] - torch.dot(
            log_predictions(outputs).flatten(), self._p[visit]
        )
        return found * (self._limit / found.detach().clamp_min(LIMIT))

    def _at(self, step: int) -> list[Tensor]:
        """Return the pseudo-inputs of a step."""
        start = step % len(self._p) * self.number
        return [part[start : start + self.number] for part in self.parts]

    def state_dict(self) -> State:
        """Return it as plain state.

        Returns:
            The pool, which is never written to.
        """
        return {
            "parts": self.parts,
            "p": self._p,
            "constants": self._constants,
            "number": self.number,
            "free": self.free,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Rehearsal:
        """Return what ``state_dict`` encoded.

        Args:
            state: its result; of an earlier flatcl with ``expected`` in place of ``p``.
            device: of the model.

        Returns:
            The rehearsal.

        Raises:
            StateError: something is missing or of a shape that does not fit.
        """
        what = "rehearsal"
        parts = [part.to(device) for part in entry(state, "parts", what)]
        number, free = int(entry(state, "number", what)), int(entry(state, "free", what))
        if "expected" in state:
            return cls.against(parts, state["expected"].to(device), number=number, free=free)
        p, constants = entry(state, "p", what).to(device), entry(state, "constants", what)
        if p.dim() != 2 or {len(constants) * number} != {len(p) * number, *map(len, parts)}:
            raise StateError(
                f"the saved {what} has predictions {tuple(p.shape)} and {len(constants)} constants "
                f"for {[len(part) for part in parts]} pseudo-inputs, {number} a step: save it anew"
            )
        return cls(parts, p, constants, number=number, free=free)
