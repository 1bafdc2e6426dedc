"""Networks that ``torch.compile`` has made, run as they are written."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch


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
