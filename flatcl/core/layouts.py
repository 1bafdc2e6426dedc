"""Where the matrices lie in torch's own layers.

In each, an output direction is a unit or channel, an input direction a unit, or a channel at one
kernel position: what the layer multiplies its input with is W [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = re.compile(r"weight(_(?:ih|hh|hr)(?:_l\d+)?(?:_reverse)?)")


@dataclass(frozen=True)
class LayerMatrix:
    """One matrix of a layer.

    Attributes:
        weight: the parameter that it is a part of.
        label: its name among the parts of that parameter, None if it is the whole.
        rows: of the parameter, first and last + 1, None for all.
        transposed: True if the parameter is [in, out, …].
        bias: the parameter that has its bias, or None.
        bias_rows: of the bias, None for all.
    """

    weight: Tensor
    label: str | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False
    bias: Tensor | None = None
    bias_rows: tuple[int, int] | None = None

    @property
    def out(self) -> int:
        """Output directions."""
        return self.weight.shape[1] if self.transposed else self._length

    @property
    def width(self) -> int:
        """Input directions, without the bias."""
        shape = self.weight.shape
        return self._length * shape[2:].numel() if self.transposed else shape[1:].numel()

    @property
    def _length(self) -> int:
        return len(self.weight) if self.rows is None else self.rows[1] - self.rows[0]


def layer_matrices(layer: nn.Module) -> list[LayerMatrix]:
    """Return the matrices of one layer, without its submodules'.

    Linear and Bilinear: [out, in]. Convolutions: [out, in · kernel positions], one matrix a group;
    none if a group has a single output channel (depthwise), for then a matrix is a row. Attention:
    query, key and value. Recurrent layers: input, hidden and projection weights, gates as outputs.
    Weights that are computed (parametrisations, weight norm) are no parameters and give none.

    Args:
        layer: any module.

    Returns:
        Matrices, trained or not.
    """
    own = layer._parameters  # not getattr: that would compute a parametrised weight
    weight, bias = own.get("weight"), own.get("bias")
    if isinstance(layer, nn.MultiheadAttention):
        return _attention(own, layer.embed_dim)
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return [
            LayerMatrix(w, bias=own.get(f"bias{found[1]}"))
            for name, w in own.items()
            if (found := _RECURRENT.fullmatch(name)) and w is not None
        ]
    if weight is None:
        return []
    if isinstance(layer, _ConvNd):
        return _convolution(layer, weight, bias)
    if isinstance(layer, (nn.Linear, nn.Bilinear)):
        return [LayerMatrix(weight, bias=bias)]
    return []


def entry_by_entry(model: nn.Module) -> dict[int, str]:
    """Return the parameters that are no matrix although they may have two dimensions.

    An embedding's inputs are one-hot, so that its entries are the natural basis already; a
    normalisation multiplies entry by entry; a leaf behind a parametrisation enters a weight by a
    rule that is not known here.

    Args:
        model: any module.

    Returns:
        id of the parameter → why.
    """
    found: dict[int, str] = {}
    for module in model.modules():
        own = {n: p for n, p in module._parameters.items() if p is not None}
        if isinstance(module, _NORMS):
            found.update({id(p): "normalisation" for p in own.values()})
        elif isinstance(module, ParametrizationList):
            found.update({id(p): "leaf of a parametrisation" for p in own.values()})
        elif isinstance(module, _EMBEDDINGS) and "weight" in own:
            found[id(own["weight"])] = "embedding: one-hot inputs"
        elif isinstance(module, _ConvNd) and _is_depthwise(module) and "weight" in own:
            found[id(own["weight"])] = "one output channel a group"
        for name, p in own.items():
            stem, _, end = name.rpartition("_")
            # torch's older weight norm, spectral norm and pruning keep weight_g, _v or _orig.
            if end in ("g", "v", "orig") and isinstance(module.__dict__.get(stem), Tensor):
                found[id(p)] = "leaf of a computed weight"
    return found


def _attention(own: dict[str, nn.Parameter | None], width: int) -> list[LayerMatrix]:
    bias = own.get("in_proj_bias")
    fused = own.get("in_proj_weight")
    found = []
    for i, letter in enumerate("qkv"):
        rows = (i * width, (i + 1) * width)
        if fused is not None:
            found.append(LayerMatrix(fused, letter, rows, bias=bias, bias_rows=rows))
        elif (weight := own.get(f"{letter}_proj_weight")) is not None:
            found.append(LayerMatrix(weight, bias=bias, bias_rows=rows))
    return found


def _convolution(layer: _ConvNd, weight: Tensor, bias: Tensor | None) -> list[LayerMatrix]:
    transposed = isinstance(layer, _ConvTransposeNd)
    if layer.groups == 1:
        return [LayerMatrix(weight, transposed=transposed, bias=bias)]
    if _is_depthwise(layer):
        return []
    rows, outs = _slices(len(weight), layer.groups), _slices(layer.out_channels, layer.groups)
    return [
        LayerMatrix(weight, str(g), place, transposed, bias, at)
        for g, (place, at) in enumerate(zip(rows, outs, strict=True))
    ]


def _is_depthwise(layer: _ConvNd) -> bool:
    return layer.groups > 1 and layer.out_channels == layer.groups


def _slices(length: int, number: int) -> Iterator[tuple[int, int]]:
    size = length // number
    return ((g * size, (g + 1) * size) for g in range(number))
