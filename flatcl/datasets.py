"""Avalanche classification data sets that answer whole batches by one tensor indexing.

Avalanche fetches samples one by one, which costs more than a small network's step. The data sets
here are Avalanche's own kind, so that every plugin works on them, and also answer whole batches:
to torch's DataLoader (``__getitems__``) and to a ``Feed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import default_collate

from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.seeds import derive_seed
from flatcl.views import TaskImages

ensure_avalanche()
from avalanche.benchmarks.utils import (  # noqa: E402
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import TaskLabels  # noqa: E402
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData  # noqa: E402


class _Batch(Sequence[tuple[Tensor, int, int]]):
    """Samples that already lie in one tensor, and still read as a sequence of samples."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[1])

    def __getitem__(self, index: Any) -> Any:
        x, y, t = self.tensors
        return x[index], int(y[index]), int(t[index])


def collate(samples: Sequence[Any]) -> list[Tensor]:
    """Return the minibatch [inputs, targets, task labels] of some samples.

    Args:
        samples: of ``ExperienceData``, one by one or as the batch it gives to a DataLoader.

    Returns:
        Tensors with the samples along the first dimension.
    """
    if isinstance(samples, _Batch):
        return samples.tensors
    return cast("list[Tensor]", default_collate(list(samples)))


