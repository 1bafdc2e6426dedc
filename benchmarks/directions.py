"""What principal directions cost: exact, streaming and scikit-learn's, then a whole ResNet-18.

``python -m benchmarks.directions`` gives each method a fresh process with one thread, which reads
the same snapshots from a memory-mapped file. Times are of the processor. Memory is the growth of
the process's anonymous memory (RssAnon, so that pages of the mapped file do not count), which the
parent samples every 5 ms. Writes ``benchmarks/results/directions.json`` and
``benchmarks/DIRECTIONS.md``; ``--render`` makes the second from the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.residual import ResidualBlock
from flatcl.data import load_images
from flatcl.fluctuations.flatness import flatness
from flatcl.fluctuations.pca import StreamingDirections, principal_directions
from flatcl.fluctuations.record import Recorder, open_record
from flatcl.fluctuations.surface import LossSurface
from flatcl.io import write_bytes, write_json
from flatcl.seeds import derive_seed
from flatcl.tables import markdown_table
from flatcl.versions import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "directions.json"
T, P, K, TOP = 1000, 269_322, 50, 10  # P: a 784-256-256-10 perceptron
CHUNK = 100  # snapshots that the stream is fed at a time
PROBED = {"snapshots": 200, "warm_up": 200, "directions": 20, "images": 256, "batch": 64}
TEXT = """# What principal directions cost

Made by `python -m benchmarks.directions`: each method in a fresh process, one thread, on the same
memory-mapped float32 snapshots; processor time, medians where a method ran more than once; memory
is what the process's anonymous memory grew by. Raw figures: `results/directions.json`.

## {T} snapshots of {P:,} weights, {K} directions

Errors are of the {TOP} largest variances, the worst of them, relative to the exact ones.
*walk* is made up: 200 directions with σ_i ∝ 1/i, half of them random walks, and white noise in all
weights. *mnist* is the training of the 784-256-256-10 perceptron, every step from the first on.
`IncrementalPCA` gets its batches by `partial_fit`, since `fit` would copy the file into memory.

{methods}

## ResNet-18, {weights:,} weights

Trained on Fashion-MNIST (padded to 32×32, three channels); {snapshots} snapshots of all weights,
one a step, after {warm_up} steps; its {K} leading directions; the two-sided flatness along the
first {directions} of them, on {images} images, in float32. The loss is {loss:.2f} nats at the
centre; {censored} of {sides} sides are censored, the whole widths {narrow:.2f} to {wide:.2f}.

{stages}
"""


def walk(snapshots: Any) -> None:
    """Write a made-up trajectory of falling spectrum into ``snapshots`` [T, P]."""
    g = torch.Generator().manual_seed(derive_seed("directions", "walk"))
    rank = 200
    scores = torch.randn(T, rank, generator=g)
    scores[:, ::2] = scores[:, ::2].cumsum(0)
    scores = scores / scores.std(0) / torch.arange(1, rank + 1)
    for start in range(0, P, 8192):
        part = slice(start, min(start + 8192, P))
        n = part.stop - start
        x = scores @ torch.randn(rank, n, generator=g) / P**0.5
        x += torch.randn(T, n, generator=g) * (0.05 / P) ** 0.5  # 3 % of the variance
        x += torch.randn(n, generator=g) / 784**0.5  # where the weights are
        snapshots[:, part] = x.numpy()


def mnist(snapshots: Any) -> None:
    """Write the weights of a perceptron in training into ``snapshots`` [T, P]."""
    torch.manual_seed(derive_seed("directions", "mnist"))
    data = load_images("mnist")
    x, y = data.x_train.flatten(1).float() / 255, data.y_train
    sizes = (784, 256), (256, 256), (256, 10)
    layers = [m for pair in sizes for m in (nn.Linear(*pair), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for row in snapshots:
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
        row[:] = nn.utils.parameters_to_vector(net.parameters()).detach().numpy()


TRAJECTORIES: dict[str, Callable[[Any], None]] = {"walk": walk, "mnist": mnist}


def _exact(file: Path) -> Callable[[], Any]:
    snapshots = torch.from_numpy(np.memmap(file, np.float32, mode="c", shape=(T, P)))
    return lambda: principal_directions(snapshots, K).variances


def _streaming(file: Path) -> Callable[[], Any]:
    snapshots = torch.from_numpy(np.memmap(file, np.float32, mode="c", shape=(T, P)))

    def run() -> Tensor:
        stream = StreamingDirections(K)
        for part in snapshots.split(CHUNK):
            stream.add(part)
        return stream.directions().variances

    return run


def _incremental(batch: int) -> Callable[[Path], Callable[[], Any]]:
    def prepare(file: Path) -> Callable[[], Any]:
        from sklearn.decomposition import IncrementalPCA

        snapshots = np.memmap(file, np.float32, mode="r", shape=(T, P))

        def run() -> Any:
            pca = IncrementalPCA(K)
            for start in range(0, T, batch):
                pca.partial_fit(snapshots[start : start + batch])
            return pca.explained_variance_ * (T - 1) / T

        return run

    return prepare


METHODS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "exact": _exact,
    "streaming": _streaming,
    "IncrementalPCA, batch 100": _incremental(100),
    "IncrementalPCA, batch 200": _incremental(200),
}


def resnet18(classes: int) -> nn.Module:
    """Return the ResNet-18 of He et al., CVPR 2016, with ImageNet's stem."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    widths = (64, 64, 128, 256, 512)
    blocks = []
    for before, after in pairwise(widths):
        blocks += [
            ResidualBlock(before, after, 1 if before == after else 2),
            ResidualBlock(after, after, 1),
        ]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *end)


