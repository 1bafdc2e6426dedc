"""The streams that defaults are chosen on, that the short table reports, and longer ones."""

from __future__ import annotations

from typing import Any

from flatcl import CompareOptions

_SHORT: dict[str, dict[str, Any]] = {
    "permuted-mnist": {"data": "mnist", "scenario": "permuted", "epochs": 3},
    "permuted-fashion": {"data": "fashion", "scenario": "permuted", "epochs": 3},
    "rotated-mnist": {"data": "mnist", "scenario": "rotated"},
    "split-mnist-task": {"data": "mnist", "scenario": "split-task"},
    "split-fashion-task": {"data": "fashion", "scenario": "split-task"},
    "split-fashion-domain": {"data": "fashion", "scenario": "split-domain"},
    "split-mnist-domain": {"data": "mnist", "scenario": "split-domain"},
    "split-mnist-class": {"data": "mnist", "scenario": "split-class"},
    "split-fashion-class": {"data": "fashion", "scenario": "split-class"},
}
LONG: dict[str, dict[str, Any]] = {
    "permuted-mnist-10": {
        "data": "mnist",
        "scenario": "permuted",
        "tasks": 10,
        "epochs": 3,
        "train_size": 12000,
    },
    "permuted-mnist-20": {"data": "mnist", "scenario": "permuted", "tasks": 20, "epochs": 3},
    "rotated-mnist-15": {"data": "mnist", "scenario": "rotated", "tasks": 15, "max_angle": 162.0},
}
SHORT = tuple(_SHORT)
RATES = {"sgd": 0.05, "adam": 1e-3}


def stream_outputs(name: str) -> int:
    """Return the number of outputs that one task of a named stream uses.

    Args:
        name: of ``SHORT`` or ``LONG``.

    Returns:
        2 on task- and domain-incremental streams, else 10.
    """
    return 2 if name.endswith(("-task", "-domain")) else 10


def stream_options(name: str, optimizer: str, **further: Any) -> CompareOptions:
    """Return the options of a named stream: 784-100-100-C, batches of 32, two epochs or three.

    Args:
        name: of ``SHORT`` or ``LONG``.
        optimizer: "sgd" (lr 0.05) or "adam" (lr 0.001).
        **further: more fields of ``CompareOptions``.

    Returns:
        The options; five tasks of 6000 images unless the stream says otherwise.
    """
    fields: dict[str, Any] = {
        "epochs": 2,
        "train_size": 6000,
        "optimizer": optimizer,
        "lr": RATES[optimizer],
        **{**_SHORT, **LONG}[name],
        **further,
    }
    return CompareOptions(**fields)
