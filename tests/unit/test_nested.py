"""Nested batches as lists of tensors and back."""

from __future__ import annotations

import io
from collections import OrderedDict, namedtuple

import pytest
import torch

from flatcl.errors import DataError
from flatcl.nested import Nesting

X, Y, Z = (torch.zeros(4, n) for n in (3, 1, 2))
Point = namedtuple("Point", ("x", "y"))


@pytest.mark.parametrize(
    ("batch", "parts", "rebuilt"),
    [
        (X, [X], [X]),
        ((X, Y), [X, Y], [X, Y]),
        ([X, Y, Z], [X, Y, Z], [X, Y, Z]),
        (Point(X, Y), [X, Y], [X, Y]),
        ({"x": X, "y": Y}, [X, Y], {"x": X, "y": Y}),
        (OrderedDict(y=Y, x=X), [Y, X], {"y": Y, "x": X}),
        (((X, Z), Y), [X, Z, Y], ((X, Z), Y)),
        ([X, ["a"] * 4, Y], [X, Y], [X, None, Y]),
        ({"x": {"a": [X]}, "n": torch.tensor(1.0)}, [X], {"x": {"a": [X]}, "n": None}),
    ],
)
def test_there_and_back(batch, parts, rebuilt):
    nesting = Nesting()
    found = nesting.tensors_of(batch)
    assert [id(part) for part in found] == [id(part) for part in parts]
    file = io.BytesIO()
    torch.save(nesting.template, file)
    file.seek(0)
    other = Nesting()
    other.template = torch.load(file, weights_only=True)
    again = other.batch_of(parts)
    assert type(again) is type(rebuilt)
    assert identities(again) == identities(rebuilt)
    assert [len(parts) for parts in other.flat([batch, batch])] == [len(parts)] * 2


def identities(batch):
    if isinstance(batch, dict):
        return {key: identities(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(identities(value) for value in batch)
    return None if batch is None else id(batch)


def test_flat_batches_may_differ_and_others_may_not():
    nesting = Nesting()
    for batch in (X, (X, Y), [X, Y, Z]):
        nesting.tensors_of(batch)
    with pytest.raises(DataError, match=r"as \{'x': 0\}, those before it as a sequence"):
        nesting.tensors_of({"x": X})
    nesting = Nesting()
    nesting.tensors_of({"x": X})
    with pytest.raises(DataError, match=r"as a sequence, those before it as \{'x': 0\}"):
        nesting.tensors_of((X, Y))


@pytest.mark.parametrize("batch", ["text", 3, {}, [], ("a", "b"), {"x": [1, 2]}])
def test_batches_without_tensors_are_refused(batch):
    with pytest.raises(DataError, match=f"a batch is a {type(batch).__name__} without tensors"):
        Nesting().tensors_of(batch)