def probe(folder: Path) -> None:
    """Record a ResNet-18 in training, find its directions, and the flatness along them."""
    torch.manual_seed(derive_seed("directions", "resnet18"))
    data = load_images("fashion")
    x = nn.functional.pad(data.x_train.float() / 255, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    net = resnet18(data.n_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)

    def train(steps: int) -> Iterator[float]:
        for _ in range(steps):
            chosen = torch.randint(len(x), (PROBED["batch"],))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[chosen]), data.y_train[chosen])
            loss.backward()
            optimizer.step()
            yield loss.item()

    with _stage("warm-up, not recorded"):
        list(train(PROBED["warm_up"]))
    with _stage("training, recorded") as facts, Recorder(net, folder / "record") as recorder:
        losses = []
        for loss in train(PROBED["snapshots"]):
            recorder.step()
            losses.append(loss)
        facts["losses"] = losses
    with _stage("exact directions") as facts:
        snapshots = open_record(folder / "record").weights()
        found = principal_directions(snapshots, K)
        facts |= {"weights": snapshots.shape[1], "variances": found.variances.tolist()}
        facts |= {"total": found.total}
    chosen = torch.randperm(len(x))[: PROBED["images"]]
    with _stage("flatness") as facts:
        surface = LossSurface(net, x[chosen], data.y_train[chosen], dtype=torch.float32)
        valley = flatness(surface, found.directions[: PROBED["directions"]])
        facts |= {"loss": valley.loss, "censored": int(valley.censored.sum())}
        sides = {"left": valley.left, "right": valley.right}
        facts |= {n: [None if v.isnan() else float(v) for v in side] for n, side in sides.items()}


def _anonymous(process: int | str = "self") -> int:
    """Return the bytes of a process's resident memory that no file backs."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return next(
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon:")
    )


@contextmanager
def _stage(name: str) -> Iterator[dict[str, Any]]:
    """Tell the parent, by lines of JSON, when a stage begins and what came of it."""
    facts: dict[str, Any] = {"stage": name}
    print(json.dumps({"begin": name, "anonymous": _anonymous()}), flush=True)
    cpu, wall = time.process_time(), time.perf_counter()
    yield facts
    facts["cpu_seconds"] = time.process_time() - cpu
    facts["wall_seconds"] = time.perf_counter() - wall
    print(json.dumps(facts), flush=True)


def _fresh(*arguments: str) -> list[dict[str, Any]]:
    """Return the stages of a child process, each with its peak of memory."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "benchmarks.directions", *arguments]
    stages, peak, over = [], 0, threading.Event()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | threads
    ) as child:

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.005):
                try:
                    peak = max(peak, _anonymous(child.pid))
                except (OSError, StopIteration):  # it has ended
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        assert child.stdout is not None
        for line in child.stdout:
            message = json.loads(line)
            if "begin" in message:
                before = peak = message["anonymous"]
            else:
                stages.append(message | {"anonymous_before": before, "anonymous_peak": peak})
                print(f"  {message['stage']}: {message['cpu_seconds']:.1f} s", file=sys.stderr)
        over.set()
    if child.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {child.returncode}")
    return stages


