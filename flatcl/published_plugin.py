"""LDC as published, in Avalanche."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flatcl.errors import OptionError
from flatcl.ldc_plugin import LDCPlugin
from flatcl.published import PublishedLandscape, PublishedOptions

_OPTIONS = tuple(field.name for field in fields(PublishedOptions))


class PublishedLDCPlugin(LDCPlugin):
    """``LDCPlugin`` for LDC as published; the loss is cross-entropy.

    Args:
        **options: fields of ``flatcl.published.PublishedOptions``.

    Raises:
        OptionError: an option is unknown or out of its range.
    """

    def __init__(self, **options: Any) -> None:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise OptionError(
                f"LDC as published has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}"
            )
        self.published = PublishedOptions(**options)
        super().__init__()
        self.options = self.published.of_landscape()

    def _landscape(self, model: nn.Module, optimizer: Optimizer) -> PublishedLandscape:
        return PublishedLandscape(
            model,
            optimizer,
            options=self.published,
            forward=self._forward,
        )
