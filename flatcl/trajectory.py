"""A small network trained to the stop rule by plain SGD, then recorded step by step.

The set-up of Feng & Tu, PNAS 118 (2021): a fully connected network without biases, constant
learning rate, no momentum; training stops once the loss over all images is below a bound. Both
parts can be killed at any moment: training goes on from its last checkpoint, and a recording that
was cut off is made again from the trained weights.
"""

from __future__ import annotations

import io
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatcl.analysis_options import LEAST_STEPS, AnalyzeOptions
from flatcl.analysis_task import Task, make_network, watched
from flatcl.core.checkpoint import generator_from
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations.record import Record, Recorder, open_record
from flatcl.io import write_bytes
from flatcl.plain_network import descend_
from flatcl.seeds import derive_seed

_CHECKPOINT = 10.0  # seconds from one to the next
_LEVELS = tuple(base * 10.0**-k for k in range(5) for base in (0.3, 0.1))  # nats
_EVALUATED = 5000
_ENTRIES = ("epoch", "stages", "mean", "end", "weights", "generator")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A network at the end of training.

    Attributes:
        network: without biases.
        epochs: trained.
        loss: over all images, nats.
        accuracy: over all images.
        reached: True if the stop rule was met, False if the epochs ran out.
        stages: pairs of an epoch's mean loss and the weights after it, at falling losses.
    """

    network: nn.Sequential
    epochs: int
    loss: float
    accuracy: float
    reached: bool
    stages: list[tuple[float, list[Tensor]]]


@dataclass(frozen=True)
class Recorded:
    """One window of further training.

    Attributes:
        window: the watched weights, step by step.
        mean: of all of the network's weights over the window, a matrix a layer.
        fluctuation_dissipation: ⟨w·∇L⟩ over (η/2) ⟨|∇L_B|²⟩ of the watched weights about the
            window's start, 1 where stationary and 0 for a walk.
    """

    window: Record
    mean: list[Tensor]
    fluctuation_dissipation: float


def epoch_steps(task: Task, options: AnalyzeOptions) -> int:
    """Return M, the whole batches of an epoch.

    Args:
        task: the images.
        options: of the analysis.

    Returns:
        Steps; images of a last, smaller batch sit out the epoch.
    """
    return len(task.x) // options.batch_size


def window_steps(task: Task, options: AnalyzeOptions) -> int:
    """Return T, the steps that are recorded.

    Args:
        task: the images.
        options: of the analysis.

    Returns:
        Steps.

    Raises:
        OptionError: a window so short has no direction of the first rank that is asked for.
    """
    steps = options.steps or max(10 * epoch_steps(task, options), LEAST_STEPS)
    looked_at = steps // 2 if options.panel else steps  # of one half, with the panel
    if options.spacing > looked_at - 2:
        raise OptionError(
            f"spacing is {options.spacing}: {looked_at} snapshots have {looked_at - 1} directions, "
            f"the first of them a drift; give {looked_at - 2} at most, or more steps"
        )
    return steps


def batches(
    task: Task, options: AnalyzeOptions, sampling: str, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield minibatches' indices without end.

    Args:
        task: the images.
        options: of the analysis.
        sampling: "shuffle" or "replacement".
        generator: of the draws.

    Yields:
        Indices [B].
    """
    N, B = len(task.x), options.batch_size
    while True:
        if sampling == "replacement":
            yield torch.randint(N, (B,), generator=generator)
        else:
            order = torch.randperm(N, generator=generator)
            yield from torch.split(order[: N // B * B], B)


def train(task: Task, options: AnalyzeOptions, path: Path, say: Say) -> Trained:
    """Return the network trained to the stop rule, going on from a checkpoint if there is one.

    Args:
        task: the images.
        options: of the analysis.
        path: of the checkpoint; it also keeps the end of training.
        say: told of progress.

    Returns:
        The trained network.

    Raises:
        NonFiniteError: training diverged.
    """
    network = make_network(task, options)
    weights: list[Tensor] = list(network.parameters())
    generator = torch.Generator().manual_seed(derive_seed(options.seed, "order"))
    state: dict[str, Any] = {"epoch": 0, "stages": [], "mean": float("inf"), "end": None}
    found = _found(path, _ENTRIES, "weights", weights)
    if found is not None:
        state = found
        with torch.no_grad():
            torch._foreach_copy_(weights, state["weights"])
        generator = generator_from(state["generator"])
        say(f"training: epoch {state['epoch']} found")
    elif path.exists():
        say(f"{path} is damaged: training begins anew")
    steps, saved = epoch_steps(task, options), time.monotonic()
    while state["end"] is None:
        stream = batches(task, options, options.sampling, generator)
        total = torch.zeros(())
        for _ in range(steps):
            chosen = next(stream)
            total += descend_(weights, task.x[chosen], task.y[chosen], options.lr)[0]
        state["epoch"] += 1
        state["mean"] = float(total) / steps
        if not state["mean"] < float("inf"):
            raise NonFiniteError(f"the loss is {state['mean']} at lr {options.lr:g}: lower it")
        lowest = min((loss for loss, _ in state["stages"]), default=float("inf"))
        if any(state["mean"] < level <= lowest for level in _LEVELS):
            state["stages"].append((state["mean"], [w.detach().clone() for w in weights]))
        last = state["epoch"] >= options.max_epochs
        if last or state["mean"] < 3 * options.loss:  # the epoch's mean runs behind the loss
            loss, accuracy = evaluate(network, task)
            met = loss < options.loss and accuracy > options.accuracy
            if met or last:
                state["end"] = (loss, accuracy, met)
        if state["end"] is not None or time.monotonic() - saved > _CHECKPOINT:
            state |= {"weights": [w.detach() for w in weights], "generator": generator.get_state()}
            _save(path, state)
            saved = time.monotonic()
            say(f"training: epoch {state['epoch']}, loss {state['mean']:.2g}")
    loss, accuracy, met = state["end"]
    return Trained(network, state["epoch"], loss, accuracy, met, state["stages"])


def record(
    trained: Trained, task: Task, options: AnalyzeOptions, folder: Path, sampling: str
) -> Recorded:
    """Return the record of further training at the same rate.

    In float64: in float32 every step rounds, a random walk that reaches, within a window of some
    thousand steps, the variance of the flattest directions.

    Args:
        trained: where to start from; it is left as it is.
        task: the images.
        options: of the analysis.
        folder: of the record; one that is there already is opened, unless it was cut off.
        sampling: "shuffle" or "replacement".

    Returns:
        The record, the mean of all weights, and the fluctuation–dissipation ratio.
    """
    path = folder / "network.pt"
    M, steps = epoch_steps(task, options), window_steps(task, options)
    kept = _opened(folder, list(trained.network.parameters()))
    if kept is not None and kept.window.count == steps:
        return kept
    if folder.exists():
        shutil.rmtree(folder)
    network = make_network(task, options).double()
    weights: list[Tensor] = list(network.parameters())
    with torch.no_grad():
        torch._foreach_copy_(weights, list(trained.network.parameters()))
    seed = derive_seed(options.seed, "record", sampling)
    stream = batches(task, options, sampling, torch.Generator().manual_seed(seed))
    facts = {"lr": options.lr, "batch_size": options.batch_size, "sampling": sampling}
    name = watched(options)
    w = dict(network.named_parameters())[name].detach()
    place = [n for n, _ in network.named_parameters()].index(name)
    total = [torch.zeros_like(weight) for weight in weights]
    first = w.clone()
    before, gradient = torch.zeros_like(w), torch.zeros_like(w)
    products, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    with Recorder(network, folder, parameters=name, epoch_steps=M, facts=facts) as recorder:
        for _ in range(steps):
            before.copy_(w)
            chosen = next(stream)
            g = descend_(weights, task.x[chosen].double(), task.y[chosen], options.lr)[1][place]
            recorder.step()
            products += (before * g).sum()
            squares += g.square().sum()
            gradient += g
            torch._foreach_add_(total, [weight.detach() for weight in weights])
    mean = [t / steps for t in total]
    # ⟨(w − w_0)·g⟩ over (η/2) ⟨|g|²⟩: 1 where stationary (Yaida, ICLR 2019), 0 for a walk.
    dissipated = products - (first * gradient).sum()
    ratio = float(dissipated / (0.5 * options.lr * squares))
    _save(path, {"mean": mean, "fluctuation_dissipation": ratio})
    return Recorded(open_record(folder), mean, ratio)


def _save(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def _opened(folder: Path, weights: Sequence[Tensor]) -> Recorded | None:
    found = _found(folder / "network.pt", ("mean", "fluctuation_dissipation"), "mean", weights)
    if found is None:
        return None
    try:
        return Recorded(open_record(folder), found["mean"], found["fluctuation_dissipation"])
    except DataError:
        return None


def _found(
    path: Path, names: Sequence[str], of: str, weights: Sequence[Tensor]
) -> dict[str, Any] | None:
    """Return what was saved of a network; None if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch does not look at checksums in all releases
                return None
        found: dict[str, Any] = torch.load(path, weights_only=True)
        pairs = zip(found[of], weights, strict=True)
        whole = all(a.shape == b.shape and bool(a.isfinite().all()) for a, b in pairs)
    except Exception:  # a damaged file may raise anything
        return None
    return found if whole and {*names} == {*found} else None


def evaluate(network: nn.Module, task: Task) -> tuple[float, float]:
    """Return loss and accuracy over all images.

    Args:
        network: in any mode; it has no layer that minds.
        task: the images.

    Returns:
        Mean loss, nats, summed in float64, and accuracy, 0 to 1.
    """
    loss, right = 0.0, 0
    with torch.no_grad():
        parts = zip(torch.split(task.x, _EVALUATED), torch.split(task.y, _EVALUATED), strict=True)
        for x, y in parts:
            outputs = network(x)
            loss += float(cross_entropy(outputs.double(), y, reduction="sum"))
            right += int((outputs.argmax(1) == y).sum())
    return loss / len(task.x), right / len(task.x)
