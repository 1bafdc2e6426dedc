"""Avalanche's own example scripts, not a letter changed, with LDC where they import EWC.

They are no part of Avalanche's package: ``AVALANCHE_EXAMPLES`` names the folder ``examples`` of a
checkout, and ``FLATCL_DATA`` one with ``mnist.npz``, which is laid where they look for MNIST.
"""

from __future__ import annotations

import math
import os
import runpy
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatcl.avalanche import LDC
from flatcl.data import load_images
from flatcl.errors import DataError

import avalanche.training  # isort: skip
import avalanche.training.supervised  # isort: skip
from avalanche.benchmarks.datasets import dataset_utils  # isort: skip
from avalanche.training import EWC  # isort: skip

pytestmark = pytest.mark.slow

_ONE_EPOCH = ["--epochs", "1", "--lr", "0.05"]
SCRIPTS = {
    "split": ["ewc_mnist.py", "--scenario", "smnist", *_ONE_EPOCH],
    "permuted": ["ewc_mnist.py", "--scenario", "pmnist", "--permutations", "3", *_ONE_EPOCH],
    "heads": ["multihead.py"],
    "heads, parameter groups": ["multihead_param_groups.py"],
}
_FILES = {
    "x_train": "train-images-idx3-ubyte", "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte", "y_test": "t10k-labels-idx1-ubyte",
}  # fmt: skip


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST as torchvision keeps it: type and sizes, big-endian, before the bytes."""
    try:
        images = load_images("mnist")
    except DataError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("datasets")
    folder = root / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, file in _FILES.items():
        array = getattr(images, name).squeeze().numpy().astype(np.uint8)
        head = struct.pack(f">{1 + array.ndim}i", 0x0800 + array.ndim, *array.shape)
        (folder / file).write_bytes(head + array.tobytes())
    return root


def accuracy(
    strategy: Any, words: list[str], datasets: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> float:
    """Mean accuracy over the test stream after the last experience."""
    found: list[dict[str, float]] = []
    evaluate = strategy.eval

    def noted(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        found.append(evaluate(self, *args, **kwargs))
        return found[-1]

    with monkeypatch.context() as patch:
        for module in (avalanche.training, avalanche.training.supervised):
            patch.setattr(module, "EWC", strategy)
        patch.setattr(strategy, "eval", noted)
        patch.setitem(dataset_utils.AVALANCHE_CONFIG, "dataset_location", str(datasets))
        patch.setattr(sys, "argv", [*words, "--cuda", "-1"])
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Avalanche's own
            runpy.run_path(str(folder / words[0]), run_name="__main__")
    (name,) = [key for key in found[-1] if key.startswith("Top1_Acc_Stream/")][:1]
    return found[-1][name]


@pytest.mark.parametrize("case", SCRIPTS)
def test_an_example_runs_unchanged_and_forgets_no_more(
    case: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = os.environ.get("AVALANCHE_EXAMPLES")
    if not examples or not (Path(examples) / SCRIPTS[case][0]).is_file():
        pytest.skip(f"AVALANCHE_EXAMPLES is {examples!r}: it has no {SCRIPTS[case][0]}")
    folder = Path(examples).resolve()
    monkeypatch.chdir(tmp_path)  # the scripts write logs where they stand
    ewc = accuracy(EWC, SCRIPTS[case], datasets, folder, monkeypatch)
    ldc = accuracy(LDC, SCRIPTS[case], datasets, folder, monkeypatch)
    print(f"{case}: EWC {ewc:.4f}, LDC {ldc:.4f}")
    # Where little is forgotten they are level: two standard errors of a difference of two shares
    # of 10,000 images or more.
    assert ldc > ewc - 2 * math.sqrt(2 * ewc * (1 - ewc) / 10_000)
    if ewc < 0.9:
        assert ldc > ewc + 0.05
