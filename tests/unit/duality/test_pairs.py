"""Partners of the same class."""

from __future__ import annotations

import pytest
import torch

from flatcl.duality import nearest_pairs, pairs, random_pairs
from flatcl.errors import DataError, OptionError


def clouds(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    test, train = (torch.randn(n, 2, 3, generator=generator).double() for n in (40, 90))
    labels = [torch.randint(3, (n,), generator=generator) for n in (40, 90)]
    return test, labels[0], train, labels[1]


@pytest.mark.parametrize("rank", [1, 2])
def test_they_are_those_of_a_plain_loop(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_ENTRIES", 100)  # several parts a class
    test, mine, train, theirs = clouds()
    found = nearest_pairs(test, mine, train, theirs, rank=rank)
    for k in range(len(test)):
        distances = (train - test[k]).flatten(1).norm(dim=1)
        distances[theirs != mine[k]] = torch.inf
        assert found.train[found.test == k].item() == distances.argsort()[rank - 1]


def test_random_partners_are_of_the_class_and_differ() -> None:
    test, mine, _, theirs = clouds()
    generator = torch.Generator().manual_seed(1)
    first, second = (random_pairs(mine, theirs, generator) for _ in range(2))
    assert torch.equal(theirs[first.train], mine)
    assert len(first.test) == len(test)
    assert not torch.equal(first.train, second.train)


def test_a_class_without_partners_is_named() -> None:
    test, mine, train, theirs = clouds()
    alone = theirs.clone()
    alone[alone == 2] = 1
    with pytest.raises(DataError, match="class 2 has 0 training samples"):
        nearest_pairs(test, mine, train, alone)
    with pytest.raises(DataError, match="class 2 has no training sample"):
        random_pairs(mine, alone, torch.Generator())
    with pytest.raises(OptionError, match="rank is 0"):
        nearest_pairs(test, mine, train, theirs, rank=0)
