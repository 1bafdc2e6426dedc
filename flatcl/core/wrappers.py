"""Networks within a wrapper: run as they are written, and in a single process."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def uncompiled() -> AbstractContextManager[object]:
    """Run compiled networks, or compiled parts of them, as they are written while the body runs.

    The probe catches outputs of layers and differentiates towards them; a compiled graph is one
    node, which passes them by. A few passes at a task's end are not worth compiling either.

    Returns:
        A context that costs nothing where nothing was compiled.
    """
    if "torch._dynamo" not in sys.modules:  # it takes seconds to import
        return nullcontext()
    eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that ``DistributedDataParallel`` wraps, or the model itself.

    Args:
        model: any module.

    Returns:
        The module whose parameters have the names that they have in a single process.
    """
    if isinstance(model, DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model
