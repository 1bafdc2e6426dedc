"""LDC in a Lightning trainer, two tasks of scikit-learn's digits."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="lightning is not installed: pip install lightning")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch import LightningModule, Trainer

    from flatcl.lightning import LDCCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def tasks() -> list[TensorDataset]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)[:900]
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)[:900]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    return [TensorDataset(x, y), TensorDataset(x[:, order], y)]


def first_task_kept(folder: Path, callbacks: list[Any], accumulate: int = 1) -> float:
    torch.manual_seed(0)
    model, both = Classifier(), tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, logs and devices
        for data in both:
            trainer = Trainer(
                max_epochs=6, callbacks=callbacks, accelerator="cpu", logger=False,
                enable_checkpointing=False, enable_progress_bar=False, barebones=False,
                enable_model_summary=False, default_root_dir=folder,
                accumulate_grad_batches=accumulate,
            )  # fmt: skip
            trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
    x, y = both[0].tensors
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_task_is_kept(tmp_path: Path, accumulate: int) -> None:
    callback = LDCCallback()
    held = first_task_kept(tmp_path, [callback], accumulate)
    assert held > first_task_kept(tmp_path, [], accumulate) + 0.1
    assert callback.landscape.tasks_ended == 2
    assert callback.landscape.task is None
