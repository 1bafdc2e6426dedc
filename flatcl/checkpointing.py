"""Checkpoints of an Avalanche strategy between experiences, written whole or not at all.

Avalanche's own functions do the work. They pickle the strategy with dill, and that fails for every
strategy under a torch that hides its optimisers' modules (``torch.optim.sgd`` is no attribute of
``torch.optim``): dill then takes the class for one that cannot be imported and pickles its source.
Here dill is told, by its registry, to write an optimiser as its class's name and its state.

A checkpoint is a pickle: loading one runs code, so load only files that you trust. The state that
``Landscape.state_dict`` returns is plain and loads with ``weights_only=True``.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from flatcl.host import ensure_avalanche
from flatcl.io import write_bytes

ensure_avalanche()

import avalanche.checkpointing as host  # noqa: E402
import dill  # noqa: E402

Strategy = TypeVar("Strategy")

__all__ = ["maybe_load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    strategy: object, path: str | os.PathLike[str], exclude: Collection[str] | None = None
) -> None:
    """Save a strategy between two experiences, in place of Avalanche's function of that name.

    The file is replaced in one step: a process that is killed while it saves leaves the checkpoint
    before intact.

    Args:
        strategy: the strategy.
        path: the file.
        exclude: names of attributes to leave out, as in Avalanche.
    """
    _teach_dill()
    buffer = io.BytesIO()
    host.save_checkpoint(strategy, buffer, exclude)
    write_bytes(path, buffer.getvalue())


def maybe_load_checkpoint(
    strategy: Strategy,
    path: str | os.PathLike[str],
    map_location: Any = None,
    unique_objects: Any = None,
) -> tuple[Strategy, int]:
    """Load a strategy that was saved, in place of Avalanche's function of that name.

    ::

        strategy, start = maybe_load_checkpoint(strategy, "run.ckpt")
        for experience in benchmark.train_stream[start:]:
            strategy.train(experience)
            save_checkpoint(strategy, "run.ckpt")

    The global random states go on from where they were saved, as in Avalanche.

    Args:
        strategy: as it was built for the first run; changed in place.
        path: the file; if there is none, the strategy is left as it is.
        map_location: a device for its tensors, as in Avalanche.
        unique_objects: objects that need not be loaded twice, as in Avalanche.

    Returns:
        The strategy, and the index of the experience to go on with.
    """
    _teach_dill()
    loaded: tuple[Strategy, int] = host.maybe_load_checkpoint(
        strategy, Path(path), map_location, unique_objects
    )
    return loaded


def _teach_dill() -> None:
    """Have dill write torch's own optimisers by their class's name."""
    for value in vars(torch.optim).values():
        if isinstance(value, type) and issubclass(value, Optimizer):
            dill.register(value)(_write_optimizer)


def _write_optimizer(pickler: Any, optimizer: Optimizer) -> None:
    kind = type(optimizer)
    arguments = (kind.__module__, kind.__qualname__)
    pickler.save_reduce(_blank_optimizer, arguments, state=optimizer.__getstate__(), obj=optimizer)


def _blank_optimizer(module: str, name: str) -> Optimizer:
    kind: type[Optimizer] = getattr(importlib.import_module(module), name)
    return kind.__new__(kind)
