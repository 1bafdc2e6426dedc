"""What LDC rests on: does stiffness from gradient fluctuations rank the flatness that is there?

``python -m benchmarks.bridge`` trains two streams with LDC, by each source of stiffness. At each
task's end it measures the loss along eigendirections of every layer, for the stiffness of that task
alone and its own data, and after the last task for the merged stiffness and the data of all tasks.
It adds the runs that are missing to ``benchmarks/results/bridge.json`` and renders
``benchmarks/BRIDGE.md`` from that; ``--render`` only renders.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.bridge_report import RISE, SOURCES, STREAMS, Row, figure, render
from benchmarks.kept import entries
from flatcl import Landscape, LDCOptions
from flatcl.core.layers import matrix_views
from flatcl.core.options import Source
from flatcl.core.stiffness import damp
from flatcl.data import load_images
from flatcl.fluctuations.ranking import stiffness_ranking
from flatcl.fluctuations.surface import LossSurface
from flatcl.io import write_bytes, write_json
from flatcl.seeds import derive_seed
from flatcl.versions import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "bridge.json"
TASKS = 3
Task = tuple[Tensor, Tensor]
_DIGITS = 4  # of a number in the results


@dataclass(frozen=True)
class Setup:
    """What is common to all runs.

    Attributes:
        images: of a task, at most.
        lr: η of plain SGD.
        batch: B.
        judged: images of a task whose loss is measured along the directions, for all tasks
            together at the end.
        directions: of a layer.
        rise: of the threshold above the central loss, nats.
    """

    images: int = 6000
    lr: float = 0.05
    batch: int = 32
    judged: int = 1000
    directions: int = 50
    rise: float = RISE

    @cached_property
    def data(self) -> Task:
        """Training images of MNIST as rows, scaled by two scalars, and their classes."""
        images = load_images("mnist")
        x = images.x_train.flatten(1).float()
        return (x - x.mean()) / x.std(), images.y_train

    def tasks(self, stream: str, seed: int) -> list[Task]:
        """Return the inputs and classes of each task.

        Args:
            stream: a key of ``STREAMS``.
            seed: number of the repeat.

        Returns:
            ``TASKS`` pairs: pixels permuted anew in each but the first, or two digits in each.
        """
        x, y = self.data
        generator = _generator(seed, stream, "tasks")
        found = []
        for t in range(TASKS):
            order = torch.randperm(len(x), generator=generator)
            if stream == "split":
                order = order[(y[order] // 2) == t]
            chosen = order[: self.images]
            pixels = torch.randperm(x.shape[1], generator=generator)
            if stream == "split" or t == 0:
                pixels = torch.arange(x.shape[1])
            found.append((x[chosen][:, pixels], y[chosen]))
        return found


def run(setup: Setup, stream: str, source: Source, seed: int) -> list[Row]:
    """Return what was measured in one training of a stream.

    Args:
        setup: the set-up.
        stream: a key of ``STREAMS``.
        source: of LDC's stiffness.
        seed: number of the repeat.

    Returns:
        One entry a layer and data: ``data`` is a task's number, or "all" after the last task.
    """
    torch.manual_seed(derive_seed("bridge", seed, stream, "weights"))
    sides = (nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
    model = nn.Sequential(*sides)
    optimizer = torch.optim.SGD(model.parameters(), lr=setup.lr)
    options = LDCOptions(
        source=source, pseudo_inputs=0, seed=derive_seed("bridge", seed, "noise") % 2**32
    )
    landscape = Landscape(model, optimizer, options=options)
    # The same measurement of a task alone: it holds no earlier task, so that it never pulls.
    own_options = LDCOptions(
        source=source, damping=0.0, centre=False, pseudo_inputs=0, seed=options.seed
    )
    rows: list[Row] = []
    seen: list[Task] = []
    for t, (x, y) in enumerate(setup.tasks(stream, seed)):
        order = _generator(seed, stream, "order", t)
        loader = DataLoader(
            TensorDataset(x, y), batch_size=setup.batch, shuffle=True, generator=order
        )
        steps = STREAMS[stream] * len(loader)
        own = Landscape(model, optimizer, options=own_options)
        for each in (landscape, own):
            each.begin_task(steps)
        for _ in range(STREAMS[stream]):
            for xb, yb in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(xb), yb).backward()
                optimizer.step()
                for each in (landscape, own):
                    each.step(len(xb))
        for each in (landscape, own):  # the centre is installed before the task alone is measured
            each.end_task(loader)
        seen.append((x, y))
        mine = {"stream": stream, "source": source, "seed": seed}
        rows += [mine | row for row in _judged(setup, own, seen[-1:], t, options.use_damping)]
    return rows + [mine | row for row in _judged(setup, landscape, seen, "all", None)]


def _judged(
    setup: Setup,
    landscape: Landscape,
    tasks: Sequence[Task],
    name: int | str,
    damping: float | None,
) -> Iterator[Row]:
    """Yield each layer's directions: its stiffness, as LDC damps it, beside the measured loss."""
    each = setup.judged // len(tasks)
    x, y = (torch.cat([task[i][:each] for task in tasks]) for i in (0, 1))
    for unit in matrix_views(landscape.model):
        constraint = landscape.constraints[unit.name]
        bare = constraint.stiffness
        held = bare if damping is None else damp(bare, damping)
        assert constraint.basis is not None
        surface = LossSurface(
            landscape.model, x, y, parameters=unit.names, dtype=torch.float32, batch=len(x)
        )
        found = stiffness_ranking(
            held, constraint.basis, surface, directions=setup.directions, rise=setup.rise
        )
        i, j = found.index.T
        columns = {
            "k": found.stiffness,
            "undamped": None if damping is None else bare[i, j],
            "h": found.curvature,
            "left": found.near.left,
            "right": found.near.right,
            "far_left": found.far.left,
            "far_right": found.far.right,
        }
        yield {
            "data": name,
            "layer": unit.name.partition(".")[0],
            "loss": found.near.loss,
            "ranks": found.ranks.tolist(),
            "law": None if found.law is None else asdict(found.law),
        } | {key: None if c is None else _rounded(c) for key, c in columns.items()}


def _rounded(column: Tensor) -> list[float | None]:
    return [
        float(f"{v:.{_DIGITS}g}") if math.isfinite(v) else None for v in column.double().tolist()
    ]


def _generator(*parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("bridge", *parts))


def fill(setup: Setup, seeds: int) -> None:
    """Make the runs that are missing, and write each as it ends.

    Args:
        setup: the set-up.
        seeds: number of repeats.
    """
    rows = entries(RESULTS, asdict(setup), "rows")
    there = {(row["seed"], row["stream"], row["source"]) for row in rows}
    for seed in range(seeds):
        for stream in STREAMS:
            for source in SOURCES:
                if (seed, stream, source) in there:
                    continue
                rows += run(setup, stream, source, seed)
                content = {"setup": asdict(setup), "versions": dict(versions()), "rows": rows}
                write_json(RESULTS, content)
                print(f"seed {seed}, {stream}, {source}: done", flush=True)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="repeats [1]")
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    setup = Setup()
    if not chosen.render:
        fill(setup, chosen.seeds)
    rows = entries(RESULTS, asdict(setup), "rows")
    names = {**asdict(setup), **STREAMS, "tasks": TASKS}
    write_bytes(HERE / "BRIDGE.md", render(rows, names).encode())
    figure(rows, HERE.parent / "docs" / "bridge.png")


if __name__ == "__main__":
    main()
