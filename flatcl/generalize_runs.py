"""One run of ``flatcl generalize``: a network trained with one knob turned, and its gap."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatcl.data import load_images, stratified_split
from flatcl.duality import Decomposition, Gap, generalization_gap
from flatcl.errors import DataError, NonFiniteError
from flatcl.generalize_options import GeneralizeOptions
from flatcl.io import finite
from flatcl.plain_network import descend_, plain_network
from flatcl.seeds import derive_seed

VERSION = 1
SHARP = 10  # directions of the largest curvature that stand for the sharp ones
_BINS = 30  # of ranks, evenly in their logarithm: a profile's points

KNOBS = {
    "batch size": "batch_sizes",
    "learning rate": "lrs",
    "weight decay": "decays",
    "dropout": "dropouts",
    "initial scale": "scales",
    "training images": "train_sizes",
    "label noise": "noises",
}
"""Knobs and the options that list their values."""

_FIELDS = dict(
    zip(
        KNOBS,
        ("batch_size", "lr", "decay", "dropout", "scale", "train_size", "noise"),
        strict=True,
    )
)
_images = lru_cache(maxsize=1)(load_images)


@dataclass(frozen=True)
class Setting:
    """How one network is made.

    Attributes:
        data: name of the images.
        hidden: widths.
        test_size: test images at most.
        loss: the stop rule, nats.
        max_epochs: the end of patience.
        decay_epochs: after which weight decay ends.
        batch_size: images a step.
        lr: η.
        decay: β of β|w|²/2.
        dropout: p, after the first hidden layer.
        scale: of the initial weights.
        train_size: correctly labelled images; None for all.
        noise: wrongly labelled images trained on besides, as a share of ``train_size``.
        seed: of the repeat.
    """

    data: str
    hidden: tuple[int, ...]
    test_size: int
    loss: float
    max_epochs: int
    decay_epochs: int
    batch_size: int
    lr: float
    decay: float
    dropout: float
    scale: float
    train_size: int | None
    noise: float
    seed: int

    @property
    def name(self) -> str:
        """A hash of all of it: the name of its file."""
        text = json.dumps({"version": VERSION, **asdict(self)})
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Run:
    """One row: a knob at a value.

    Attributes:
        knob: of ``KNOBS``.
        value: its value.
        setting: of the network; the same network may be a row of several knobs.
    """

    knob: str
    value: float
    setting: Setting


def runs_of(options: GeneralizeOptions) -> list[Run]:
    """Return all runs of a study.

    Args:
        options: of the study.

    Returns:
        By knob, value and seed.
    """
    runs = []
    for knob, listed in KNOBS.items():
        for value in getattr(options, listed):
            for seed in range(options.seed, options.seed + options.seeds):
                base = Setting(
                    options.data,
                    options.hidden,
                    options.test_size,
                    options.loss,
                    options.max_epochs,
                    options.decay_epochs,
                    options.batch_size,
                    options.lr,
                    0.0,
                    0.0,
                    1.0,
                    options.train_size,
                    0.0,
                    seed,
                )
                whole = knob in ("batch size", "training images")
                turned: Any = {_FIELDS[knob]: int(value) if whole else value}
                runs.append(Run(knob, value, replace(base, **turned)))
    return runs


@dataclass(frozen=True)
class Sets:
    """What is trained and tested on.

    Attributes:
        x: correctly labelled training images [N, D], 0 to 1.
        y: their classes [N].
        noisy: wrongly labelled images [M, D].
        wrong: their labels [M].
        z: test images [K, D].
        t: their classes [K].
        classes: their number.
    """

    x: Tensor
    y: Tensor
    noisy: Tensor
    wrong: Tensor
    z: Tensor
    t: Tensor
    classes: int


def load_sets(setting: Setting) -> Sets:
    """Return training and test images of a run.

    Wrongly labelled images are others than the correctly labelled ones, each with one of the other
    classes.

    Args:
        setting: of the run.

    Returns:
        The images, brightest pixel 1.

    Raises:
        DataError: there are too few images.
    """
    images = _images(setting.data)
    order, size = torch.arange(len(images.x_train)), setting.train_size or len(images.x_train)
    extra = round(setting.noise * size)
    if size + extra > len(order):
        raise DataError(
            f"{size} training images and {extra} wrongly labelled ones are asked for; "
            f"{setting.data} has {len(order)}: lower train-size, train-sizes or noises"
        )
    if size < setting.batch_size:
        raise DataError(f"{size} images make no batch of {setting.batch_size}: lower it")
    rest = order[:0]
    if size < len(order):
        rest, order = stratified_split(
            images.y_train, size, seed=derive_seed(setting.seed, "images")
        )
    generator = torch.Generator().manual_seed(derive_seed(setting.seed, "wrong"))
    others = rest[torch.randperm(len(rest), generator=generator)[:extra]]
    shift = torch.randint(1, images.n_classes, (extra,), generator=generator)
    top = float(images.x_train.max())
    train, test = (part.flatten(1).float() / top for part in (images.x_train, images.x_test))
    return Sets(
        train[order],
        images.y_train[order],
        train[others],
        (images.y_train[others] + shift) % images.n_classes,
        test[: setting.test_size],
        images.y_test[: setting.test_size],
        images.n_classes,
    )


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes:
        network: without biases.
        epochs: trained.
        loss: over all that it was trained on, nats.
        reached: whether the stop rule was met.
    """

    network: nn.Sequential
    epochs: int
    loss: float
    reached: bool


