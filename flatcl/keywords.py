"""By which keywords a model takes its inputs: a training pass tells it, later passes use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flatcl.errors import OptionError

_NO_INPUT = "num_items_in_batch"  # what Hugging Face's Trainer scales the loss by


class Keywords:
    """Batches that are dictionaries, as sequences of tensors and back.

    Attributes:
        names: of the inputs, in the order of the sequences.
        labels: of what is no input. They come last in a sequence, and need not be there.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.labels: tuple[str, ...] = ()
        self._hook: RemovableHandle | None = None

    def watch(self, model: nn.Module, labels: Sequence[str]) -> None:
        """Learn the names from the model's next training pass, which may raise ``OptionError``.

        Args:
            model: it is called by keyword.
            labels: see above.
        """
        self.close()
        self.labels = tuple(labels)
        look = torch.compiler.disable(self._look)  # type: ignore[no-untyped-call]
        self._hook = model.register_forward_pre_hook(look, with_kwargs=True)

    def close(self) -> None:
        """Stop to watch; nothing where the names are known already."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _look(self, module: nn.Module, _: tuple[object, ...], found: dict[str, Any]) -> None:
        if module.training:
            self.close()
            self._take(found)

    def _take(self, keywords: Mapping[str, object]) -> None:
        others = {*self.labels, _NO_INPUT}
        tensors = [name for name, value in keywords.items() if isinstance(value, Tensor)]
        self.names = tuple(name for name in tensors if name not in others)
        if not self.names:
            raise OptionError(
                f"the model was called with the keywords {list(keywords)}, and beside labels "
                f"{list(self.labels)} there is no tensor of inputs among them: call it by keyword, "
                "as in model(pixel_values=…), and name labels in TrainingArguments(label_names=…)"
            )

    def batches(self, loader: Iterable[Mapping[str, Tensor]]) -> Iterator[list[Tensor]]:
        """Yield batches as sequences, inputs first.

        Args:
            loader: of dictionaries.

        Yields:
            The tensors of a batch.

        Raises:
            OptionError: a batch has none of the inputs that the model was called with.
        """
        for batch in loader:
            known = tuple(name for name in self.names if name in batch)
            if not known:
                raise OptionError(
                    f"a batch has {list(batch)}, the model was called with {list(self.names)}: let "
                    "the loader make what the model takes"
                )
            self.names = known
            labels = [name for name in self.labels if name in batch]
            yield [batch[name] for name in (*known, *labels)]

    def of(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the inputs of a sequence by their names.

        Args:
            batch: its tensors, inputs first.

        Returns:
            Keywords for the model.
        """
        return dict(zip(self.names, batch, strict=False))
