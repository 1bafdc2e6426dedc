"""Batches of nested dictionaries and sequences, as lists of tensors and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from flatcl.errors import DataError

_FLAT = 0  # the template of a tensor alone, and of a sequence of tensors


class Nesting:
    """How the batches of a loader nest their tensors, alike in all that is held.

    Attributes:
        template: a batch with each tensor's place in its stead, and None for what is no tensor of
            inputs; 0 for a flat batch; None before the first.
    """

    def __init__(self) -> None:
        self.template: Any = None

    def tensors_of(self, batch: Any) -> list[Tensor]:
        """Return a batch's tensors, and learn how it nests them.

        Args:
            batch: a tensor, or dictionaries and sequences of tensors and other things.

        Returns:
            Its tensors of one dimension at least, in order.

        Raises:
            DataError: it has none, or nests them in another way than the batches before.
        """
        parts: list[Tensor] = []
        template = _placed(batch, parts)
        if not parts:
            raise DataError(
                f"a batch is a {type(batch).__name__} without tensors; let the loader make "
                "tensors, or dictionaries and sequences of them, inputs first along each"
            )
        if template in (list(range(len(parts))), tuple(range(len(parts)))):
            template = _FLAT
        if self.template is None:
            self.template = template
        elif self.template != template:
            raise DataError(
                f"a batch nests its tensors as {template or 'a sequence'}, those before it as "
                f"{self.template or 'a sequence'}: let the loaders of all tasks make the same"
            )
        return parts

    def flat(self, loader: Iterable[Any]) -> Iterator[list[Tensor]]:
        """Yield the tensors of each batch.

        Args:
            loader: of batches.

        Yields:
            As ``tensors_of`` returns them.
        """
        for batch in loader:
            yield self.tensors_of(batch)

    def batch_of(self, parts: Sequence[Tensor]) -> Any:
        """Return tensors nested as a batch is.

        Args:
            parts: in order, as ``tensors_of`` returns them.

        Returns:
            Dictionaries, lists and tuples of them, None for the rest; ``parts`` where it is flat.
        """
        return _filled(self.template, parts) if self.template else parts


def _placed(batch: Any, parts: list[Tensor]) -> Any:
    """Return a template, and append the tensors."""
    if isinstance(batch, Tensor) and batch.dim() > 0:
        parts.append(batch)
        return len(parts) - 1
    before = len(parts)
    found: Any = None
    if isinstance(batch, Mapping):
        found = {key: _placed(value, parts) for key, value in batch.items()}
    elif isinstance(batch, (list, tuple)):
        kind = list if isinstance(batch, list) else tuple  # a named tuple's class is not kept
        found = kind(_placed(value, parts) for value in batch)
    return found if len(parts) > before else None


def _filled(template: Any, parts: Sequence[Tensor]) -> Any:
    if isinstance(template, dict):
        return {key: _filled(value, parts) for key, value in template.items()}
    if isinstance(template, (list, tuple)):
        return type(template)(_filled(value, parts) for value in template)
    return None if template is None else parts[template]
