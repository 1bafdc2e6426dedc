"""What a training that diverged leaves, refused."""

from __future__ import annotations

import torch
from torch import Tensor

from flatcl.errors import NonFiniteError


def refuse_not_finite(values: Tensor, what: str = "snapshot") -> None:
    """Refuse values that are not finite.

    Args:
        values: sums or means over what is looked at, in which NaN and infinity stay.
        what: is looked at, for the message.

    Raises:
        NonFiniteError: one of them is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"a {what} is not finite: the training diverged; lower its rate")
