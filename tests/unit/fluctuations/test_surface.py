"""Known answers 15 and 16, and the loss of a block against autograd; the model is never touched."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flatcl.errors import DataError, OptionError
from flatcl.fluctuations.loss import cross_entropy
from flatcl.fluctuations.surface import LossSurface

CLASSES = 3


def data(*shape, n=11, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g), torch.arange(n) % CLASSES


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)), *data(4)


def convolutional():
    """With running statistics that differ from where they start, and a module of another mode."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Dropout(0.5), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, CLASSES))
    images, labels = data(1, 4, 4)
    model(3.0 * images + 1.0)
    model.train()
    model[1].eval()
    return model, images, labels


class Words(nn.Module):
    """Takes integers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, words):
        return self.head(self.embedding(words).mean(1).tanh())


def words():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    return Words(), torch.randint(6, (11, 4), generator=g), torch.arange(11) % CLASSES


def tied():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, CLASSES)), *data(4)


NETWORKS = [perceptron, convolutional, words, tied]


def oracle(model, inputs, targets) -> tuple[Callable[..., Tensor], Tensor]:
    """A double copy's sample losses as a function of all its weights, and those weights."""
    twin = copy.deepcopy(model).double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    shapes = {name: p.shape for name, p in twin.named_parameters()}

    def losses(vector, inputs=inputs, targets=targets):
        parts, start = {}, 0
        for name, shape in shapes.items():
            parts[name] = vector[start : start + shape.numel()].reshape(shape)
            start += shape.numel()
        logits = functional_call(twin, parts, (inputs,))
        return -logits.log_softmax(1)[torch.arange(len(targets)), targets]

    return losses, torch.cat([p.detach().reshape(-1) for p in twin.parameters()])


def autograd(losses, point, i=None):
    w = point.clone().requires_grad_()
    found = losses(w)
    (gradient,) = torch.autograd.grad(found.mean() if i is None else found[i], w)
    return gradient


def close(a, b, *, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"batch": 4, "rows": 2}, {"batch": 3, "rows": 1}])
def test_everything_against_autograd_whatever_the_batch_and_the_rows(network, options, generator):
    model, inputs, targets = network()
    losses, w0 = oracle(model, inputs, targets)
    surface = LossSurface(model, inputs, targets, **options)
    close(surface.reference, w0)
    assert surface.size == len(w0)
    point = w0 + 0.3 * torch.randn(len(w0), generator=generator, dtype=torch.float64)
    vectors = torch.randn(5, len(w0), generator=generator, dtype=torch.float64)
    points = torch.stack([w0, point, -point])
    close(surface.losses(points), torch.stack([losses(p).mean() for p in points]))
    close(surface.sample_losses(point), losses(point))
    close(surface.gradient(point), autograd(losses, point))
    chosen = torch.tensor([[7, 2, 2], [0, 1, 3]])
    each = torch.stack([autograd(losses, point, i) for i in range(len(inputs))])
    close(surface.minibatch_gradients(point, chosen), each[chosen].mean(1))
    close(surface.sample_slopes(point, vectors), vectors @ each.T)
    H = torch.func.hessian(lambda w: losses(w).mean())(point)
    close(surface.hessian_products(point, vectors), vectors @ H)
    mean, error = surface.loss_with_error(point)
    assert mean == pytest.approx(float(losses(point).mean()), rel=1e-12)
    spread = float(losses(point).std()) / len(inputs) ** 0.5
    assert error == pytest.approx(spread, rel=1e-12)


def test_softmax_regression_in_closed_form(generator):
    n, d = 9, 5
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.arange(n) % CLASSES
    W = torch.randn(CLASSES, d, generator=generator, dtype=torch.float64)
    surface = LossSurface(nn.Linear(d, CLASSES, bias=False), x, y)
    p = (x @ W.T).softmax(1)
    H = torch.zeros(CLASSES * d, CLASSES * d, dtype=torch.float64)
    for k in range(n):
        spread = torch.diag(p[k]) - torch.outer(p[k], p[k])
        H += torch.kron(spread, torch.outer(x[k], x[k])) / n
    eye = torch.eye(CLASSES * d, dtype=torch.float64)
    close(surface.hessian_products(W.reshape(-1), eye), H)
    gradients = torch.einsum("ni,nj->nij", p - nn.functional.one_hot(y), x).reshape(n, -1)
    close(surface.sample_slopes(W.reshape(-1), eye).T, gradients)
    close(surface.gradient(W.reshape(-1)), gradients.mean(0))


