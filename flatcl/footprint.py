"""How much a continual-learning method keeps between tasks, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor

from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.benchmarks import CLExperience, CLScenario, CLStream  # noqa: E402
from avalanche.benchmarks.utils import AvalancheDataset  # noqa: E402
from avalanche.training import JointTraining  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche.training.storage_policy import ExemplarsBuffer  # noqa: E402
from avalanche.training.templates.base import BaseTemplate  # noqa: E402

_LABEL = 8  # int64, as the loss takes it

# Lent by the caller or the host, not kept by a method.
_FOREIGN = (
    BaseTemplate,
    CLExperience,
    CLScenario,
    CLStream,
    EvaluationPlugin,
    torch.optim.Optimizer,
    FunctionType,
    MethodType,
    ModuleType,
    type,
)


def sample_bytes(dataset: AvalancheDataset) -> int:
    """Return the bytes of a data set's inputs and labels.

    Args:
        dataset: its first sample gives the size and type of every input, as it is delivered.

    Returns:
        Bytes of all inputs, and 8 for each label.
    """
    if len(dataset) == 0:
        return 0
    x = torch.as_tensor(dataset[0][0])
    return len(dataset) * (x.numel() * x.element_size() + _LABEL)


def bytes_held(strategy: BaseTemplate) -> int:
    """Return the bytes that a strategy keeps, without its model and its optimiser's state.

    Counted is what can be reached from the strategy's plugins: tensors and arrays by the
    storage that they keep alive, once each; replay buffers and data sets by their samples
    (:func:`sample_bytes`). An object with a method ``bytes_held`` speaks for itself. Joint
    training holds all the data that it was given. Weights and gradients of the model are not
    counted, wherever they are seen.

    Args:
        strategy: an Avalanche strategy, between two tasks.

    Returns:
        Bytes, ≥ 0.
    """
    own = _Count()
    model = strategy.model
    for tensor in (*model.parameters(), *model.buffers()):
        own.skip(tensor)
        own.skip(tensor.grad)
    for state in strategy.optimizer.state.values():
        for value in state.values():
            own.skip(value)
    own.seen.add(id(model))
    joint = strategy._experiences if isinstance(strategy, JointTraining) else []
    return sum(sample_bytes(experience.dataset) for experience in joint) + sum(
        own.of(plugin) for plugin in strategy.plugins
    )


class _Count:
    """A walk through objects that counts no storage twice."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.storages: set[int] = set()
        self.alive: list[object] = []  # an id is unique only while its object lives

    def skip(self, value: object) -> None:
        if isinstance(value, Tensor):
            self.storages.add(value.untyped_storage().data_ptr())

    def of(self, thing: object) -> int:
        if thing is None or isinstance(thing, (str, bytes, int, float, *_FOREIGN)):
            return 0
        if id(thing) in self.seen:
            return 0
        self.seen.add(id(thing))
        self.alive.append(thing)
        speaks = getattr(thing, "bytes_held", None)
        if callable(speaks):
            return int(speaks())
        if isinstance(thing, Tensor):
            return self._tensor(thing)
        if isinstance(thing, np.ndarray):
            return self._array(thing)
        if isinstance(thing, ExemplarsBuffer):
            return sample_bytes(thing.buffer)
        if isinstance(thing, AvalancheDataset):
            return sample_bytes(thing)
        return sum(self.of(part) for part in _parts(thing))

    def _tensor(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        new = storage.data_ptr() not in self.storages
        self.storages.add(storage.data_ptr())
        gradient = self.of(tensor.grad) if tensor.is_leaf else 0
        return gradient + (storage.nbytes() if new else 0)

    def _array(self, array: np.ndarray) -> int:
        while isinstance(array.base, np.ndarray):
            array = array.base
        address = array.ctypes.data
        new = address not in self.storages
        self.storages.add(address)
        return array.nbytes if new else 0


def _parts(thing: object) -> Iterable[object]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (Sequence, set, frozenset)):
        return list(thing)
    return list(getattr(thing, "__dict__", {}).values())
