"""What a task sees of the stored images: a transformation, made on first use and cached."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

_CHUNK = 4096  # images rotated at once: bounds the memory of their sampling grids


@dataclass(frozen=True)
class View:
    """What one task makes of the stored images: padded, turned, standardised, permuted.

    Attributes:
        mean: subtracted from every pixel, in stored units.
        std: every pixel is then divided by it.
        pad: zero pixels on each side, added first.
        angle: degrees counter-clockwise, bilinear, zeros outside.
        seed: of the pixel permutation (channels stay together); None leaves the order.
    """

    mean: float
    std: float
    pad: int = 0
    angle: float = 0.0
    seed: int | None = None

    def apply(self, stored: Tensor) -> Tensor:
        """Return the network's inputs, float32, of the stored images.

        Args:
            stored: images [N, C, H, W] or rows [N, D].

        Returns:
            Inputs [N, C, H + 2 pad, W + 2 pad] or [N, D].
        """
        x = functional.pad(stored, [self.pad] * 4) if self.pad else stored
        x = x.float()
        if self.angle:
            x = torch.cat([_rotate(chunk, self.angle) for chunk in torch.split(x, _CHUNK)])
        x = x.sub(self.mean).div_(self.std)
        if self.seed is None:
            return x
        flat = x.flatten(2) if x.ndim == 4 else x
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(flat.shape[-1], generator=generator)
        return flat.index_select(-1, order).view_as(x)


class TensorCache:
    """Tensors made on demand and kept within a budget, the least recently used going first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of ``key``, made now if it is not held.

        The newest tensor is kept even where it alone exceeds the budget.

        Args:
            key: names the tensor within this cache.
            make: makes it; must give equal values each time.

        Returns:
            The tensor, shared: not to be written to.
        """
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        value = self._held[key] = make()
        while len(self._held) > 1 and self.bytes_held() > self.budget:
            self._held.popitem(last=False)
        return value

    def bytes_held(self) -> int:
        """Return the bytes of the tensors now held."""
        return sum(value.nbytes for value in self._held.values())

    def __reduce__(self) -> tuple[type[TensorCache], tuple[int]]:
        return TensorCache, (self.budget,)  # a pickled task carries no tensor it can make again


class TaskImages(Dataset[tuple[Tensor, int]]):
    """One part (training, validation or test) of one task, transformed on first use."""

    def __init__(
        self,
        stored: Tensor,
        *,
        rows: Tensor,
        targets: Tensor,
        view: View,
        cache: TensorCache,
        key: Hashable,
        order_seed: int,
    ) -> None:
        self.targets = targets
        self.order_seed = order_seed
        self.cache = cache
        self._stored = stored
        self._rows = rows
        self._view = view
        self._key = key

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs()[index], int(self.targets[index])

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self._view.apply(self._stored[:1]).shape[1:])

    @property
    def nbytes(self) -> int:
        """The bytes of all inputs in float32."""
        return 4 * len(self) * math.prod(self.shape)

    def inputs(self) -> Tensor:
        """Return all inputs [N, …], float32, kept in the cache: not to be written to."""
        return self.cache.get(self._key, lambda: self._view.apply(self._stored[self._rows]))

    def select(self, indices: Tensor, *, cached: bool = True) -> Tensor:
        """Return some inputs, as a copy.

        Args:
            indices: positions [n], int64.
            cached: take them from the cached tensor of all inputs, made if missing; else
                transform these alone, which spares memory where many tasks are mixed.

        Returns:
            Inputs [n, …], float32.
        """
        if cached:
            return self.inputs().index_select(0, indices)
        return self._view.apply(self._stored[self._rows[indices]])


def _rotate(x: Tensor, angle: float) -> Tensor:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    height, width = x.shape[-2:]
    # The grid's coordinates run from −1 to 1 on each axis, so a turn of pixels is sheared in them.
    turn = x.new_tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    grid = functional.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
