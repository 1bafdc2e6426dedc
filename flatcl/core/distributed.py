"""One model trained by several processes: what they must agree on when a task ends.

Under ``DistributedDataParallel`` every process has the same weights and the same averaged
gradients, and a pull depends on the weights alone, so that nothing need be sent while a task runs.
At its end each process has seen its own share of the data: the shares are joined, each process
measures the whole, and the first one's result counts, so that a kernel whose sums come in any order
cannot let the processes drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flatcl.core.batches import tensors_of
from flatcl.core.constraint import Constraint


class Peers:
    """The processes that train one model together; a single one for a model that is not wrapped.

    Args:
        model: as the user trains it.
        group: of the processes, where a trainer has wrapped the model out of sight; None for the
            wrapper's own.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        self._wrapper = model if isinstance(model, DistributedDataParallel) else None
        if group is None and self._wrapper is not None:
            group = self._wrapper.process_group
        self._group = group

    @property
    def size(self) -> int:
        """The number of processes."""
        return 1 if self._group is None else dist.get_world_size(self._group)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return 0 if self._group is None else dist.get_rank(self._group)

    def silent(self) -> AbstractContextManager[object]:
        """Let gradients be taken through the wrapper while the body runs, without averaging them.

        Returns:
            A context.
        """
        return nullcontext() if self._wrapper is None else self._wrapper.no_sync()

    def joined(
        self, batches: Iterable[Sequence[Tensor] | Tensor], device: torch.device
    ) -> Iterable[Sequence[Tensor] | Tensor]:
        """Return the batches of all processes, joined batch by batch, the same in each process.

        Inputs alternate between the processes, as ``DistributedSampler`` deals them out, so that
        the joined batches are those that one process would have read. Batches whose inputs differ
        in shape, as sentences padded by the batch do, follow one another instead. They end with the
        shortest share.

        Args:
            batches: of this process.
            device: of the model; batches are sent from there.

        Returns:
            The joined batches; ``batches`` itself for a single process.
        """
        return self._join(batches, device) if self.size > 1 else batches

    def _join(
        self, batches: Iterable[Sequence[Tensor] | Tensor], device: torch.device
    ) -> Iterator[list[Tensor]]:
        iterator = iter(batches)
        while True:
            batch = next(iterator, None)
            parts = [] if batch is None else [part.to(device) for part in tensors_of(batch)]
            own = torch.tensor([len(parts[0]) if parts else 0], device=device)
            lengths = torch.cat(self._all(own))
            longest = int(lengths.max())
            if int(lengths.min()) == 0:
                return
            shape = torch.tensor([side for part in parts for side in part.shape[1:]], device=device)
            if all(torch.equal(shape, other) for other in self._all(shape)):
                present = torch.arange(longest, device=device)[:, None] < lengths
                yield [self._alternating(part, longest)[present] for part in parts]
            else:
                for rank in range(self.size):
                    yield [self._sent(part, rank) for part in parts]

    def _alternating(self, part: Tensor, longest: int) -> Tensor:
        """Return [longest, processes, …], the n-th input of each process side by side."""
        padded = part.new_zeros((longest, *part.shape[1:]))
        padded[: len(part)] = part
        return torch.stack(self._all(padded), dim=1)

    def _sent(self, part: Tensor, rank: int) -> Tensor:
        """Return one process's part, in each process."""
        shape = torch.tensor(part.shape, device=part.device)
        self._broadcast(shape, rank)
        found = part.contiguous() if rank == self.rank else part.new_empty(shape.tolist())
        self._broadcast(found, rank)
        return found

    def _broadcast(self, tensor: Tensor, rank: int) -> None:
        assert self._group is not None  # a single process sends nothing
        dist.broadcast(tensor, src=dist.get_global_rank(self._group, rank), group=self._group)

    def _all(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor, group=self._group)
        return found

    @torch.no_grad()
    def adopt_(self, tensors: Iterable[Tensor]) -> None:
        """Set tensors to those of the first process, in place.

        Args:
            tensors: of equal shapes in every process.
        """
        if self.size == 1:
            return
        for tensor in tensors:
            sent = tensor.contiguous()
            self._broadcast(sent, 0)
            if sent is not tensor:
                tensor.copy_(sent)

    def adopt_constraint_(self, constraint: Constraint) -> None:
        """Set a constraint to the first process's, in place.

        Args:
            constraint: this process's, of equal shapes in every process.
        """
        sides = (constraint.basis.U_out, constraint.basis.U_in) if constraint.basis else ()
        self.adopt_((*sides, constraint.stiffness, constraint.anchor))
