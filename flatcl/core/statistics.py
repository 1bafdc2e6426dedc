"""Running statistics of BatchNorm, mixed over the tasks.

In evaluation such a layer is a function of them as well as of its weights: y = γ (x − m)/√(v + ε)
+ β. While a later task trains, m and v follow its inputs, and what the earlier tasks' outputs are
changes without that any weight moves; no constraint on weights can prevent it. So from the second
task on a layer normalises, in training and in evaluation, by the statistics of a mixture of the
earlier tasks' inputs, in share a, with the present batch's, in share 1 − a:

    m = a m₀ + (1 − a) m_B,        v = a v₀ + (1 − a) v_B + a (1 − a) (m_B − m₀)².

m₀ and v₀ are the running statistics that the task began with. γ and β train on and are held like
other weights. With a = 1 nothing would move; but the mean of a layer's inputs would then be the
steepest direction of the loss by far, and SGD runs away there at rates at which BatchNorm trains.

Related: batch renormalization, Ioffe, arXiv 1702.03275 (2017), normalises a batch by running
statistics and lets no gradient through them; with statistics that do not follow it runs away.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from flatcl.core.layers import named_layers
from flatcl.core.saved import State, entry
from flatcl.errors import StateError

_MOMENTUM = 0.1  # torch's default, where a layer has none of its own


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of a model's normalisation layers of any kind.

    Args:
        model: any module.

    Returns:
        The buffers themselves by name, means and variances, those of floating point.
    """
    return {
        f"{name}.{buffer}".removeprefix("."): statistic
        for name, layer in named_layers(model)
        for buffer in ("running_mean", "running_var")
        if (statistic := layer._buffers.get(buffer)) is not None and statistic.is_floating_point()
    }


class _Evaluated:
    """In place of a layer's method ``train``: leaves the layer in evaluation mode."""

    def __init__(self, layer: nn.Module, mixture: _Mixture) -> None:
        self.layer, self.mixture = layer, mixture

    def __call__(self, mode: bool = True) -> nn.Module:
        type(self.layer).train(self.layer, mode)  # of the layers inside it
        self.layer.training = False
        if self.mixture.model.training:  # else all of the network is evaluated: no wish for one
            self.mixture.frozen = not mode
        return self.layer


