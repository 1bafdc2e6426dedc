"""What the duality's functions ask of tensors before they compute with them."""

from __future__ import annotations

import torch
from torch import Tensor

from flatcl.errors import DataError

_REAL = (torch.float32, torch.float64)


def ask_real(dims: tuple[int, ...], **tensors: Tensor) -> None:
    """Refuse tensors that are not real, not all of one type, or of another number of dimensions.

    Args:
        dims: numbers of dimensions that will do.
        **tensors: by what the message calls them.

    Raises:
        DataError: of the first that will not do.
    """
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) > 1 or not kinds <= {*_REAL}:
        seen = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise DataError(f"{seen}: give all in torch.float64, or all in torch.float32")
    for name, tensor in tensors.items():
        if tensor.dim() not in dims:
            wanted = " or ".join(map(str, dims))
            raise DataError(
                f"{name} has shape {tuple(tensor.shape)}: give a tensor of {wanted} dimensions"
            )


def ask_finite(**tensors: Tensor) -> None:
    """Refuse tensors with a number that is NaN or infinite.

    Args:
        **tensors: by what the message calls them.

    Raises:
        DataError: of the first that has one.
    """
    for name, tensor in tensors.items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise DataError(f"{name} has {bad} numbers that are NaN or infinite: find out why")


def ask_tensors(**given: object) -> None:
    """Refuse what is no tensor.

    Args:
        **given: by what the message calls them.

    Raises:
        DataError: of the first that is none.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise DataError(
                f"{name}: a {type(value).__name__} is no tensor: give torch.as_tensor of an array, "
                "the batches of a loader joined"
            )


def ask_labels(name: str, labels: Tensor, number: int | None = None) -> None:
    """Refuse what is no list of classes, one a sample.

    Args:
        name: what the message calls it.
        labels: classes.
        number: of samples; any if None.

    Raises:
        DataError: it is none, or of another length.
    """
    ask_tensors(**{name: labels})
    if labels.dim() != 1 or labels.is_complex():
        raise DataError(
            f"{name} has shape {tuple(labels.shape)}, {labels.dtype}: give a class a sample, [K]"
        )
    if number is not None and len(labels) != number:
        raise DataError(f"{name} has {len(labels)} classes for {number} samples: give one each")
    ask_finite(**{name: labels})


def check_pairs(inputs: Tensor, targets: Tensor) -> None:
    """Refuse what are no tensors, samples without as many targets, or none at all.

    Args:
        inputs: [N, …].
        targets: [N, …].

    Raises:
        DataError: they are not such.
    """
    ask_tensors(inputs=inputs, targets=targets)
    if not inputs.dim() or not targets.dim():
        raise DataError("inputs and targets need a first dimension, that of the samples: [N, …]")
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(
            f"{len(inputs)} inputs and {len(targets)} targets: give as many of each, and at least "
            "one"
        )
