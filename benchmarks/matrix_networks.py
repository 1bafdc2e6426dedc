"""Small networks of the usual kinds for 8×8 images, with heads that stay, are added, or grow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.residual import resnet18_body

SIDE = 8  # pixels


class Network(nn.Module):
    """Features and one head or more.

    Args:
        body: from images [B, 1, 8, 8] to features [B, width].
        width: number of features.
        classes: outputs of the first head.
    """

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.width = body, width
        self.heads = nn.ModuleList([nn.Linear(width, classes)])

    def forward(self, x: Tensor, heads: Tensor | None = None) -> Tensor:
        """Return each image's outputs of its head, by number [B]; of the first if none are told."""
        features = self.body(x)
        if heads is None:
            first: Tensor = self.heads[0](features)
            return first
        found = [self.heads[head](features[heads == head]) for head in heads.unique().tolist()]
        outputs = features.new_empty((len(x), found[0].shape[1]))
        for head, part in zip(heads.unique().tolist(), found, strict=True):
            outputs[heads == head] = part
        return outputs

    def add_head(self, classes: int) -> None:
        """Add a head beside those there."""
        self.heads.append(nn.Linear(self.width, classes))

    @torch.no_grad()
    def grow_head(self, classes: int) -> None:
        """Replace the first head by one of more outputs; the old ones keep their weights."""
        old, new = self.heads[0], nn.Linear(self.width, classes)
        assert isinstance(old, nn.Linear)
        new.weight[: old.out_features] = old.weight
        new.bias[: old.out_features] = old.bias
        self.heads[0] = new


class _Transformer(nn.Module):
    """A vision transformer: 2×2 patches, a class token, learned places, two layers."""

    def __init__(self, width: int, patch: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIDE // patch) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        return self.norm(self.encoder(x)[:, 0])


class _Rows(nn.Module):
    """An LSTM that reads an image row by row; its last output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.lstm(x.squeeze(1))[0][:, -1]
        return last


def mlp(classes: int) -> Network:
    """Return a perceptron 64-64-64."""
    layers = (nn.Flatten(), nn.Linear(SIDE**2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return Network(nn.Sequential(*layers), 64, classes)


def cnn(classes: int) -> Network:
    """Return two convolutions with BatchNorm, pooled to 2×2."""
    layers: list[nn.Module] = []
    for before, after in pairwise((1, 16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return Network(nn.Sequential(*layers, nn.Flatten()), 128, classes)


def resnet18(classes: int) -> Network:
    """Return ResNet-18 with 8 to 64 channels and the stem that small images get."""
    return Network(resnet18_body(1, 8), 64, classes)


def vit(classes: int) -> Network:
    """Return a vision transformer of two layers, 32 wide, with dropout."""
    return Network(_Transformer(32), 32, classes)


def lstm(classes: int) -> Network:
    """Return an LSTM of 48 units over the rows of an image."""
    return Network(_Rows(48), 48, classes)


NETWORKS: dict[str, Callable[[int], Network]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": resnet18,
    "vit": vit,
    "lstm": lstm,
}