class _Mixture:
    """Before a layer in evaluation mode: has it normalise by the mixture, where the network trains.

    Not where the layer itself was asked to evaluate while the network trains: it is the user's
    wish then, and its statistics stay.

    The layer computes γ (x' − m_r)/√(v_r + ε) + β by its running statistics m_r, v_r, whatever its
    class does then; x' is chosen so that this is γ (x − m)/√(v + ε) + β.
    """

    def __init__(
        self, model: nn.Module, layer: _BatchNorm, share: float, earlier: Sequence[Tensor]
    ) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile traces
        self.layer, self.share = layer, share
        self.earlier = [
            saved.to(own.device, torch.promote_types(own.dtype, torch.float32))
            for saved, own in zip(earlier, _statistics_of(layer), strict=True)
        ]
        self.latest: list[Tensor] | None = None
        self.frozen = False
        self._handle: RemovableHandle | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.frozen or not (self.model.training and args):
            return None
        x: Tensor = args[0]
        dims, shape = [d for d in range(x.ndim) if d != 1], [1, -1, *[1] * (x.ndim - 2)]
        a, (mean_0, variance_0) = self.share, self.earlier
        # All relative to m₀: ⟨z²⟩ − ⟨z⟩² would cancel for inputs far from 0. torch.var_mean is
        # slow on the CPU, half a step of a ResNet.
        z = x.to(mean_0.dtype) - mean_0.view(shape)
        apart = z.mean(dims)
        of_batch = (z * z).mean(dims) - apart**2
        mean = (1 - a) * apart
        variance = a * variance_0 + (1 - a) * of_batch + a * (1 - a) * apart**2
        self.latest = [(mean_0 + mean).detach(), variance.detach()]
        running_mean, running_var = (t.to(mean_0.dtype) for t in _statistics_of(self.layer))
        scale = torch.sqrt((running_var + self.layer.eps) / (variance + self.layer.eps))
        shift = running_mean - mean * scale
        return torch.addcmul(shift.view(shape), z, scale.view(shape)).to(x.dtype), *args[1:]

    def follow_(self) -> None:
        """Move the running statistics towards the latest batch's mixture.

        After a step, not with the batch: what a layer was evaluated with is needed unchanged for
        its gradient.
        """
        latest, self.latest = self.latest, None
        if latest is not None and not self.frozen:
            momentum = _MOMENTUM if self.layer.momentum is None else self.layer.momentum
            for running, found in zip(_statistics_of(self.layer), latest, strict=True):
                running.lerp_(found.to(running.dtype), momentum)

    def enter_(self) -> None:
        """Take charge of the layer, which no other has."""
        self.frozen = self.model.training and not self.layer.training
        self._handle = self.layer.register_forward_pre_hook(self)
        self.layer.__dict__["train"] = _Evaluated(self.layer, self)  # the class keeps its own
        self.layer.training = False

    def leave_(self) -> None:
        """Leave the layer to itself again, in the mode that was asked of it, if it is in charge."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            del self.layer.__dict__["train"]
            self.layer.training = self.model.training and not self.frozen


class MixedStatistics:
    """Running statistics that are mixed while a task runs, or until this object is dropped.

    One network's are mixed for one task: one that begins, of another landscape, takes over.

    Args:
        model: the network.
        share: a, of the earlier tasks.
        earlier: mean and variance of each layer when the task began, by the layer's name.

    Raises:
        StateError: the model has no such layer.
    """

    def __init__(self, model: nn.Module, share: float, earlier: Mapping[str, list[Tensor]]) -> None:
        self._mixtures: dict[str, _Mixture] = {}
        layers = dict(_layers(model))
        self._model, self._share = model, share
        for name, saved in earlier.items():
            if name not in layers:
                raise StateError(
                    f"the saved state has running statistics of {name!r}, which is no BatchNorm of "
                    "the model: load it into the model that it was saved with"
                )
            self._mixtures[name] = _Mixture(model, layers[name], share, saved)

    def __del__(self) -> None:
        if "_mixtures" in vars(self):
            self.release_()

    @classmethod
    def begun(cls, model: nn.Module, share: float) -> MixedStatistics:
        """Return those of a task that begins, of all BatchNorm layers that have seen inputs.

        A layer that was added after the last task has none of earlier tasks: its statistics are
        where they start, mean 0 and variance 1. One in evaluation mode while the network trains is
        so by the user's wish, and has those that it keeps.

        Args:
            model: the network.
            share: a, of the earlier tasks; with 0 nothing is mixed.

        Returns:
            Them, not in force yet.
        """
        _release_others(model)
        earlier = {}
        for name, layer in _layers(model) if share > 0 else ():
            mean, variance = _statistics_of(layer)
            wished = model.training and not layer.training
            if not wished and bool(mean.any() | (variance != 1).any()):
                earlier[name] = [mean.clone(), variance.clone()]
        return cls(model, share, earlier)

    @classmethod
    def from_state(cls, model: nn.Module, state: Mapping[str, Any] | None) -> MixedStatistics:
        """Return what ``state_dict`` encoded.

        Args:
            model: the network.
            state: its result; None for nothing to mix.

        Returns:
            Them, not in force yet.
        """
        if state is None:
            return cls(model, 0.0, {})
        what = "task's statistics"
        return cls(model, float(entry(state, "share", what)), entry(state, "earlier", what))

    def state_dict(self) -> State:
        """Return them as plain state.

        Returns:
            The share, and the earlier tasks' statistics, which are never written to.
        """
        earlier = {name: mixture.earlier for name, mixture in self._mixtures.items()}
        return {"share": self._share, "earlier": earlier}

    def mix_(self) -> None:
        """Put them in force."""
        if self._mixtures and "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # a network that is compiled already would not see the hooks
        _release_others(self._model)
        for mixture in self._mixtures.values():
            mixture.enter_()

    def follow_(self) -> None:
        """Count an optimiser step."""
        for mixture in self._mixtures.values():
            mixture.follow_()

    def release_(self) -> None:
        """Leave the layers to themselves again, each in the mode that was asked of it."""
        for mixture in self._mixtures.values():
            mixture.leave_()


def _release_others(model: nn.Module) -> None:
    """Leave a network's layers to themselves that another task's statistics are in charge of.

    It is one that nobody can end any more, and that some traceback keeps; or the network is a copy
    of one that was made in mid-task.
    """
    for _, layer in _layers(model):
        if isinstance(evaluated := layer.__dict__.get("train"), _Evaluated):
            evaluated.mixture.leave_()


def _layers(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yield the BatchNorm layers that keep running statistics, by name."""
    for name, layer in named_layers(model):
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            yield name, layer


def _statistics_of(layer: _BatchNorm) -> list[Tensor]:
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    return [mean, variance]
