"""Residual networks of few channels (He et al., CVPR 2016), as continual learning has them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the identity, or a 1×1 where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.side: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.side = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, in the shape of the second convolution's."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.side(x))


def resnet18_body(channels: int, width: int) -> nn.Sequential:
    """Return ResNet-18 without its head, with the stem that small images get.

    With 20 channels it is the reduced one of Lopez-Paz & Ranzato, NeurIPS 2017.

    Args:
        channels: of the images.
        width: channels of the first stage; the last of four has 8 times as many.

    Returns:
        From images [B, channels, H, W] to features [B, 8 · width].
    """
    stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
    for before, after in pairwise((width, width, 2 * width, 4 * width, 8 * width)):
        stride = 1 if before == after else 2
        layers += [ResidualBlock(before, after, stride), ResidualBlock(after, after, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
