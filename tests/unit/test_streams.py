"""Streams: which images each task has, and what it makes of them."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import pytest
import torch

from flatcl.data import Images, load_images, stratified_split
from flatcl.errors import DataError, OptionError
from flatcl.seeds import derive_seed
from flatcl.streams import Scenario, Stream, StreamOptions, make_stream
from flatcl.views import TensorCache, View


def toy(classes: int = 4, each: int = 10, shape: tuple[int, ...] = (1, 3, 5)) -> Images:
    """Images whose first pixel is their number, so that rows can be traced."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for offset in (0, 1000):
        x = torch.rand(classes * each, *shape, generator=generator)
        x.view(len(x), -1)[:, 0] = torch.arange(len(x)) + float(offset)
        parts += [x, torch.arange(len(x)) % classes]
    return Images("toy", parts[0], parts[1], parts[2], parts[3], classes)


def whole(experience: Any) -> list[torch.Tensor]:
    return next(iter(experience.dataset.feed(10**6)))


def pixels(stream: Stream, images: Images) -> tuple[float, float]:
    """Mean and deviation of the training pixels that the validation cut leaves."""
    size = max(len(images.y_train) // 10, images.n_classes)
    kept, _ = stratified_split(images.y_train, size, seed=derive_seed("validation"))
    x = torch.nn.functional.pad(images.x_train[kept].double(), [stream.options.pad] * 4)
    return float(x.mean()), float(x.std(correction=0))


def test_inputs_have_mean_0_and_deviation_1_with_padding_counted() -> None:
    images = load_images("digits")
    stream = make_stream(images, StreamOptions("rotated", tasks=1, pad=2), seed=0)
    x = whole(stream.benchmark.train_stream[0])[0]
    assert stream.input_shape == x.shape[1:] == (1, 12, 12)
    assert float(x.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.double().std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert torch.unique(x[:, :, :2]).tolist() == pytest.approx([float(x.min())])


def test_the_validation_cut_is_disjoint_stratified_and_the_same_for_every_seed() -> None:
    images = toy(each=25)
    numbers = []
    for seed in (0, 1):
        stream = make_stream(images, StreamOptions("rotated", tasks=1), seed=seed)
        mean, std = pixels(stream, images)
        train, val, test = (
            (whole(part[0])[0][:, 0, 0, 0].double() * std + mean).round().long()
            for part in (
                stream.benchmark.train_stream,
                stream.benchmark.val_stream,
                stream.benchmark.test_stream,
            )
        )
        assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(100))
        assert torch.equal(test, torch.arange(1000, 1100))
        assert len(val) == 10
        assert torch.bincount(images.y_train[val]).min() >= 2
        numbers.append(val)
    assert torch.equal(*numbers)


def test_a_permutation_moves_pixels_of_all_channels_alike_and_differs_between_tasks() -> None:
    images = toy(shape=(3, 4, 4))
    stream = make_stream(images, StreamOptions("permuted", tasks=3), seed=5)
    mean, std = pixels(stream, images)
    plain = images.x_test.sub(mean).div(std).flatten(2)
    orders = []
    for experience in stream.benchmark.test_stream:
        moved = whole(experience)[0].flatten(2)
        distance = torch.cdist(moved.transpose(0, 2).flatten(1), plain.transpose(0, 2).flatten(1))
        order = distance.argmin(1)
        assert sorted(order.tolist()) == list(range(16))
        torch.testing.assert_close(moved, plain[:, :, order])
        orders.append(order.tolist())
    identity = list(range(16))
    assert len({tuple(order) for order in [*orders, identity]}) == 4


def test_training_and_test_share_a_task_s_permutation() -> None:
    images = toy()
    images = replace(images, x_test=images.x_train, y_test=images.y_train)
    stream = make_stream(images, StreamOptions("permuted", tasks=2), seed=0)
    seen = {tuple(row.tolist()) for row in whole(stream.benchmark.test_stream[1])[0].flatten(1)}
    for part in (stream.benchmark.train_stream, stream.benchmark.val_stream):
        assert {tuple(row.tolist()) for row in whole(part[1])[0].flatten(1)} < seen


def test_rotations_are_counter_clockwise_about_the_centre_whatever_the_aspect() -> None:
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    for quarter in range(1, 4):
        turned = View(0, 1, angle=90.0 * quarter).apply(x)
        torch.testing.assert_close(turned, torch.rot90(x, quarter, (2, 3)), atol=1e-5, rtol=0)
    wide = torch.zeros(1, 1, 5, 9)
    wide[0, 0, 2, 6] = 1  # two pixels right of the centre: at 90° two pixels above it
    assert View(0, 1, angle=90).apply(wide)[0, 0, 0, 4] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(
        View(0, 1, angle=180).apply(wide), wide.flip(2, 3), atol=1e-5, rtol=0
    )
    half = View(0, 1, angle=45).apply(wide)[0, 0]
    peak = half.argmax()  # 2/√2 = 1.4 right of and above the centre
    assert (int(peak) // 9, int(peak) % 9) == (1, 5)


def test_a_small_rotation_interpolates_linearly() -> None:
    rows = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 1, 7, 7)
    angle = 10.0
    turned = View(0, 1, angle=angle).apply(rows)[0, 0]
    # The value at a pixel is the height of its source point: linear, so bilinear is exact.
    for right in (-1, 0, 1):
        expected = 3 + right * math.sin(math.radians(angle))
        assert float(turned[3, 3 + right]) == pytest.approx(expected, abs=1e-5)


def test_angles_run_evenly_from_0_to_the_largest() -> None:
    images = load_images("digits")
    images = replace(images, x_test=images.x_test[:20], y_test=images.y_test[:20])
    stream = make_stream(images, StreamOptions("rotated", tasks=3, max_angle=180), seed=0)
    x = [whole(experience)[0] for experience in stream.benchmark.test_stream]
    assert torch.equal(whole(stream.benchmark.test_stream[0])[0], x[0])
    mean, std = pixels(stream, images)
    plain = images.x_test.float().sub(mean).div(std)
    for quarter in range(3):
        torch.testing.assert_close(
            x[quarter], torch.rot90(plain, quarter, (2, 3)), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    ("scenario", "targets", "labels", "units", "outputs"),
    [
        ("split-task", [{0, 1}, {0, 1}], [0, 1], [[0, 1], [2, 3]], (4, 2)),
        ("split-domain", [{0, 1}, {0, 1}], [0, 0], [[0, 1], [0, 1]], (2, 2)),
        ("split-class", [{0, 1}, {2, 3}], [0, 0], [[0, 1], [2, 3]], (4, 4)),
        ("permuted", [{0, 1, 2, 3}] * 2, [0, 0], [[0, 1, 2, 3]] * 2, (4, 4)),
        ("rotated", [{0, 1, 2, 3}] * 2, [0, 0], [[0, 1, 2, 3]] * 2, (4, 4)),
    ],
)
def test_targets_task_labels_and_outputs_of_each_scenario(
    scenario: Any,
    targets: list[set[int]],
    labels: list[int],
    units: list[list[int]],
    outputs: tuple[int, int],
) -> None:
    stream = make_stream(toy(), StreamOptions(scenario, tasks=2), seed=0)
    assert (stream.n_outputs, stream.outputs_per_task) == outputs
    assert stream.classes_per_task == units
    assert stream.n_tasks == 2
    streams = stream.benchmark.streams
    assert sorted(streams) == ["test", "train", "val"]
    for part in streams.values():
        for number, experience in enumerate(part):
            _, y, t = whole(experience)
            assert set(y.tolist()) == targets[number]
            assert experience.classes_in_this_experience == sorted(targets[number])
            assert set(experience.dataset.targets) == targets[number]
            assert set(t.tolist()) == {labels[number]}
            assert experience.task_labels == [labels[number]]
            assert experience.current_experience == number


def test_split_tasks_get_all_images_of_their_classes_and_no_other() -> None:
    images = toy()
    stream = make_stream(images, StreamOptions("split-domain", tasks=2), seed=0)
    mean, std = pixels(stream, images)
    for number, experience in enumerate(stream.benchmark.test_stream):
        x, y, _ = whole(experience)
        source = (x[:, 0, 0, 0].double() * std + mean).round().long() - 1000
        wanted = [n for n in range(40) if images.y_test[n] // 2 == number]
        assert source.tolist() == wanted
        assert torch.equal(y, images.y_test[source] - 2 * number)


def test_each_task_draws_its_own_images_and_repeats_with_the_seed() -> None:
    images = toy(each=50)
    options = StreamOptions("rotated", tasks=2, max_angle=0, train_size=30)

    def draws(seed: int) -> list[torch.Tensor]:
        stream = make_stream(images, options, seed=seed)
        return [whole(experience)[0] for experience in stream.benchmark.train_stream]

    first, second = draws(3)
    assert len(first) == len(second) == 30
    assert len(torch.unique(first, dim=0)) == 30
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    assert torch.equal(first, draws(3)[0])
    assert not torch.equal(first, draws(4)[0])


def test_rows_can_be_permuted_and_split_but_not_rotated_or_padded() -> None:
    images = toy(shape=(6,))
    for scenario in get_args(Scenario)[:1] + get_args(Scenario)[2:]:
        stream = make_stream(images, StreamOptions(scenario, tasks=2), seed=0)
        assert stream.input_shape == whole(stream.benchmark.train_stream[0])[0].shape[1:] == (6,)
    with pytest.raises(OptionError, match="toy has flat rows, not images: rotated needs"):
        make_stream(images, StreamOptions("rotated"), seed=0)
    with pytest.raises(OptionError, match="pad must be 0"):
        make_stream(images, StreamOptions(pad=1), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "blurred"}, "unknown scenario 'blurred': use permuted"),
        ({"tasks": 0}, "tasks is 0"),
        ({"tasks": 2.0}, r"tasks is 2\.0"),
        ({"tasks": True}, "tasks is True"),
        ({"train_size": 0}, "train_size is 0"),
        ({"val_size": -1}, "val_size is -1"),
        ({"pad": -1}, "pad is -1"),
        ({"pad": None}, "pad is None"),
        ({"max_angle": float("nan")}, "max_angle is nan"),
        ({"max_angle": "90"}, "max_angle is '90'"),
    ],
)
def test_unusable_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StreamOptions(**changes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (StreamOptions("split-task", tasks=5), OptionError, "4 classes, fewer than 5 tasks"),
        (StreamOptions("split-class", tasks=3), OptionError, r"into 3 tasks: use 1, 2, 4$"),
        (StreamOptions(train_size=37), DataError, "task 0 has 36 training images .* 37 were asked"),
        (StreamOptions(val_size=3), DataError, r"cannot cut 3 of 40 .* \(val_size\) 4 to 36"),
        (StreamOptions(val_size=37), DataError, "cannot cut 37 of 40"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(
    options: StreamOptions, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_stream(toy(), options, seed=0)


def test_images_that_are_all_alike_are_refused() -> None:
    images = replace(toy(), x_train=torch.full((40, 1, 3, 5), 7.1))
    with pytest.raises(DataError, match=r"all training pixels have the value 7\.1"):
        make_stream(images, StreamOptions(), seed=0)


def test_a_test_part_without_a_task_s_classes_is_refused() -> None:
    images = toy()
    images = replace(images, x_test=images.x_test[:2], y_test=images.y_test[:2])
    with pytest.raises(DataError, match="task 1 has no test images"):
        make_stream(images, StreamOptions("split-task", tasks=2), seed=0)


def test_the_cache_keeps_its_budget_and_drops_the_least_recently_used() -> None:
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.zeros(10)  # 40 bytes

    cache = TensorCache(100)
    for name in "abacab":
        cache.get(name, partial(make, name))
        assert cache.bytes_held() <= 80
    assert "".join(made) == "abcb"  # c pushed b out, a was used since
    assert TensorCache(1).get("large", lambda: torch.ones(9)).sum() == 9
    assert pickle.loads(pickle.dumps(cache)).bytes_held() == 0


def test_a_small_cache_changes_no_value() -> None:
    images = load_images("digits")
    names: list[Scenario] = ["permuted", "rotated"]
    for name in names:
        options = StreamOptions(name, tasks=3)
        wide, tight = (make_stream(images, options, seed=1, cache_bytes=n) for n in (2**30, 0))
        for _ in range(2):
            for a, b in zip(wide.benchmark.train_stream, tight.benchmark.train_stream, strict=True):
                assert all(torch.equal(p, q) for p, q in zip(whole(a), whole(b), strict=True))


def test_the_data_set_is_never_written_to() -> None:
    images = toy()
    before = images.x_train.clone()
    stream = make_stream(images, StreamOptions("split-domain", tasks=2), seed=0)
    for x, _, _ in stream.benchmark.train_stream[0].dataset.feed(4):
        x.zero_()  # a training loop may: it owns its batch
    assert torch.equal(images.x_train, before)
    assert float(whole(stream.benchmark.train_stream[0])[0].abs().max()) > 0


def test_a_drawn_order_of_classes_is_the_seeds_and_every_class_comes_once() -> None:
    images = toy(classes=6, each=20)
    held = []
    for seed in (0, 0, 1):
        options = StreamOptions("split-class", tasks=3, class_order="drawn")
        stream = make_stream(images, options, seed=seed)
        classes = []
        for number, experience in enumerate(stream.benchmark.train_stream):
            x, y, *_ = whole(experience)
            mean, std = pixels(stream, images)
            stored = (x.flatten(1)[:, 0].double() * std + mean).round().long() % 6
            assert set(y.tolist()) == {2 * number, 2 * number + 1}
            pairs = set(zip(y.tolist(), stored.tolist(), strict=True))
            assert len(pairs) == 2  # one stored class for each target
            classes += [own for _, own in sorted(pairs)]
        held.append(classes)
    assert held[0] == held[1] != held[2]
    assert sorted(held[0]) == sorted(held[2]) == list(range(6))
    with pytest.raises(OptionError, match="class_order is 'bent'"):
        StreamOptions(class_order="bent")  # type: ignore[arg-type]