def measure(repeats: int) -> dict[str, Any]:
    """Return the raw figures of every method, in turn on each trajectory, and of ResNet-18."""
    raw: dict[str, Any] = {name: {method: [] for method in METHODS} for name in TRAJECTORIES}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "snapshots"
        for trajectory, write in TRAJECTORIES.items():
            snapshots = np.memmap(file, np.float32, mode="w+", shape=(T, P))
            write(snapshots)
            snapshots.flush()
            for repeat in range(repeats):
                for method in METHODS:
                    if repeat == 0 or not method.startswith("Incremental"):
                        raw[trajectory][method] += _fresh("--method", method, "--file", str(file))
        file.unlink()
        return {"methods": raw, "resnet18": _fresh("--probe", "--file", name)}


def render() -> None:
    """Write the tables from the raw figures."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))

    def extra(stage: dict[str, Any]) -> float:
        return float(stage["anonymous_peak"] - stage["anonymous_before"]) / 1e9

    rows = []
    for trajectory, methods in content["methods"].items():
        exact = torch.tensor(methods["exact"][0]["variances"][:TOP]).double()
        seconds = {m: statistics.median(r["cpu_seconds"] for r in methods[m]) for m in methods}
        for method, runs in methods.items():
            worst = (torch.tensor(runs[0]["variances"][:TOP]).double() / exact - 1).abs().max()
            rows.append(
                [
                    f"{trajectory}: {method}",
                    str(len(runs)),
                    f"{seconds[method]:.1f}",
                    f"{seconds[method] / seconds['exact']:.2f}",
                    f"{max(map(extra, runs)):.2f}",
                    "0" if method == "exact" else f"{worst:.1e}",
                ]
            )
    header = ["method", "runs", "CPU s", "/ exact", "extra GB", f"error, top {TOP}"]
    stages = content["resnet18"]
    shown = [
        [
            stage["stage"],
            f"{stage['cpu_seconds']:.0f}",
            f"{stage['wall_seconds']:.0f}",
            f"{extra(stage):.1f}",
            f"{stage['anonymous_peak'] / 1e9:.1f}",
        ]
        for stage in stages
    ]
    facts = {name: value for stage in stages for name, value in stage.items()}
    sides = zip(facts["left"], facts["right"], strict=True)
    widths = [a + b for a, b in sides if a is not None and b is not None]
    text = TEXT.format(
        methods=markdown_table(header, rows),
        stages=markdown_table(["stage", "CPU s", "s", "extra GB", "peak GB"], shown),
        weights=facts["weights"], loss=facts["loss"], censored=facts["censored"],
        sides=2 * len(facts["left"]), narrow=min(widths), wide=max(widths),
        T=T, P=P, K=K, TOP=TOP, **PROBED,
    )  # fmt: skip
    write_bytes(HERE / "DIRECTIONS.md", text.encode())


def main() -> None:
    """Measure and render, or do one part of it as a child process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of flatcl's own methods [3]")
    parser.add_argument("--render", action="store_true", help="make the tables only")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.method:
        run = METHODS[chosen.method](chosen.file)
        with _stage(chosen.method) as facts:
            facts["variances"] = run().tolist()
    elif chosen.probe:
        probe(chosen.file)
    else:
        if not chosen.render:
            packages = {**versions(), "scikit-learn": metadata.version("scikit-learn")}
            write_json(RESULTS, {"threads": 1, "versions": packages} | measure(chosen.repeats))
        render()


if __name__ == "__main__":
    main()
