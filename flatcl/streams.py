"""One data set as a sequence of tasks: an Avalanche benchmark that is fed batch by batch."""

from __future__ import annotations

from flatcl.data import Images
from flatcl.datasets import ExperienceData, Feed, experience_data
from flatcl.feed import FastFeed, fast
from flatcl.host import ensure_avalanche
from flatcl.tasks import Scenario, StreamOptions, Task, draw_tasks

ensure_avalanche()
from avalanche.benchmarks import (  # noqa: E402
    benchmark_from_datasets,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.scenarios import CLScenario  # noqa: E402

__all__ = [
    "ExperienceData",
    "FastFeed",
    "Feed",
    "Scenario",
    "Stream",
    "StreamOptions",
    "fast",
    "make_stream",
]


class Stream:
    """A sequence of tasks as an Avalanche benchmark, and what a model for it must look like.

    Attributes:
        options: how it was made.
        seed: of its permutations, draws and batch orders.
        n_tasks: number of tasks.
        input_shape: (C, H, W) or (D,) of one input, padding included.
        n_outputs: width of the output layer that serves all tasks.
        outputs_per_task: outputs that one task uses: a slice of width ``outputs_per_task`` per
            task where the task is told (``split-task``), else all ``n_outputs``.
        classes_per_task: for each task, the output units that have labels in it.
        benchmark: has ``train_stream``, ``val_stream`` and ``test_stream``, one experience a
            task. Targets count from 0 within the task in ``split-task`` and ``split-domain``;
            task labels are the task's number in ``split-task``, else 0.
    """

    def __init__(self, options: StreamOptions, seed: int, tasks: list[Task]) -> None:
        told = options.scenario == "split-task"
        self.options = options
        self.seed = seed
        self.n_tasks = len(tasks)
        self.input_shape = tasks[0].train.shape
        self.classes_per_task = [task.classes for task in tasks]
        self.n_outputs = 1 + max(classes[-1] for classes in self.classes_per_task)
        self.outputs_per_task = len(tasks[0].classes) if told else self.n_outputs
        labels = range(self.n_tasks) if told else [0] * self.n_tasks
        parts = {
            part: [
                experience_data(getattr(task, part), label=label)
                for task, label in zip(tasks, labels, strict=True)
            ]
            for part in ("train", "val", "test")
        }
        self.benchmark: CLScenario = with_task_labels(
            with_classes_timeline(benchmark_from_datasets(**parts))
        )
        for stream in self.benchmark.streams.values():
            for experience in stream:
                # Avalanche leaves a set, which its own MultiHeadClassifier cannot index with.
                classes = sorted(experience.classes_in_this_experience)
                experience.classes_in_this_experience = classes


def make_stream(
    images: Images, options: StreamOptions, *, seed: int, cache_bytes: int = 2 * 2**30
) -> Stream:
    """Return the tasks that the options draw from a data set, as an Avalanche benchmark.

    Inputs are standardised by two numbers, mean and deviation of all training pixels (padding
    included) that are left after the validation cut. A scenario that does not fit the data set is
    an OptionError; asking for more images than there are, a DataError.

    Args:
        images: the data set.
        options: scenario, number of tasks, sizes.
        seed: of permutations, draws and batch orders; the validation cut is the same for all.
        cache_bytes: what the transformed images of all tasks may take in memory together; a task
            beyond it is transformed again when it is next used.

    Returns:
        The stream; nothing is transformed before it is used.
    """
    return Stream(options, seed, draw_tasks(images, options, seed=seed, budget=cache_bytes))
