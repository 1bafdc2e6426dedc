"""The probe's gradient of every kind of network, against autograd on all leaves, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO

from flatcl.core.batches import chunked
from flatcl.core.gradients import (
    Forward,
    evaluation_mode,
    outputs_of,
    probe_gradients,
    training_gradients,
)
from flatcl.core.layers import matrix_views, trained_parameters
from flatcl.core.moments import OuterProduct
from flatcl.core.stiffness import OutputDraw, label_directions, output_directions
from flatcl.errors import DataError


def compare(model: nn.Module, x: Tensor, forward: Forward | None = None) -> list[object]:
    """Check one probe gradient against autograd's of the same r · f; return it."""
    run: Forward = forward or (lambda batch: model(batch[0]))
    units, parameters = matrix_views(model), trained_parameters(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    (found,) = probe_gradients(
        model, units, parameters, [[x]], forward=run, widths=[0.0] * len(units), scale=0.7,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with evaluation_mode(model), torch.enable_grad():
        outputs = run([x])
    if outputs.dim() == 1:
        outputs = outputs[:, None]
    rows = outputs[..., 0].numel()
    r = output_directions(outputs, 0.7 * (len(x) / rows) ** 0.5, torch.Generator().manual_seed(3))
    leaves = list(parameters.values())
    whole = torch.autograd.grad(outputs, leaves, r, allow_unused=True)
    by_name = {
        name: torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
        for (name, p), g in zip(parameters.items(), whole, strict=True)
    }
    for unit, g in zip(units, found, strict=True):
        G = g.dense() if isinstance(g, OuterProduct) else g
        torch.testing.assert_close(G, unit.gather(by_name), rtol=1e-10, atol=1e-12, msg=unit.name)
    assert any(float(g.norm()) > 0 for g in by_name.values())
    return list(found)


def factored(found: list[object]) -> list[bool]:
    return [isinstance(g, OuterProduct) for g in found]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("fused", [True, False], ids=["fused kernels", "plain"])
def test_probe_gradients_of_the_zoo(name: str, fused: bool) -> None:
    kind = ZOO[name]
    model = kind.model().double()
    allowed = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        compare(model, kind.inputs(6, 1, torch.float64))
    finally:
        torch.backends.mha.set_fastpath_enabled(allowed)


def test_a_linear_layer_whose_hook_is_passed_by_is_taken_from_its_leaf() -> None:
    """Attention multiplies with out_proj's weight itself."""
    model = ZOO["attention"].model().double()
    found = compare(model, ZOO["attention"].inputs(4, 1, torch.float64))
    names = [unit.name for unit in matrix_views(model)]
    assert not factored(found)[names.index("fused.out_proj.weight")]
    assert float(found[names.index("fused.out_proj.weight")].norm()) > 0  # type: ignore[attr-defined]


class Tied(nn.Module):
    """A weight used by a layer and once more in plain code."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(4, 9)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.code(x)), self.code.weight.T)


class ByKeyword(nn.Module):
    """A layer called twice, once by keyword, where a hook sees no input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.layer(input=x).relu())
        return out


class Scaled(nn.Linear):
    """A subclass whose output is not W x + b."""

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class SharedWeight(nn.Module):
    """Two layers with one weight and a bias each, of which a forward pass uses the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 9), nn.Linear(4, 9)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(x)
        return out


@pytest.mark.parametrize(
    ("model", "width"), [(Tied, 4), (ByKeyword, 9), (lambda: Scaled(4, 9), 4), (SharedWeight, 4)]
)
def test_a_weight_with_another_use_is_taken_from_its_leaf(
    model: Callable[[], nn.Module], width: int, generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, width, generator=generator, dtype=torch.float64)
    assert not any(factored(compare(model().double(), x)))


def test_hooks_of_others_on_a_layer_are_respected(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3)).double()
    model[0].register_forward_hook(lambda layer, inputs, output: 3.0 * output)
    model[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1.0,))
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    assert all(factored(compare(model, x)))


def test_sparse_gradients_of_an_embedding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.tensor([[0, 1], [1, 1], [5, 2]])
    compare(model, x)
    model(x).sum().backward()
    units, parameters = matrix_views(model), trained_parameters(model)
    assert all(not g.is_sparse for g in training_gradients(units, parameters))


def test_a_compiled_model(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    compiled = torch.compile(inner, backend="aot_eager")
    compiled(x)  # compiled before the probe's hooks are there
    compare(compiled, x)  # type: ignore[arg-type]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_distributed_model_probes_and_trains_on(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    model = nn.parallel.DistributedDataParallel(inner)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    for _ in range(2):  # a probe between two training steps must not be waited for
        assert all(factored(compare(model, x)))
        model(x).sum().backward()
        model.zero_grad()


def test_rows_that_the_network_mixes_are_not_taken_as_independent(
    generator: torch.Generator,
) -> None:
    """A batch with a row an input throughout, and yet an output depends on other inputs."""

    class Mixing(nn.Module):
        def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.body, self.head, self.mix = nn.Linear(4, 9), nn.Linear(9, 3), mix

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.mix(torch.tanh(self.body(x))))
            return out

    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    neighbours = torch.eye(12).roll(1, 0).double() + torch.eye(12).double()
    mixes: list[tuple[Callable[[Tensor], Tensor], bool]] = [
        (lambda h: h, True),
        (lambda h: h.flip(0), True),  # another order is no mixture
        (lambda h: h - h.mean(0), False),
        (lambda h: h.cumsum(0), False),
        (lambda h: neighbours @ h, False),
    ]
    for mix, independent in mixes:
        torch.manual_seed(0)
        body, _ = compare(Mixing(mix).double(), x)
        assert (isinstance(body, OuterProduct) and body.independent) is independent


@pytest.mark.parametrize("draw", [output_directions, label_directions])
def test_stiffness_is_a_mean_over_tokens_as_the_loss_is(
    draw: OutputDraw, generator: torch.Generator
) -> None:
    """Five tokens an input, or five times as many inputs: the same curvature of the mean loss."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, dtype=torch.float64)
    x = torch.randn(4000, 5, 3, generator=generator, dtype=torch.float64)
    (unit,), parameters = matrix_views(model), trained_parameters(model)
    p = model(x).softmax(-1).detach()
    # Covariance of r, on the diagonal: I − 11ᵀ/2, or diag p − ppᵀ.
    weight = torch.tensor(0.5) if draw is output_directions else (p[..., :1] * p[..., 1:])
    expected = (weight * torch.cat([x, torch.ones(4000, 5, 1)], 2).square()).mean((0, 1))
    for data, size in ((x, 4), (x.flatten(0, 1), 20)):
        second = torch.zeros(2, 4, dtype=torch.float64)
        for (g,) in probe_gradients(
            model, [unit], parameters, chunked([data], inputs=20_000, size=size, device=x.device),
            forward=lambda batch: model(batch[0]), widths=[0.0], scale=1.0, generator=generator,
            draw=draw,
        ):  # fmt: skip
            second += (g.dense() if isinstance(g, OuterProduct) else g).square()
        torch.testing.assert_close((second / len(data)).mean(0), expected, rtol=0.15, atol=0.0)


def test_recurrent_layers_stay_differentiable_and_without_dropout() -> None:
    """CuDNN differentiates them in training mode alone."""
    layer = nn.LSTM(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    with evaluation_mode(layer):
        assert layer.training
        assert torch.equal(layer(x)[0], layer(x)[0])
    assert layer.training
    assert layer.dropout == 0.5
    layer.eval()
    with evaluation_mode(layer):
        pass
    assert not layer.training


def test_outputs_that_the_probe_cannot_read_are_refused_with_a_remedy() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(DataError, match=r"returned a tuple.*pass forward="):
        outputs_of(lambda batch: (x, x), [x])  # type: ignore[arg-type, return-value]
    for bad in (x.sum(), x.long()):
        with pytest.raises(DataError, match="floating-point outputs"):
            outputs_of(lambda batch, bad=bad: bad, [x])  # type: ignore[misc]
    assert outputs_of(lambda batch: x[:, 0], [x]).shape == (4, 1)
