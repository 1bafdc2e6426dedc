"""States of a landscape with an entry missing or wrong: refused, or nothing of it is taken up."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import values
from spoiling import GONE, at, paths, spoilt, wrong
from torch import nn
from torch.nn import functional as F

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.errors import OptionError, StateError

WEIGHT = "0.weight"


def network() -> tuple[nn.Sequential, Landscape]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, Landscape(model, optimizer, options=LDCOptions(interval=3, probe_inputs=20))


def learned() -> dict[str, Any]:
    """The state in the middle of a second task."""
    model, landscape = network()
    optimizer = landscape.metric.optimizer
    draw = torch.Generator().manual_seed(1)
    for task in range(2):
        x = torch.randn(40, 4, generator=draw) + task
        y = torch.randint(3, (40,), generator=draw)
        landscape.begin_task()
        for _ in range(10):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + landscape.rehearsal()).backward()
            optimizer.step()
            landscape.step()
        if task == 0:
            landscape.end_task([x])
    return landscape.state_dict()


STATE = learned()
PATHS = [path for path in paths(STATE) if path[0] != "generator"]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def load(state: Any) -> Landscape:
    _, landscape = network()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the saved landscape had other options")
        landscape.load_state_dict(state)
    return landscape


@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
def test_what_is_not_taken_up_changes_nothing(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    kinds = wrong(at(STATE, path))
    state = spoilt(STATE, path, kinds[data.draw(st.sampled_from(sorted(kinds)))])
    _, landscape = network()
    before = landscape.state_dict()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the saved landscape had other options")
        try:
            landscape.load_state_dict(state)
        except Exception:  # of which kind, the tests below ask
            assert same(landscape.state_dict(), before)


@pytest.mark.parametrize("path", [p for p in PATHS if len(p) == 1], ids=str)
def test_a_missing_entry_is_refused_or_was_not_there_in_earlier_versions(path: Any) -> None:
    optional = {"frozen_until", "history", "inputs", "task"}
    if path[0] in optional:
        load(spoilt(STATE, path, GONE))
        return
    with pytest.raises(StateError):
        load(spoilt(STATE, path, GONE))


@pytest.mark.parametrize("name", STATE["constraints"])
@pytest.mark.parametrize("key", ["stiffness", "anchor"])
def test_a_constraint_without_its_tensors_or_of_another_shape_is_refused(
    name: str, key: str
) -> None:
    path = ("constraints", name, key)
    for kind in ("gone", "another shape"):
        with pytest.raises(StateError):
            load(spoilt(STATE, path, wrong(at(STATE, path))[kind]))


_TYPES = [
    ("constraints",), ("constraints", WEIGHT), ("constraints", WEIGHT, "stiffness"),
    ("constraints", WEIGHT, "U_in"), ("history",), ("history", "spent"), ("inputs", "dtype"),
    ("inputs", "groups"), ("tasks_ended",), ("options",), ("task", "steps_made"),
    ("task", "schedule", "pulls"), ("task", "schedule", "units"), ("task", "centre", "segments"),
]  # fmt: skip


@pytest.mark.parametrize("path", _TYPES, ids=str)
def test_an_entry_of_another_type_is_refused(path: Any) -> None:
    with pytest.raises(StateError):
        load(spoilt(STATE, path, None if path != ("history",) else "x"))


@pytest.mark.parametrize("path", [("constraints", WEIGHT, "U_in"), ("history", "spent")], ids=str)
def test_half_of_a_pair_is_refused(path: Any) -> None:
    with pytest.raises(StateError):
        load(spoilt(STATE, path, GONE))


_NUMBERS = [
    ("constraints", WEIGHT, "stiffness"), ("constraints", WEIGHT, "anchor"),
    ("constraints", WEIGHT, "U_out"), ("tasks_ended",), ("task", "start", WEIGHT),
    ("task", "schedule", "strengthened"),
]  # fmt: skip


@pytest.mark.parametrize("path", _NUMBERS, ids=str)
def test_a_state_of_nan_is_refused(path: Any) -> None:
    with pytest.raises(StateError):
        load(spoilt(STATE, path, wrong(at(STATE, path))["NaN"]))


def test_a_negative_stiffness_is_refused() -> None:
    path = ("constraints", WEIGHT, "stiffness")
    with pytest.raises(StateError):
        load(spoilt(STATE, path, wrong(at(STATE, path))["negative"]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_not_read_as_a_state(tmp_path: Any, share: float) -> None:
    path = tmp_path / "state.pt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    assert same(torch.load(path, weights_only=True), STATE)
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((RuntimeError, EOFError, OSError)):
        torch.load(path, weights_only=True)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    options=st.dictionaries(
        st.sampled_from([n for n in LDCOptions.__dataclass_fields__ if n != "basis"]),
        values(),
        min_size=1,
        max_size=2,
    )
)
def test_options_of_ldc_are_taken_or_refused(options: dict[str, Any]) -> None:
    try:
        found = LDCOptions(**options)
    except OptionError:
        return
    assert math.isfinite(found.strength)
    assert found.interval >= 1


def test_a_whole_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(OptionError):
        LDCOptions(strength=10**400)