def fit_network(setting: Setting, sets: Sets) -> Fitted:
    """Return the network of a run, trained to the stop rule.

    Args:
        setting: of the run.
        sets: its images.

    Returns:
        The network, in float32.

    Raises:
        NonFiniteError: training diverged.
    """
    x, y = torch.cat([sets.x, sets.noisy]), torch.cat([sets.y, sets.wrong])
    network = plain_network((x.shape[1], *setting.hidden, sets.classes), seed=setting.seed)
    weights: list[Tensor] = [p.detach() for p in network.parameters()]
    torch._foreach_mul_(weights, setting.scale)
    generator = torch.Generator().manual_seed(derive_seed(setting.seed, "order"))
    keep_share = 1.0 - setting.dropout
    loss, epoch, reached = math.inf, 0, False
    while epoch < setting.max_epochs and not reached:
        decay = setting.decay if epoch < setting.decay_epochs else 0.0
        for chosen in _batches(len(x), setting.batch_size, generator):
            keep = None
            if setting.dropout:
                shape = (len(chosen), setting.hidden[0])
                keep = torch.full(shape, keep_share).bernoulli_(generator=generator) / keep_share
            descend_(weights, x[chosen], y[chosen], setting.lr, keep=keep, decay=decay)
        epoch += 1
        with torch.no_grad():
            loss = float(cross_entropy(network(x).double(), y))
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss} at lr {setting.lr:g}: lower it")
        # Weight decay, where there is any, has its epochs before the loss counts.
        reached = loss < setting.loss and (not setting.decay or epoch >= setting.decay_epochs)
    return Fitted(network, epoch, loss, reached)


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(n, generator=generator)
    yield from torch.split(order[: n // size * size], size)


def measure(setting: Setting) -> dict[str, Any]:
    """Return the record of one run: numbers, and profiles over the directions.

    Args:
        setting: of the run.

    Returns:
        What JSON holds; ``status`` is "done" or "diverged".
    """
    begun = time.perf_counter()
    record: dict[str, Any] = {"version": VERSION, "setting": asdict(setting)}
    sets = load_sets(setting)
    try:
        fitted = fit_network(setting, sets)
    except NonFiniteError as error:
        return {**record, "status": "diverged", "error": str(error)}
    trained = time.perf_counter()
    layer = str(2 * (len(setting.hidden) - 1))
    seed = derive_seed(setting.seed, "null")
    found = generalization_gap(
        fitted.network,
        layer,
        (sets.x, sets.y),
        (sets.z, sets.t),
        generator=torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        right = float((fitted.network(sets.z).argmax(1) == sets.t).float().mean())
    record |= {
        "status": "done",
        "epochs": fitted.epochs,
        "fitted_loss": fitted.loss,
        "reached": fitted.reached,
        "accuracy": right,
        "numbers": numbers_of(found) | measures_of(fitted.network, found, sets),
        "profile": profile_of(found),
        "seconds": {"train": trained - begun, "measure": time.perf_counter() - trained},
    }
    return finite(record)  # type: ignore[return-value]  # a dict stays one


def numbers_of(found: Gap) -> dict[str, float]:
    """Return the numbers of a decomposition.

    Args:
        found: the gap.

    Returns:
        By name; losses and gaps in nats, sharpness in nats/w, size in w.
    """
    nearest = found.matched["nearest"]
    d = nearest.decomposition
    top = slice(0, SHARP)
    relative = d.sharpness[: len(found.curvature) - found.flat]
    relative = relative / d.size[: len(relative)]
    return {
        "train_loss": found.train_loss,
        "test_loss": found.test_loss,
        "gap": found.gap,
        "matched_gap": nearest.gap,
        "second_gap": found.matched["second"].gap,
        "random_gap": found.matched["random"].gap,
        "sharpness": _total(d.sharpness),
        "size": _total(d.size),
        "product": float((d.sharpness * d.size).sum()),
        "correlation": d.overall_correlation,
        "correlation_null": float(d.null_correlation.nanmean()),
        "sharpness_top": _total(d.sharpness[top]),
        "size_top": _total(d.size[top]),
        "ratio_top": float(d.ratio[top].mean()),
        "ratio_null": float(d.null_ratio[top].mean()),
        "share_top": float(d.contribution[top].sum()) / d.total if d.total else math.nan,
        "share_of_means": d.of_means / d.total if d.total else math.nan,
        "correlation_spread": float(d.correlation[: len(relative)].std()),
        "rank_correlation_curvature": _spearman(relative, found.curvature[: len(relative)]),
        "first_order": nearest.first_order,
        "second_order": nearest.second_order,
        "expansion_error": nearest.expansion_error,
        "identity_error": nearest.error,
        "without_dual": nearest.without + nearest.tiny,
        "flat": found.flat,
    }


def measures_of(network: nn.Sequential, found: Gap, sets: Sets) -> dict[str, float]:
    """Return standard measures of a network, to hold the duality's against.

    Args:
        network: trained.
        found: its gap, for the curvature.
        sets: its images.

    Returns:
        ``weight_norm`` |w| of all layers, w; ``trace`` of the layer's Hessian, nats/w²;
        ``margin``, the median over training images of the logit of the class less the largest
        other, over the product of the layers' Frobenius norms.
    """
    norms = [float(p.detach().norm()) for p in network.parameters()]
    with torch.no_grad():
        logits = network(sets.x)
    own = logits.gather(1, sets.y[:, None])
    others = logits.scatter(1, sets.y[:, None], -math.inf).amax(1, keepdim=True)
    return {
        "weight_norm": math.hypot(*norms),
        "trace": float(found.curvature.sum()),
        "margin": float((own - others).median()) / math.prod(norms),
    }


def profile_of(found: Gap) -> dict[str, list[float]]:
    """Return the factors over the directions, pooled over ranks.

    Args:
        found: the gap.

    Returns:
        ``rank`` (from 1, geometric mean of a bin), ``curvature``, ``sharpness``, ``size``,
        ``correlation``, ``null_correlation``, ``ratio``, ``null_ratio`` and ``contribution`` (a
        sum), a number a bin; the last bin holds all flat directions.
    """
    d: Decomposition = found.matched["nearest"].decomposition
    n = len(found.curvature)
    steep = max(1, n - found.flat)
    edges = sorted({round(steep ** (i / _BINS)) for i in range(_BINS + 1)} | {0, steep, n})
    columns = {
        "rank": torch.arange(1, n + 1).double().log(),
        "curvature": found.curvature,
        "sharpness": d.sharpness,
        "size": d.size,
        "correlation": d.correlation,
        "null_correlation": d.null_correlation,
        "ratio": d.ratio,
        "null_ratio": d.null_ratio,
    }
    bins = [slice(low, high) for low, high in pairwise(edges)]
    profile = {
        name: [float(values[part].nanmean()) for part in bins] for name, values in columns.items()
    }
    profile["rank"] = [math.exp(value) for value in profile["rank"]]
    profile["contribution"] = [float(d.contribution[part].sum()) for part in bins]
    return profile


def _total(values: Tensor) -> float:
    return float(values.square().sum().sqrt())


def _spearman(first: Tensor, second: Tensor) -> float:
    from scipy.stats import spearmanr

    good = first.isfinite()
    return float(spearmanr(first[good].numpy(), second[good].numpy()).statistic)