def everything(surface):
    """What a caller may ask of a surface, by name."""
    w = surface.reference + 0.1
    rows = torch.stack([w, -w])
    return {
        "losses": lambda: surface.losses(rows),
        "sample_losses": lambda: surface.sample_losses(w),
        "loss_with_error": lambda: torch.tensor(surface.loss_with_error(w)),
        "gradient": lambda: surface.gradient(w),
        "minibatch": lambda: surface.minibatch_gradients(w, torch.tensor([[1, 3]])),
        "hessian_products": lambda: surface.hessian_products(w, rows),
        "sample_slopes": lambda: surface.sample_slopes(w, rows),
    }


class FailingError(RuntimeError):
    pass


def failing(outputs, targets):
    raise FailingError


@pytest.mark.parametrize("loss", [cross_entropy, failing])
@pytest.mark.parametrize("rows", [1, 64])
def test_the_model_is_left_alone_whatever_happens(loss, rows):
    model, inputs, targets = convolutional()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    state = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    held = [id(p) for p in (*model.parameters(), *model.buffers())]
    modes = [m.training for m in model.modules()]
    assert len(set(modes)) == 2
    surface = LossSurface(model, inputs, targets, loss=loss, rows=rows)
    for ask in everything(surface).values():
        if loss is failing:
            with pytest.raises(FailingError):
                ask()
        else:
            ask()
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
        assert all(map(torch.equal, [p.grad for p in model.parameters()], grads))
        assert [id(p) for p in (*model.parameters(), *model.buffers())] == held
        assert [m.training for m in model.modules()] == modes
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # of the surface, or another
def test_the_surface_stays_as_it_was_when_the_model_trains_on(dtype):
    model, inputs, targets = convolutional()
    model, inputs = model.to(dtype), inputs.to(dtype)
    surface = LossSurface(model, inputs, targets, parameters="0.*")
    before = {name: ask() for name, ask in everything(surface).items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    for name, ask in everything(surface).items():
        assert torch.equal(ask(), before[name])
    now = LossSurface(model, inputs, targets, parameters="0.*")
    assert not torch.equal(now.losses(now.reference), surface.losses(surface.reference))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("0.*", ["0.weight", "0.bias"]),
        (["2.weight", "0.bias"], ["0.bias", "2.weight"]),  # in the model's order
        ("*.weight", ["0.weight", "2.weight"]),
    ],
)
def test_a_block_is_a_slice_of_the_whole(patterns, names, generator):
    model, inputs, targets = perceptron()
    whole = LossSurface(model, inputs, targets)
    block = LossSurface(model, inputs, targets, parameters=patterns)
    assert list(block.shapes) == names
    ids = torch.arange(whole.size, dtype=torch.float64)
    own = torch.cat(parts_of(whole, ids, names)).long()
    close(block.reference, whole.reference[own])
    step = torch.randn(block.size, generator=generator, dtype=torch.float64)
    wide = torch.zeros(whole.size, dtype=torch.float64)
    wide[own] = step
    w, W = block.reference + step, whole.reference + wide
    close(block.losses(w), whole.losses(W))
    close(block.gradient(w), whole.gradient(W)[own])
    close(block.hessian_products(w, step)[0], whole.hessian_products(W, wide)[0, own])


def parts_of(surface, vector, names):
    sizes = [shape.numel() for shape in surface.shapes.values()]
    parts = dict(zip(surface.shapes, vector.split(sizes), strict=True))
    return [parts[name] for name in names]


def test_frozen_parameters_are_no_part_of_the_block():
    model, inputs, targets = perceptron()
    model[0].weight.requires_grad_(False)
    surface = LossSurface(model, inputs, targets)
    assert list(surface.shapes) == ["0.bias", "2.weight", "2.bias"]
    layer = LossSurface(model, inputs, targets, parameters=model[2])
    assert list(layer.shapes) == ["2.weight", "2.bias"]
    losses, w0 = oracle(model, inputs, targets)
    close(surface.losses(surface.reference)[0], losses(w0).mean())
    with pytest.raises(OptionError, match=r"'0\.weight' matches no trainable parameter"):
        LossSurface(model, inputs, targets, parameters="0.weight")