class _Targets(DataAttribute):  # type: ignore[misc]
    """The targets, with the set of their values found by one sort instead of a Python loop."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__(targets.tolist(), "targets")
        self._classes: set[int] = set(torch.unique(targets).tolist())

    @property
    def uniques(self) -> set[int]:
        """The distinct targets."""
        return self._classes


@dataclass(frozen=True)
class _Origin:
    """Where each sample of a data set lies: in which part [N], at which row of it [N].

    ``plain`` says that the samples are those of one part, in its order.
    """

    parts: list[TaskImages]
    owner: Tensor
    row: Tensor
    plain: bool = False


def _trace(data: object, group: str | None) -> _Origin | None:
    # ``group`` names the transforms that Avalanche hands down; None where each level has its own.
    if isinstance(data, TaskImages):
        count = len(data)
        return _Origin([data], torch.zeros(count, dtype=torch.int64), torch.arange(count), True)
    if not isinstance(data, FlatData) or not data._datasets:
        return None
    groups = getattr(data, "_transform_groups", None)
    if groups is None:
        group = None
    else:
        group = group or groups.current_group
        if groups[group] is not None or data._frozen_transform_groups[group] is not None:
            return None
    parts: list[TaskImages] = []
    owners, rows = [], []
    plain = len(data._datasets) == 1 and data._indices is None
    for child in data._datasets:
        origin = _trace(child, group)
        if origin is None:
            return None
        owners.append(origin.owner + len(parts))
        rows.append(origin.row)
        parts += origin.parts
        plain = plain and origin.plain
    owner, row = torch.cat(owners), torch.cat(rows)
    if data._indices is not None:
        indices = torch.tensor([int(index) for index in data._indices], dtype=torch.int64)
        owner, row = owner[indices], row[indices]
    return _Origin(parts, owner, row, plain)


class ExperienceData(TaskAwareSupervisedClassificationDataset):  # type: ignore[misc]
    """An Avalanche classification data set that also answers whole batches.

    Subsets and concatenations of it, replay buffers and joint training among them, are of this
    class too. Where they hold foreign samples, transforms, or further per-sample fields, they
    answer sample by sample, as Avalanche does.
    """

    def sources(self) -> list[TaskImages] | None:
        """Return the parts that samples are taken from, or None if only Avalanche can take them.

        Returns:
            The parts; None where a transform, a foreign data set or a further per-sample field
            stands between them and the minibatch.
        """
        origin = self._origin()
        return None if origin is None else origin.parts

    def feed(self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False) -> Feed:
        """Return an iterable of minibatches [inputs, targets, task labels].

        Args:
            batch_size: samples a minibatch; the last may be smaller.
            shuffle: each iteration in a new order, fixed by the data's own seed.
            drop_last: leave a smaller last minibatch out.

        Returns:
            The feed; it has a length.
        """
        return Feed(self, batch_size, shuffle=shuffle, drop_last=drop_last)

    def batch(self, indices: Tensor) -> list[Tensor]:
        """Return one minibatch.

        Args:
            indices: positions in this data set [n], int64.

        Returns:
            Inputs [n, …] float32, targets [n] and task labels [n], int64.
        """
        origin = self._origin()
        if origin is None:
            return collate([self[int(index)] for index in indices])
        rows = indices if origin.plain else origin.row[indices]
        labels = self._task_labels(indices)
        if len(origin.parts) == 1:
            source = origin.parts[0]
            return [source.select(rows), source.targets.index_select(0, rows), labels]
        # Many tasks mixed in each batch would push one another out of a cache that is too small.
        cached = sum(part.nbytes for part in origin.parts) <= origin.parts[0].cache.budget
        owner = origin.owner[indices]
        x = torch.empty(len(rows), *origin.parts[0].shape)
        y = torch.empty_like(rows)
        for number in torch.unique(owner).tolist():
            source, places = origin.parts[number], (owner == number).nonzero().squeeze(1)
            x[places] = source.select(rows[places], cached=cached)
            y[places] = source.targets[rows[places]]
        return [x, y, labels]

    def __getitems__(self, indices: list[int]) -> Sequence[Any]:
        if self.sources() is None:
            return [self[index] for index in indices]
        return _Batch(self.batch(torch.tensor(indices)))

    def _origin(self) -> _Origin | None:
        fields = [name for name, field in self._data_attributes.items() if field.use_in_getitem]
        if fields != ["targets_task_labels"]:
            return None
        flat = self._flat_data
        held: tuple[object, _Origin | None] | None = getattr(self, "_held_origin", None)
        if held is None or held[0] is not flat:  # a shallow clone carries its parent's
            held = self._held_origin = (flat, _trace(flat, flat._transform_groups.current_group))
        return held[1]

    def _task_labels(self, indices: Tensor) -> Tensor:
        data = self.targets_task_labels.data
        if isinstance(data, ConstantSequence):
            return torch.full_like(indices, int(data[0]))
        held: tuple[object, Tensor] | None = getattr(self, "_held_labels", None)
        if held is None or held[0] is not data:
            held = self._held_labels = (data, torch.tensor([int(label) for label in data]))
        return held[1][indices]


def experience_data(images: TaskImages, *, label: int) -> ExperienceData:
    """Return one experience's data set.

    Args:
        images: its samples and targets.
        label: the task label of all of them.

    Returns:
        The data set, with the fields ``targets`` and ``targets_task_labels``.
    """
    return ExperienceData(
        [images],
        data_attributes=[
            _Targets(images.targets),
            TaskLabels(ConstantSequence(label, len(images))),
        ],
        collate_fn=collate,
    )


class Feed:
    """Minibatches of one data set, each taken by tensor indexing."""

    def __init__(
        self, data: ExperienceData, batch_size: int, *, shuffle: bool, drop_last: bool
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"the batch size is {batch_size}: give at least 1")
        self.dataset = data
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._generator: torch.Generator | None = None
        if shuffle:
            # Sorted: Avalanche orders the parts of a concatenation by their place in memory.
            seeds = sorted(source.order_seed for source in data.sources() or [])
            self._generator = torch.Generator().manual_seed(derive_seed("feed", *seeds))

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Tensor]]:
        count = len(self.dataset)
        if self._generator is None:
            order = torch.arange(count)
        else:
            order = torch.randperm(count, generator=self._generator)
        for indices in torch.split(order, self.batch_size)[: len(self)]:
            yield self.dataset.batch(indices)
