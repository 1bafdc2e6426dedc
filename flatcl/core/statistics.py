"""Running statistics of normalisation layers, held with the weights that they belong to.

A layer that normalises by running statistics in evaluation is a function of them as well as of its
weights: y = γ (x − m)/√(v + ε) + β. While a later task trains, m and v follow its inputs, and what
the earlier tasks' outputs are changes without that any weight moves; no constraint on weights can
prevent it. So from the second task on such layers normalise in training as in evaluation, by the
statistics that they had when the first ended. γ and β train on and are held like other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from flatcl.core.layers import named_layers
from flatcl.errors import StateError

_NAMES = ("running_mean", "running_var")


class _Evaluated:
    """In place of a layer's method ``train``: leaves the layer in evaluation mode.

    No hook, since a network compiled before it was set would pass it by; the flag ``training`` is
    what torch.compile looks at.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, mode: bool = True) -> nn.Module:
        type(self.layer).train(self.layer, mode)  # of the layers inside it
        self.layer.training = False
        return self.layer


class HeldStatistics:
    """Keeps layers in evaluation mode, whatever a training loop sets, until they are released.

    Args:
        layers: by name, each with a running mean and a running variance.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = dict(layers)
        self._frozen: set[str] = set()

    @classmethod
    def seen(cls, model: nn.Module) -> HeldStatistics:
        """Return those of all layers whose running statistics have seen inputs.

        A layer that was added after the last task has none yet: its statistics are where they
        start, mean 0 and variance 1, and no earlier task has been through it.

        Args:
            model: the network.

        Returns:
            Them, not held yet.
        """
        found = {}
        for name, layer in _layers(model).items():
            mean, variance = (layer.get_buffer(buffer) for buffer in _NAMES)
            if bool(mean.any() | (variance != 1).any()):
                found[name] = layer
        return cls(found)

    @classmethod
    def named(cls, model: nn.Module, names: Iterable[str]) -> HeldStatistics:
        """Return those of named layers.

        Args:
            model: the network.
            names: of layers, as ``layers`` has them.

        Returns:
            Them, not held yet.

        Raises:
            StateError: the model has no such layer.
        """
        known = _layers(model)
        if missing := sorted(set(names) - set(known)):
            raise StateError(
                f"the saved state holds the running statistics of {missing}, which the model does "
                "not have: load it into the model that it was saved with"
            )
        return cls({name: known[name] for name in names})

    def free(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the running statistics that follow the running task.

        Args:
            model: the network.

        Returns:
            The buffers themselves, by name.
        """
        others = {n: layer for n, layer in _layers(model).items() if n not in self.layers}
        return {
            f"{name}.{buffer}".removeprefix("."): layer.get_buffer(buffer)
            for name, layer in others.items()
            for buffer in _NAMES
        }

    def hold_(self, model: nn.Module) -> None:
        """Put the layers in evaluation mode, for good.

        Args:
            model: the network; layers in evaluation mode where it trains are so by the user's wish.
        """
        self._frozen = {n for n, m in self.layers.items() if model.training and not m.training}
        for layer in self.layers.values():
            layer.__dict__["train"] = _Evaluated(layer)  # the class keeps its own
            layer.training = False

    def release_(self, model: nn.Module) -> None:
        """Give the layers the network's mode again, or the one that the user wished.

        Args:
            model: the network.
        """
        for name, layer in self.layers.items():
            if layer.__dict__.pop("train", None) is not None:
                layer.training = model.training and name not in self._frozen


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with running statistics of floating point, shared ones once."""
    found: dict[str, nn.Module] = {}
    for name, layer in named_layers(model):
        buffers = [layer._buffers.get(buffer) for buffer in _NAMES]
        if all(buffer is not None and buffer.is_floating_point() for buffer in buffers):
            found[name] = layer
    return found
