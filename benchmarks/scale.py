"""Scale: a thousand experiences, a hundred million weights, an hour of training.

``python -m benchmarks.scale stream large soak`` measures what is named, each method in a process
of its own, keeps it in ``benchmarks/results/scale`` and renders ``benchmarks/SCALE.md`` and its
figure; ``--render`` only renders. It takes about 90 minutes, an hour of them for the soak.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

from benchmarks.scale_report import render
from flatcl import Landscape, LDCOptions
from flatcl.avalanche import LDC
from flatcl.data import load_images
from flatcl.io import write_json
from flatcl.models import make_model
from flatcl.streams import StreamOptions, make_stream

from avalanche.logging import BaseLogger  # isort: skip
from avalanche.training import Naive  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip

RESULTS = Path(__file__).parent / "results" / "scale"
METHODS = ("naive", "ldc")
EXPERIENCES, DISTINCT = 1000, 50
LARGE = (3072, 8192, 8192, 1000)  # 100.6 million weights and biases
LARGE_STEPS, LARGE_BATCH, LARGE_TASKS = 40, 32, 2
SOAK_MINUTES, SOAK_FIRST = 60.0, 5.0
_MEGABYTE = 2**20


def stream(method: str) -> list[dict[str, float]]:
    """Train on a thousand experiences of 64 digits in Avalanche.

    Args:
        method: of ``METHODS``.

    Returns:
        One row an experience: seconds, MB resident, bytes held, bytes of what would be saved.
    """
    torch.manual_seed(0)
    options = StreamOptions(tasks=DISTINCT, train_size=64)
    experiences = make_stream(load_images("digits"), options, seed=0).benchmark.train_stream
    model = make_model(torch.Size([1, 8, 8]), 10, seed=0, hidden=(64,))
    strategy = (LDC if method == "ldc" else Naive)(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=2,
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    )
    rows = []
    for number in trange(EXPERIENCES, desc=f"stream, {method}"):
        begun = time.perf_counter()
        strategy.train(experiences[number % DISTINCT])
        row = {"seconds": time.perf_counter() - begun, "resident": _resident()}
        if isinstance(strategy, LDC):
            assert strategy.ldc.landscape is not None
            saved = io.BytesIO()
            torch.save(strategy.ldc.landscape.state_dict(), saved)
            row |= {"held": strategy.bytes_held(), "saved": len(saved.getvalue())}
        rows.append(row)
    return rows


def large(method: str) -> list[dict[str, float]]:
    """Train a network of a hundred million weights on two tasks, on two threads.

    Args:
        method: of ``METHODS``.

    Returns:
        One row a task: seconds a step and at the task's end, MB resident, at most and held.
    """
    torch.set_num_threads(2)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for d_in, d_out in itertools.pairwise(LARGE):
        layers += [nn.Linear(d_in, d_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    landscape = None
    if method == "ldc":
        landscape = Landscape(model, optimizer, options=LDCOptions())
    draw, rows = torch.Generator().manual_seed(1), []
    centres = torch.randn(LARGE[-1], LARGE[0], generator=draw)
    for task in range(LARGE_TASKS):
        shift = torch.randn(LARGE[0], generator=draw)

        def batch(shift: Tensor = shift) -> tuple[Tensor, Tensor]:
            y = torch.randint(LARGE[-1], (LARGE_BATCH,), generator=draw)
            noise = torch.randn(LARGE_BATCH, LARGE[0], generator=draw)
            return centres[y] + shift + noise, y

        if landscape is not None:
            landscape.begin_task()
        begun = time.perf_counter()
        for _ in trange(LARGE_STEPS, desc=f"large, {method}, task {task + 1}"):
            x, y = batch()
            optimizer.zero_grad()
            if landscape is None:
                loss = cross_entropy(model(x), y)
            else:
                with landscape.joining():
                    outputs = model(x)
                loss = cross_entropy(outputs, y) + landscape.rehearsal()
            loss.backward()
            optimizer.step()
            if landscape is not None:
                landscape.step()
        stepped = time.perf_counter()
        if landscape is not None:
            landscape.end_task([batch()[0] for _ in range(32)])
        rows.append(
            {
                "weights": sum(p.numel() for p in model.parameters()),
                "step": (stepped - begun) / LARGE_STEPS,
                "end": time.perf_counter() - stepped,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "held": landscape.bytes_held() / _MEGABYTE if landscape is not None else 0.0,
                "finite": float(all(bool(p.isfinite().all()) for p in model.parameters())),
            }
        )
    return rows


def soak(minutes: float) -> list[dict[str, float]]:
    """Train for an hour: task after task, with all that a long run does between.

    Every task trains, evaluates, forecasts, saves and takes up its own state.

    Args:
        minutes: how long.

    Returns:
        One row a quarter of a minute: minutes, MB resident, tasks ended, bytes held.
    """
    torch.manual_seed(0)
    options = StreamOptions(tasks=DISTINCT, train_size=256)
    tasks = [
        experience.dataset.batch(torch.arange(256))
        for experience in make_stream(load_images("digits"), options, seed=0).benchmark.train_stream
    ]
    model = make_model(torch.Size([1, 8, 8]), 10, seed=0, hidden=(100, 100))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    chosen = LDCOptions()
    landscape = Landscape(model, optimizer, options=chosen)
    rows: list[dict[str, float]] = []
    begun, ended = time.perf_counter(), 0
    while (now := (time.perf_counter() - begun) / 60) < minutes:
        x, y = tasks[ended % len(tasks)][:2]
        landscape.begin_task()
        for number, part in enumerate(torch.randperm(2560).remainder(256).split(32)):
            optimizer.zero_grad()
            with landscape.joining():
                outputs = model(x[part])
            (cross_entropy(outputs, y[part]) + landscape.rehearsal()).backward()
            optimizer.step()
            landscape.step()
            if number == 40:
                with landscape.evaluating(), torch.no_grad():
                    model(x)
                landscape.forecast([x[:64]])
        landscape.end_task(list(x.split(64)))
        file = io.BytesIO()
        torch.save(landscape.state_dict(), file)
        file.seek(0)
        landscape = Landscape(model, optimizer, options=chosen)
        landscape.load_state_dict(torch.load(file, weights_only=True))
        ended += 1
        if 4 * now >= len(rows):
            rows.append(
                {"minutes": now, "resident": _resident(), "tasks": ended,
                 "held": landscape.bytes_held()}
            )  # fmt: skip
            print(f"soak: {now:.1f} of {minutes:g} minutes, {ended} tasks", file=sys.stderr)
    return rows


def _resident() -> float:
    return float(psutil.Process().memory_info().rss) / _MEGABYTE


def main() -> None:
    """Measure what is named, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["stream", "large", "soak", []], default=[])
    parser.add_argument("--minutes", type=float, default=SOAK_MINUTES, help="of the soak")
    parser.add_argument("--render", action="store_true", help="only render")
    parser.add_argument("--alone", metavar="METHOD", choices=METHODS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone:
        rows: Any = {"stream": stream, "large": large}[chosen.parts[0]](chosen.alone)
        write_json(RESULTS / f"{chosen.parts[0]}-{chosen.alone}.json", rows)
        return
    for part in () if chosen.render else chosen.parts:
        if part == "soak":
            write_json(RESULTS / "soak.json", soak(chosen.minutes))
            continue
        for method in METHODS:  # a process of its own: its memory is its own
            command = [sys.executable, "-m", "benchmarks.scale", part, "--alone", method]
            subprocess.run(command, check=True)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    render(found, Path(__file__).parent)


if __name__ == "__main__":
    main()
