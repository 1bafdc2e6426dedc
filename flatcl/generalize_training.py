"""Images and training of one network of ``flatcl generalize``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatcl.data import kept_images, stratified_split
from flatcl.errors import DataError, NonFiniteError
from flatcl.generalize_settings import Setting
from flatcl.plain_network import descend_, plain_network
from flatcl.seeds import derive_seed

_PARTNERS = 2  # training images of a class that a test image is paired with: nearest and second


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


def choose_images(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return which images a run is trained on, and which are left for wrong labels.

    All that a run asks of its images is looked at here, so that a study can ask it of every run
    before the first is trained.

    Args:
        setting: of the run.

    Returns:
        Positions in the training part, both ascending.

    Raises:
        DataError: there are too few images, of all or of a class that is tested, they are all
            alike, or none has a pixel above 0.
    """
    images = kept_images(setting.data)
    order, size = torch.arange(len(images.x_train)), setting.train_size
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
        seed = derive_seed(setting.seed, "images")
        if images.n_classes <= min(size, len(order) - size):
            rest, order = stratified_split(images.y_train, size, seed=seed)
        else:  # too few on one side for one of each class
            drawn = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
            order, rest = drawn[:size].sort().values, drawn[size:].sort().values
    counts = torch.bincount(images.y_train[order], minlength=images.n_classes)
    tested = torch.unique(images.y_test[: setting.test_size])
    rare = tested[counts[tested] < _PARTNERS]
    if len(rare):
        raise DataError(
            f"class {int(rare[0])} has {int(counts[rare[0]])} of {size} training images, and the "
            f"duality needs {_PARTNERS} of each class that is tested: raise train-size, train-sizes"
        )
    low, top = (float(value) for value in images.x_train.aminmax())
    if not low < top:
        raise DataError(f"all training pixels of {setting.data} are {top:g}: give other images")
    if not top > 0:
        raise DataError(f"the brightest pixel of {setting.data} is {top:g}: give images above 0")
    return order, rest


def load_sets(setting: Setting) -> Sets:
    """Return training and test images of a run. What ``choose_images`` raises goes through.

    Wrongly labelled images are others than the correctly labelled ones, each with one of the other
    classes.

    Args:
        setting: of the run.

    Returns:
        The images, brightest pixel 1.
    """
    images, (order, rest) = kept_images(setting.data), choose_images(setting)
    extra = round(setting.noise * setting.train_size)
    top = float(images.x_train.max())
    generator = torch.Generator().manual_seed(derive_seed(setting.seed, "wrong"))
    others = rest[torch.randperm(len(rest), generator=generator)[:extra]]
    shift = torch.randint(1, images.n_classes, (extra,), generator=generator)
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
        regularised = bool(setting.decay or setting.dropout) and epoch < setting.regularised_epochs
        for chosen in _batches(len(x), setting.batch_size, generator):
            keep = None
            if setting.dropout and regularised:
                shape = (len(chosen), setting.hidden[0])
                keep = torch.full(shape, keep_share).bernoulli_(generator=generator) / keep_share
            descend_(
                weights,
                x[chosen],
                y[chosen],
                setting.lr,
                keep=keep,
                decay=setting.decay * regularised,
            )
        epoch += 1
        with torch.no_grad():
            loss = float(cross_entropy(network(x).double(), y))
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss} at lr {setting.lr:g}: lower it")
        # Weight decay and dropout have all of their epochs before the loss counts.
        reached = loss < setting.loss and not regularised
    return Fitted(network, epoch, loss, reached)


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(n, generator=generator)
    yield from torch.split(order[: n // size * size], size)
