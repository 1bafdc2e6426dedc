"""Small networks of every kind of layer, each with inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 3


@dataclass(frozen=True)
class Kind:
    """How to build a network, and the inputs of one sample."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build()

    def inputs(self, n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return torch.randint(0, self.vocabulary, (n, *self.shape), generator=g)
        return torch.randn(n, *self.shape, generator=g, dtype=torch.float64).to(dtype)


class Recurrent(nn.Module):
    """A recurrent layer, read out at its last step."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x)[0][:, -1])
        return out


class Cells(nn.Module):
    """A cell, called once a step: its weights are shared in time."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(4, 5), nn.GRUCell(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h, c = (x.new_zeros(len(x), 5) for _ in range(2))
        s = h
        for step in x.unbind(1):
            h, c = self.lstm(step, (h, c))
            s = self.gru(h, s)
        out: Tensor = self.head(s)
        return out


class Attention(nn.Module):
    """Attention with one fused input projection, then one with three separate ones."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.MultiheadAttention(4, 2, batch_first=True)
        self.separate = nn.MultiheadAttention(4, 2, kdim=6, vdim=5, batch_first=True)
        self.keys, self.values = nn.Linear(4, 6), nn.Linear(4, 5)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fused(x, x, x)[0]
        x = x + self.separate(x, self.keys(x), self.values(x))[0]
        out: Tensor = self.head(x.mean(1))
        return out


class Language(nn.Module):
    """A transformer that predicts a token at each place; its head is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(7, 4), nn.Parameter(0.1 * torch.randn(1, 5, 4))
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embed(x) + self.place))
        return out


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter of parameters, and one with an adapter of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.requires_grad_(False)
        self.A, self.B = nn.Parameter(0.3 * torch.randn(2, 6)), nn.Parameter(torch.zeros(8, 2))
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x) + x @ self.A.T @ self.B.T)
        out: Tensor = self.second(h) + self.up(self.down(h))
        return out


class Heads(nn.Module):
    """Two heads on one body, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.body(x))
        return torch.cat([head(h) for head in self.heads], dim=1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip


def groups() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 8, 3, groups=2), nn.Tanh(), nn.Conv1d(8, 8, 3, groups=8), nn.Tanh(),
        nn.ConvTranspose1d(8, 4, 2, groups=2), nn.Tanh(), nn.ConvTranspose1d(4, 2, 3),
        nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(14, CLASSES),
    )  # fmt: skip


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, CLASSES))


ZOO = {
    "mlp": Kind(mlp, (6,)),
    "cnn": Kind(cnn, (2, 6, 6)),
    "groups": Kind(groups, (4, 8)),
    "rnn": Kind(lambda: Recurrent(nn.RNN(3, 4, 2, batch_first=True), 4), (4, 3)),
    "lstm": Kind(
        lambda: Recurrent(
            nn.LSTM(3, 4, proj_size=2, bidirectional=True, dropout=0.0, batch_first=True), 4
        ),
        (4, 3),
    ),
    "gru": Kind(lambda: Recurrent(nn.GRU(3, 4, 2, dropout=0.3, batch_first=True), 4), (4, 3)),
    "cells": Kind(Cells, (3, 4)),
    "attention": Kind(Attention, (5, 4)),
    "language": Kind(Language, (5,), vocabulary=7),
    "adapters": Kind(Adapted, (6,)),
    "heads": Kind(Heads, (6,)),
    "bag": Kind(bag, (3,), vocabulary=9),
}
