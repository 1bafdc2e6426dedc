"""The duality's functions, given tensors that cannot be meant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatcl.duality import (
    DualLayer,
    decompose,
    dual_moves,
    generalization_gap,
    nearest_pairs,
    random_pairs,
)
from flatcl.errors import FlatclError

SHAPES: tuple[tuple[int, ...], ...] = (
    (), (0,), (1,), (4,), (0, 4), (3, 4), (4, 3), (5, 4), (5, 0, 4), (5, 1, 4), (5, 2, 4),
    (5, 6, 4), (2, 2, 2, 2),
)  # fmt: skip
DTYPES = (torch.float64, torch.float32, torch.int64, torch.bool, torch.complex64, torch.float16)
SPOILS = (None, math.nan, math.inf, 0.0, 1e300, 1e-300)


def tensors() -> st.SearchStrategy[torch.Tensor]:
    """Tensors of any shape and type, some with a number that is none."""

    def made(shape: tuple[int, ...], dtype: torch.dtype, spoil: float | None) -> torch.Tensor:
        found = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if spoil is not None and found.numel():
            found.flatten()[0] = spoil
        return found.nan_to_num().to(dtype) if not dtype.is_floating_point else found.to(dtype)

    return st.builds(
        made, st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(SPOILS)
    )


def labels() -> st.SearchStrategy[torch.Tensor]:
    kinds = st.sampled_from((torch.int64, torch.uint8, torch.float32))
    numbers = st.lists(st.integers(0, 2), max_size=6)
    return st.builds(lambda values, dtype: torch.tensor(values).to(dtype), numbers, kinds)


def refused_or(call: Any, *arguments: Any, **more: Any) -> Any:
    """What a call returns; None if it was refused by an error of flatcl's, in one line."""
    try:
        return call(*arguments, **more)
    except FlatclError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


@settings(deadline=None, derandomize=True, max_examples=25)
@given(weight=tensors(), activity=tensors(), changed=tensors())
def test_dual_moves_of_odd_tensors(
    weight: torch.Tensor, activity: torch.Tensor, changed: torch.Tensor
) -> None:
    for other in (changed, activity):
        moves = refused_or(dual_moves, weight, activity, other)
        if moves is not None:
            assert bool(moves.norms()[moves.kept].isfinite().all())


@settings(deadline=None, derandomize=True, max_examples=25)
@given(test=tensors(), theirs=labels(), train=tensors(), mine=labels(), rank=st.integers(-1, 4))
def test_pairs_of_odd_tensors(
    test: torch.Tensor, theirs: torch.Tensor, train: torch.Tensor, mine: torch.Tensor, rank: int
) -> None:
    pairs = refused_or(nearest_pairs, test, theirs, train, mine, rank=rank)
    if pairs is not None:
        assert torch.equal(theirs[pairs.test].float(), mine[pairs.train].float())
    pairs = refused_or(random_pairs, theirs, mine, torch.Generator().manual_seed(0))
    if pairs is not None:
        assert torch.equal(theirs[pairs.test].float(), mine[pairs.train].float())


@settings(deadline=None, derandomize=True, max_examples=25)
@given(rises=tensors(), basis=tensors())
def test_decompositions_of_odd_tensors(rises: torch.Tensor, basis: torch.Tensor) -> None:
    draw = torch.Generator().manual_seed(0)
    moves = dual_moves(
        torch.randn(2, 2, generator=draw, dtype=torch.float64),
        torch.randn(5, 2, generator=draw, dtype=torch.float64),
        torch.randn(5, 2, generator=draw, dtype=torch.float64),
    )
    for directions in (basis, torch.eye(4, dtype=torch.float64)):
        found = refused_or(decompose, moves, rises, directions, generator=draw)
        if found is not None:
            assert math.isfinite(found.total)


def samples() -> st.SearchStrategy[torch.Tensor]:
    """Inputs that the network can take, some with a number that is none."""

    def made(number: int, dtype: torch.dtype, spoil: float | None) -> torch.Tensor:
        found = torch.randn(number, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
        if spoil is not None and number:
            found[0, 0] = spoil
        return found

    kinds = st.sampled_from((torch.float32, torch.float64))
    return st.builds(
        made, st.integers(0, 6), kinds, st.sampled_from((None, math.nan, math.inf, 0.0, 1e30))
    )


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    x=samples(),
    y=st.lists(st.integers(0, 1), max_size=6).map(lambda v: torch.tensor(v, dtype=torch.int64)),
    z=samples(),
    as_many=st.booleans(),
    layer=st.sampled_from(["0", "0", "2", "1", "", "9"]),
)
def test_gaps_of_odd_samples(
    x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, as_many: bool, layer: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    t = y
    if as_many:
        y, t = torch.arange(len(x)) % 2, torch.arange(len(z)) % 2
    found = refused_or(generalization_gap, model, layer, (x, y), (z, t))
    if found is not None:
        assert math.isfinite(found.gap)
        assert all(math.isfinite(matched.gap) for matched in found.matched.values())


@pytest.mark.parametrize("batch", [0, -1, None, 1.5, "x"])
def test_a_batch_that_is_none_is_refused(batch: Any) -> None:
    assert refused_or(DualLayer, nn.Sequential(nn.Linear(2, 2)), "0", batch=batch) is None
