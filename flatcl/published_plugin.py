"""LDC as published, in Avalanche."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from flatcl.avalanche import LDCPlugin
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.published import PublishedLandscape, PublishedOptions

ensure_avalanche()

from avalanche.training.templates import SupervisedTemplate  # noqa: E402

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

    def _landscape_of(self, strategy: SupervisedTemplate) -> PublishedLandscape:
        return PublishedLandscape(
            strategy.model,
            strategy.optimizer,
            options=self.published,
            forward=self._forward,
        )
