"""Numbers narrower than float32: autocast around the caller's loop, weights in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from flatcl.core.gradients import Forward
from flatcl.core.layers import Unit


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off while the body runs: sums and eigenbases need their own precision.

    Args:
        device: whose autocast is meant.

    Returns:
        A context that costs nothing where autocast is off.
    """
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def under_present_autocast(forward: Forward, device: torch.device) -> Forward:
    """Return ``forward`` run under the autocast that is in force now, whatever is later.

    Args:
        forward: from a batch to outputs.
        device: whose autocast is meant.

    Returns:
        The same map; ``forward`` itself where autocast is off.
    """
    if not torch.is_autocast_enabled(device.type):
        return forward
    dtype = torch.get_autocast_dtype(device.type)

    def cast(batch: Sequence[Tensor]) -> Tensor:
        # Its cache of cast weights would hide that the probe perturbs them.
        with torch.autocast(device.type, dtype=dtype, cache_enabled=False):
            return forward(batch)

    return cast


def is_narrow(unit: Unit, parameters: Mapping[str, Tensor]) -> bool:
    """Return whether a parameter of the unit has fewer bits than float32.

    Args:
        unit: the unit.
        parameters: the model's parameters by name.

    Returns:
        True for bfloat16, float16 and narrower.
    """
    return any(parameters[name].dtype.itemsize < 4 for name in unit.names)


@torch.no_grad()
def write_rounded_(unit: Unit, parameters: Mapping[str, Tensor], exact: Tensor) -> Tensor:
    """Set the unit's parameters to the nearest that they can hold, and return what is left.

    A pull is often less than half of the spacing of bfloat16 weights and would round to nothing,
    every time. What rounding left is added at the next pull (error feedback), so that pulls add up.

    Args:
        unit: the unit.
        parameters: the model's parameters by name; changed in place.
        exact: the unit's view as it should be, float32 or wider.

    Returns:
        ``exact`` less what was written, in the dtype of ``exact``, w.
    """
    unit.write_(parameters, exact)
    left: Tensor = exact - unit.gather(parameters).to(exact.dtype)
    return left
