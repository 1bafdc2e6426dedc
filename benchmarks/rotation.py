"""New inputs as moves of the old weights: what LDC's constraint knows of a task before it trains.

``python -m benchmarks.rotation`` trains a network on MNIST, then asks, for the same images turned
by 5 to 90 degrees: what does the constraint of the first task say of the dual moves, and how does
that go with the loss on the turned images (zero-shot) and with what training on them costs the
first task? It makes the runs that are missing under ``benchmarks/results/rotation`` and renders
``benchmarks/ROTATION.md`` and its figure; ``--render`` only renders.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rotation_report import render
from flatcl import Landscape, LDCOptions
from flatcl.data import Images, load_images, stratified_split
from flatcl.duality import DualLayer, dual_energies, dual_moves
from flatcl.io import write_json
from flatcl.models import make_model
from flatcl.seeds import derive_seed
from flatcl.views import View

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "rotation"
SEEDS = (0, 1, 2, 3, 4)
ANGLES = (5, 10, 15, 20, 30, 40, 50, 60, 75, 90)
LAYERS = {"1": "first", "3": "second", "5": "third"}
_TRAIN, _PAIRS = 6000, 1000
_HIDDEN, _LR, _BATCH, _EPOCHS = (100, 100), 0.05, 32, (5, 1)


def measure(seed: int, images: Images) -> dict[str, Any]:
    """Return the figures of one repeat, by class where they are of samples.

    Args:
        seed: of the repeat.
        images: MNIST.

    Returns:
        What JSON holds.
    """
    _, rows = stratified_split(images.y_train, _TRAIN, seed=derive_seed(seed, "images"))
    stored, y = images.x_train[rows], images.y_train[rows]
    test, t = images.x_test, images.y_test
    mean, std = float(stored.float().mean()), float(stored.float().std())

    def turned(x: Tensor, angle: float) -> Tensor:
        return View(mean, std, angle=angle).apply(x)

    model = make_model(stored.shape[1:], images.n_classes, seed=seed, hidden=_HIDDEN)
    landscape = Landscape(model, _optimizer(model), options=LDCOptions(pseudo_inputs=0))
    upright = turned(stored, 0.0)
    _train(model, landscape, upright, y, _EPOCHS[0], seed)
    held = turned(test, 0.0)
    before = _losses(model, held, t)
    pairs = slice(0, _PAIRS)
    found: dict[str, Any] = {"seed": seed, "angles": []}
    for angle in ANGLES:
        inputs = turned(stored, float(angle))
        of_layer = {}
        for name, label in LAYERS.items():
            layer = DualLayer(model, name)
            a, b = layer.activity(upright[pairs]), layer.activity(inputs[pairs])
            moves = dual_moves(layer.weight, a, b)
            energies = dual_energies(moves, landscape.constraints[f"{name}.weight"])
            kept = moves.kept & energies.isfinite()
            of_layer[label] = {
                "energy": _by_class(energies, y[pairs], kept),
                "move": _by_class(moves.norms().square(), y[pairs], kept),
                "without": moves.without + moves.tiny,
                "per_sample": _spearman(
                    energies[kept],
                    (_losses(model, inputs[pairs], y[pairs])
                     - _losses(model, upright[pairs], y[pairs]))[kept],
                ),
            }  # fmt: skip
        everyone = torch.ones(len(t), dtype=torch.bool)
        zero = _losses(model, turned(test, float(angle)), t) - before
        distance = (inputs[pairs] - upright[pairs]).flatten(1).square().sum(1)
        row = {
            "angle": angle,
            "zero_shot": _by_class(zero, t, everyone),
            "distance": _by_class(distance, y[pairs], everyone[pairs]),
            "layers": of_layer,
            "trained": {
                name: _after(model, landscape, inputs, y, seed, strength, held, t, before)
                for name, strength in (("naive", 0.0), ("ldc", landscape.options.strength))
            },
        }
        found["angles"].append(row)
    return found


def _after(
    model: nn.Module,
    landscape: Landscape,
    inputs: Tensor,
    y: Tensor,
    seed: int,
    strength: float,
    held: Tensor,
    t: Tensor,
    before: Tensor,
) -> dict[str, Any]:
    """Return what training on a turned task does to the first one."""
    own = copy.deepcopy(model)
    options = LDCOptions(pseudo_inputs=0, strength=strength)
    follower = Landscape(own, _optimizer(own), options=options)
    if strength:
        follower.load_state_dict(landscape.state_dict())
    _train(own, follower, inputs, y, _EPOCHS[1], seed)
    loss = _losses(own, held, t) - before
    quadratic = sum(
        float(held_there.energy(_view(own, name)))
        for name, held_there in landscape.constraints.items()
    )
    return {
        "forgetting": _by_class(loss, t, torch.ones_like(t, dtype=torch.bool)),
        "quadratic": quadratic,
    }


def _view(model: nn.Module, name: str) -> Tensor:
    layer = model.get_submodule(name.removesuffix(".weight"))
    assert isinstance(layer, nn.Linear)
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)


def _train(
    model: nn.Module, landscape: Landscape, x: Tensor, y: Tensor, epochs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
    optimizer = landscape.metric.optimizer
    landscape.begin_task()
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(x), generator=generator), _BATCH):
            optimizer.zero_grad()
            cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            landscape.step(len(chosen))
    landscape.end_task(zip(x.split(_BATCH), y.split(_BATCH), strict=True))


def _optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=_LR)


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model(x).double(), y, reduction="none")


def _by_class(values: Tensor, labels: Tensor, mask: Tensor) -> list[float]:
    return [float(values[mask & (labels == c)].mean()) for c in range(int(labels.max()) + 1)]


def _spearman(first: Tensor, second: Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def main() -> None:
    """Make what is missing, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    chosen = parser.parse_args()
    paths = [RESULTS / f"seed-{seed}.json" for seed in SEEDS]
    if not chosen.render and not all(path.exists() for path in paths):
        torch.set_num_threads(1)
        images = load_images("mnist")
        for seed, path in zip(SEEDS, paths, strict=True):
            if not path.exists():
                write_json(path, measure(seed, images))
                print(f"seed {seed}: done", file=sys.stderr, flush=True)
    done = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    render(done, HERE)


if __name__ == "__main__":
    main()
