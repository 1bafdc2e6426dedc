"""LDC in a Hugging Face trainer, two tasks of scikit-learn's digits as pixel values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Trainer, TrainingArguments

    from flatcl.transformers import LDCCallback


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(pixel_values)
        found = Output(logits=logits)
        if labels is not None:
            found["loss"] = nn.functional.cross_entropy(logits, labels)
        return found


class Output(dict[str, Tensor]):
    @property
    def logits(self) -> Tensor:
        return self["logits"]


def tasks() -> list[list[dict[str, Any]]]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)[:900]
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)[:900]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    return [
        [{"pixel_values": row, "labels": int(label)} for row, label in zip(inputs, y, strict=True)]
        for inputs in (x, x[:, order])
    ]


def first_task_kept(folder: Path, callbacks: list[Any]) -> float:
    torch.manual_seed(0)
    model, both = Classifier(), tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in both:
            arguments = TrainingArguments(
                output_dir=str(folder), num_train_epochs=6, per_device_train_batch_size=32,
                learning_rate=0.05, optim="sgd", lr_scheduler_type="constant", report_to=[],
                save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no",
                max_grad_norm=0.0,
            )  # fmt: skip
            trainer = Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
            trainer.train()
    x = torch.stack([one["pixel_values"] for one in both[0]])
    y = torch.tensor([one["labels"] for one in both[0]])
    with torch.no_grad():
        return float((model(x).logits.argmax(1) == y).float().mean())


def test_the_first_task_is_kept(tmp_path: Path) -> None:
    callback = LDCCallback()
    held = first_task_kept(tmp_path, [callback])
    assert held > first_task_kept(tmp_path, []) + 0.1
    assert callback.landscape.tasks_ended == 2
    assert callback.landscape.inputs.groups  # images are rehearsed
