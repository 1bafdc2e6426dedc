"""Strategies of Avalanche that take their minibatches whole, in an order of the data's own."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from flatcl.datasets import ExperienceData
from flatcl.errors import OptionError

S = TypeVar("S")

_fast_classes: dict[type, type] = {}


class FastFeed:
    """Put before a strategy class, feeds it the data sets of flatcl batch by batch.

    The order of the batches comes from the data's own seed and the epoch alone, so all methods
    see the same batches, and torch's global random state is left alone. Any other data goes
    through the strategy's own loaders. Several tasks in one data set (joint training) are mixed
    uniformly.
    """

    adapted_dataset: Any
    dataloader: Any
    train_mb_size: int
    eval_mb_size: int

    def make_train_dataloader(
        self, shuffle: bool = True, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Set the strategy's dataloader for training on the adapted data set.

        Args:
            shuffle: a new order each epoch.
            drop_last: leave a smaller last minibatch out.
            **kwargs: for the strategy's own loader, where that is used.
        """
        if _feedable(self.adapted_dataset):
            self.dataloader = self.adapted_dataset.feed(
                self.train_mb_size, shuffle=shuffle, drop_last=drop_last
            )
        else:
            cast("Any", super()).make_train_dataloader(
                shuffle=shuffle, drop_last=drop_last, **kwargs
            )

    def make_eval_dataloader(self, shuffle: bool = False, **kwargs: Any) -> None:
        """Set the strategy's dataloader for evaluation on the adapted data set.

        Args:
            shuffle: in an order other than that of the data.
            **kwargs: for the strategy's own loader, where that is used.
        """
        if _feedable(self.adapted_dataset):
            self.dataloader = self.adapted_dataset.feed(self.eval_mb_size, shuffle=shuffle)
        else:
            cast("Any", super()).make_eval_dataloader(shuffle=shuffle, **kwargs)


def _feedable(data: object) -> bool:
    return isinstance(data, ExperienceData) and data.sources() is not None


def fast(strategy_class: type[S]) -> type[S]:
    """Return the strategy class with ``FastFeed`` mixed in, the same class for each call.

    Args:
        strategy_class: an Avalanche strategy, such as ``avalanche.training.Naive``.

    Returns:
        A subclass, or the class itself if it has ``FastFeed`` already.

    Raises:
        OptionError: the class makes no dataloaders, so it is no SGD strategy of Avalanche.
    """
    if not hasattr(strategy_class, "make_train_dataloader"):
        raise OptionError(
            f"{strategy_class.__name__} is no Avalanche strategy that makes dataloaders: "
            f"give a subclass of BaseSGDTemplate"
        )
    if issubclass(strategy_class, FastFeed):
        return strategy_class
    if strategy_class not in _fast_classes:
        names = {"__module__": strategy_class.__module__, "__doc__": strategy_class.__doc__}
        bases = (FastFeed, strategy_class)
        _fast_classes[strategy_class] = type(f"Fast{strategy_class.__name__}", bases, names)
    return cast("type[S]", _fast_classes[strategy_class])