def test_a_subset_is_drawn_without_replacement():
    model, inputs, targets = perceptron()
    surface = LossSurface(model, inputs, targets)
    drawn = [surface.subset(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    rows = [[int((inputs.double() == x).all(1).nonzero()) for x in s.inputs] for s in drawn]
    assert len(set(rows[0])) == len(drawn[0]) == 8
    assert rows[0] == rows[1] != rows[2]
    w = surface.reference
    each = surface.sample_losses(w)
    for part, chosen in zip(drawn, rows, strict=True):
        assert part.reference is surface.reference
        close(part.losses(w)[0], each[chosen].mean())
        assert torch.equal(part.targets, targets[chosen])
    assert len(surface) == 11
    everyone = surface.subset(50, torch.Generator().manual_seed(0))
    close(everyone.losses(w), surface.losses(w))


def test_single_precision_is_the_callers_choice():
    model, inputs, targets = perceptron()
    double = LossSurface(model, inputs, targets)
    single = LossSurface(model, inputs, targets, dtype=torch.float32)
    assert single.reference.dtype == single.inputs.dtype == torch.float32
    found, true = (s.losses(double.reference) for s in (single, double))
    assert found.dtype == torch.float64
    close(found, true, tolerance=1e-6)
    assert not torch.equal(found, true)


@pytest.mark.parametrize("batch", [2, 500])
@pytest.mark.parametrize("rows", [1, 64])
def test_a_block_that_the_loss_does_not_see_has_a_flat_surface(batch, rows):
    model, inputs, targets = perceptron()
    model.register_parameter("idle", nn.Parameter(torch.ones(2)))
    surface = LossSurface(model, inputs, targets, parameters="idle", batch=batch, rows=rows)
    loss = float(surface.losses(surface.reference)[0])
    assert loss > 0
    still, vectors = torch.zeros(2, 2).double(), torch.eye(2)
    close(surface.losses(vectors), torch.full((2,), loss, dtype=torch.float64))
    assert torch.equal(surface.gradient(vectors[0]), still[0])
    assert torch.equal(surface.hessian_products(vectors[0], vectors), still)
    assert torch.equal(surface.sample_slopes(vectors[0], vectors), torch.zeros(2, 11).double())


def test_one_sample_has_no_error():
    model, inputs, targets = perceptron()
    surface = LossSurface(model, inputs[:1], targets[:1])
    assert surface.loss_with_error(surface.reference)[1] == 0.0


def test_what_makes_no_surface_is_refused():
    model, inputs, targets = perceptron()
    with pytest.raises(DataError, match="0 inputs and 0 targets"):
        LossSurface(model, inputs[:0], targets[:0])
    with pytest.raises(DataError, match="11 inputs and 10 targets"):
        LossSurface(model, inputs, targets[:10])
    with pytest.raises(OptionError, match="batch 0, rows 64: both must be 1 or more"):
        LossSurface(model, inputs, targets, batch=0)
    with pytest.raises(OptionError, match="batch 500, rows 0"):
        LossSurface(model, inputs, targets, rows=0)
    with pytest.raises(OptionError, match=r"'7\.\*' matches no trainable parameter .* 0\.weight"):
        LossSurface(model, inputs, targets, parameters="7.*")
    with pytest.raises(OptionError, match="it has none"):
        LossSurface(nn.Flatten(), inputs, targets)
    surface = LossSurface(model, inputs, targets, parameters="2.bias")
    with pytest.raises(DataError, match=r"points have 4 weights, the block 2\.bias has 3"):
        surface.losses(torch.zeros(2, 4))
    with pytest.raises(DataError, match="points have 4 weights"):
        surface.sample_slopes(surface.reference, torch.zeros(2, 4))
    mean = LossSurface(model, inputs, targets, loss=nn.functional.cross_entropy)
    for ask in everything(mean).values():
        with pytest.raises(DataError, match="one number a sample, as reduction='none' does"):
            ask()
