"""Batches as callers have them, checked and cut to the size of a pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flatcl.errors import DataError


def tensors_of(batch: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Return the tensors of a batch.

    Args:
        batch: a tensor of inputs, or a sequence of tensors, inputs first.

    Returns:
        Its tensors.

    Raises:
        DataError: it is no tensor nor a sequence of tensors, or they are not of one length.
    """
    parts = [batch] if isinstance(batch, Tensor) else list(batch)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise DataError(
            f"a batch is a {type(batch).__name__}, and not of tensors alone; pass tensors of "
            "inputs, or sequences (inputs, …) of tensors"
        )
    if any(part.dim() == 0 or len(part) != len(parts[0]) for part in parts):
        raise DataError(
            f"a batch has parts of shapes {', '.join(str(tuple(part.shape)) for part in parts)}, "
            "not of one length; pass a DataLoader, whose batches have a dimension of inputs first "
            "along each part, and not a data set"
        )
    return parts


def chunked(
    batches: Iterable[Sequence[Tensor] | Tensor], *, inputs: int, size: int, device: torch.device
) -> list[list[Tensor]]:
    """Return the first inputs of an iterable of batches, cut into chunks for the probe.

    Args:
        batches: each a tensor of inputs, or a sequence of tensors of equal length, inputs first.
        inputs: how many inputs to take, at most.
        size: inputs a chunk, at most.
        device: where the chunks go.

    Returns:
        Chunks, each a list of tensors as in the batch.

    Raises:
        DataError: there is no input at all.
    """
    chunks: list[list[Tensor]] = []
    left = inputs
    for batch in batches:
        parts = tensors_of(batch)
        taken = min(left, len(parts[0]))
        for start in range(0, taken, size):
            stop = min(start + size, taken)
            chunks.append([part[start:stop].to(device) for part in parts])
        left -= taken
        if left <= 0:
            break
    if not chunks:
        raise DataError("the task's batches are empty: the probe needs at least one input")
    return chunks


def joined(chunks: Sequence[Sequence[Tensor]], number: int) -> list[list[Tensor]]:
    """Return chunks in a row joined, where they are of one shape but for the number of inputs.

    Args:
        chunks: each its tensors, inputs first along each.
        number: chunks to join, at most.

    Returns:
        Larger chunks, in the order given.
    """
    groups: list[list[Sequence[Tensor]]] = []
    for chunk in chunks:
        last = groups[-1] if groups else []
        alike = bool(last) and [p.shape[1:] for p in last[0]] == [p.shape[1:] for p in chunk]
        if alike and len(last) < number:
            last.append(chunk)
        else:
            groups.append([chunk])
    return [[torch.cat(parts) for parts in zip(*group, strict=True)] for group in groups]
