"""Sequences of tasks drawn from one data set: which images, which targets, which view of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from flatcl.data import Images, stratified_split
from flatcl.errors import DataError, OptionError
from flatcl.seeds import derive_seed
from flatcl.views import TaskImages, TensorCache, View

Scenario = Literal["permuted", "rotated", "split-task", "split-domain", "split-class"]

_CHUNK = 4096  # images summed at once: bounds the memory of their float64 copy


@dataclass(frozen=True)
class StreamOptions:
    """How a data set becomes a sequence of tasks.

    Attributes:
        scenario: ``permuted`` (each task, the first too, sees the pixels in an order of its own),
            ``rotated``, or disjoint groups of classes with the task told (``split-task``), one
            head of a group's size (``split-domain``), or one head over all classes
            (``split-class``).
        tasks: number of tasks, ≥ 1.
        train_size: training images a task, drawn anew for each; None takes all there are.
        val_size: images cut from the training part before anything else, stratified, the same
            for every seed; None cuts 10 %.
        max_angle: degrees the last task of ``rotated`` is turned, counter-clockwise; the first
            is not turned, the others lie evenly between.
        pad: zero pixels added on each side.
        class_order: which classes the tasks of a split hold: ``natural`` takes them by number,
            ``drawn`` in an order drawn by the seed.

    Raises:
        OptionError: a value cannot be used.
    """

    scenario: Scenario = "permuted"
    tasks: int = 5
    train_size: int | None = None
    val_size: int | None = None
    max_angle: float = 90.0
    pad: int = 0
    class_order: Literal["natural", "drawn"] = "natural"

    def __post_init__(self) -> None:
        if self.scenario not in get_args(Scenario):
            known = ", ".join(get_args(Scenario))
            raise OptionError(f"unknown scenario {self.scenario!r}: use {known}")
        if self.class_order not in {"natural", "drawn"}:
            raise OptionError(f"class_order is {self.class_order!r}: use natural or drawn")
        for name, least in (("tasks", 1), ("train_size", 1), ("val_size", 1), ("pad", 0)):
            value = getattr(self, name)
            if value is None and name in {"train_size", "val_size"}:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(f"{name} is {value!r}: give a whole number of at least {least}")
        number = isinstance(self.max_angle, (int, float)) and not isinstance(self.max_angle, bool)
        if not number or not math.isfinite(self.max_angle):
            raise OptionError(f"max_angle is {self.max_angle!r}: give a finite number of degrees")


@dataclass(frozen=True)
class Task:
    """One task's three parts.

    Attributes:
        train: images to learn from.
        val: all validation images of the task.
        test: all test images of the task.
        classes: output units that have labels in this task, ascending.
    """

    train: TaskImages
    val: TaskImages
    test: TaskImages
    classes: list[int]


def draw_tasks(images: Images, options: StreamOptions, *, seed: int, budget: int) -> list[Task]:
    """Return the tasks, in order; no image is transformed yet.

    A scenario that does not fit the data set's classes or shape is an OptionError.

    Args:
        images: the data set.
        options: the scenario and its sizes.
        seed: of the permutations, the draws and the batch orders, but not of the validation cut.
        budget: bytes that the transformed tensors of all tasks may take together.

    Returns:
        ``options.tasks`` tasks.

    Raises:
        DataError: a part of a task without images; also fewer images than asked for, or images
            that are all alike.
    """
    _check(images, options)
    split = options.scenario.startswith("split")
    size = options.val_size
    if size is None:
        size = max(len(images.y_train) // 10, images.n_classes)
    kept, cut = stratified_split(images.y_train, size, seed=derive_seed("validation"))
    view = View(*_moments(images.x_train[kept], options.pad), pad=options.pad)
    angles = torch.linspace(0, options.max_angle, options.tasks, dtype=torch.float64).tolist()
    per_task = images.n_classes // options.tasks if split else images.n_classes
    cache = TensorCache(budget)
    stored = {"train": images.x_train, "val": images.x_train, "test": images.x_test}
    place = torch.arange(images.n_classes)
    if options.class_order == "drawn":
        generator = torch.Generator().manual_seed(derive_seed(seed, "class order"))
        place = torch.randperm(images.n_classes, generator=generator)
    y_train, y_test = place[images.y_train], place[images.y_test]
    labels = {"train": y_train, "val": y_train, "test": y_test}
    pools = {"train": kept, "val": cut, "test": torch.arange(len(images.y_test))}
    tasks = []
    for number in range(options.tasks):
        own = view
        if options.scenario == "permuted":
            own = replace(view, seed=derive_seed(seed, "permutation", number))
        elif options.scenario == "rotated":
            own = replace(view, angle=angles[number])
        first = number * per_task if split else 0
        parts = {}
        for part, pool in pools.items():
            y = labels[part][pool]
            rows = pool[(y >= first) & (y < first + per_task)]
            if part == "train" and options.train_size is not None:
                rows = _draw(rows, options.train_size, number, derive_seed(seed, "sample", number))
            if len(rows) == 0:
                raise DataError(f"task {number} has no {part} images: use fewer tasks")
            targets = labels[part][rows]
            parts[part] = TaskImages(
                stored[part],
                rows=rows,
                targets=targets if options.scenario == "split-class" else targets - first,
                view=own,
                cache=cache,
                key=(part, number),
                order_seed=derive_seed(seed, "order", number),
            )
        start = 0 if options.scenario == "split-domain" else first
        tasks.append(Task(**parts, classes=list(range(start, start + per_task))))
    return tasks


def _check(images: Images, options: StreamOptions) -> None:
    flat = images.x_train.ndim == 2
    if flat and options.scenario == "rotated":
        raise OptionError(f"{images.name} has flat rows, not images: rotated needs (N, H, W)")
    if flat and options.pad:
        raise OptionError(f"{images.name} has flat rows, not images: pad must be 0")
    if not options.scenario.startswith("split"):
        return
    if images.n_classes < options.tasks:
        raise OptionError(
            f"{images.name} has {images.n_classes} classes, fewer than {options.tasks} tasks: "
            f"ask for at most {images.n_classes} tasks"
        )
    if images.n_classes % options.tasks:
        fits = [str(n) for n in range(1, images.n_classes + 1) if images.n_classes % n == 0]
        raise OptionError(
            f"{images.n_classes} classes of {images.name} do not split evenly into "
            f"{options.tasks} tasks: use {', '.join(fits)}"
        )


def _draw(rows: Tensor, size: int, task: int, seed: int) -> Tensor:
    if size > len(rows):
        raise DataError(
            f"task {task} has {len(rows)} training images after the validation cut, "
            f"{size} were asked for: lower train_size or val_size"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:size]]


def _moments(stored: Tensor, pad: int) -> tuple[float, float]:
    # Over all pixels, the padding counted as zeros.
    total, squares, count = 0.0, 0.0, 0
    for chunk in torch.split(stored, _CHUNK):
        wide = chunk.double()
        total += float(wide.sum())
        squares += float(wide.square().sum())
        sides = [side + 2 * pad for side in chunk.shape[2:]]
        count += math.prod([*chunk.shape[:2], *sides])
    mean = total / count
    variance = squares / count - mean**2
    if not variance > 1e-12 * squares / count:
        raise DataError(f"all training pixels have the value {mean:g}: give images that differ")
    return mean, math.sqrt(variance)
