"""The feed by itself: its batches, their number and their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flatcl.data import load_images
from flatcl.errors import OptionError
from flatcl.streams import StreamOptions, make_stream


def digits(train_size: int | None = 50) -> Any:
    """The first task's training data."""
    stream = make_stream(load_images("digits"), StreamOptions(train_size=train_size), seed=0)
    return stream.benchmark.train_stream[0].dataset


@pytest.mark.parametrize(
    ("count", "size", "drop", "lengths"),
    [
        (50, 16, False, [16, 16, 16, 2]),
        (50, 16, True, [16, 16, 16]),
        (48, 16, True, [16] * 3),
        (48, 16, False, [16] * 3),
        (5, 16, False, [5]),
        (5, 16, True, []),
        (3, 1, False, [1, 1, 1]),
    ],
)
def test_the_last_partial_batch(count: int, size: int, drop: bool, lengths: list[int]) -> None:
    data = digits(count)
    feed = data.feed(size, drop_last=drop)
    assert [len(batch[1]) for batch in feed] == lengths
    assert len(feed) == len(lengths)


def test_a_batch_size_of_0_is_refused() -> None:
    with pytest.raises(OptionError, match="batch size is 0"):
        digits().feed(0)


def test_orders_are_new_each_epoch_the_same_each_time_and_leave_global_randomness() -> None:
    data = digits(None)
    state = torch.get_rng_state()
    feed = data.feed(32, shuffle=True)
    first, second = (torch.cat([batch[0] for batch in feed]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    again = data.feed(32, shuffle=True)
    assert torch.equal(torch.cat([batch[0] for batch in again]), first)
    assert not torch.equal(first, second)
    plain = torch.cat([batch[0] for batch in data.feed(32)])
    assert not torch.equal(first, plain)
    whole = sorted(map(tuple, plain.flatten(1).tolist()))
    assert sorted(map(tuple, first.flatten(1).tolist())) == whole
    assert sorted(map(tuple, second.flatten(1).tolist())) == whole
