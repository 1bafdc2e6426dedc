"""Loading data sets: known arrays come back as given, and nothing unusable gets in."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from flatcl.data import kept_images, load_images, stratified_split
from flatcl.errors import DataError
from flatcl.stamps import content_of


def arrays(**changes: object) -> dict[str, np.ndarray]:
    good: dict[str, object] = {
        "x_train": np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3),
        "y_train": np.array([7, 3, 3, 7, 9, 9]),
        "x_test": np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3),
        "y_test": np.array([9, 3], dtype=np.uint8),
    }
    return {key: np.asarray(value) for key, value in (good | changes).items() if value is not None}


def saved(folder: Path, **changes: object) -> str:
    path = folder / "set.npz"
    np.savez(path, **arrays(**changes))  # type: ignore[arg-type]
    return str(path)


def test_grey_images_come_back_as_stored_with_classes_numbered_from_0(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path))
    assert images.x_train.dtype == torch.uint8
    assert images.x_train.shape == (6, 1, 2, 3)
    assert images.x_train.flatten().tolist() == list(range(36))
    assert images.y_train.tolist() == [1, 0, 0, 1, 2, 2]
    assert images.y_test.tolist() == [2, 0]
    assert images.y_train.dtype == images.y_test.dtype == torch.int64
    assert images.n_classes == 3


def test_colours_move_to_the_front(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((6, 4, 5, 3))
    images = load_images(saved(tmp_path, x_train=x, x_test=x[:2]))
    assert images.x_train.dtype == torch.float32
    assert images.x_train.shape == (6, 3, 4, 5)
    assert images.x_train[2, 1, 3, 4] == np.float32(x[2, 3, 4, 1])


def test_rows_stay_rows_whatever_their_byte_order(tmp_path: Path) -> None:
    x = np.arange(24, dtype=">f4").reshape(6, 4)
    images = load_images(saved(tmp_path, x_train=x, x_test=np.asfortranarray(x[:2])))
    assert images.x_train.tolist() == x.tolist()
    assert images.x_test.tolist() == x[:2].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"lacks y_test \(it has x_train, y_train, x_test\): save the four"),
        ({"x_train": np.array([None] * 6)}, "x_train .* pickled objects, which are never loaded"),
        ({"y_train": np.array(list("abcabc"), dtype=object)}, "y_train .* pickled objects"),
        ({"y_train": np.arange(5)}, r"y_train .* shape \(5,\) for 6 images"),
        ({"y_train": np.zeros((6, 1), int)}, r"shape \(6, 1\) for 6 images"),
        ({"y_train": np.zeros(6)}, "dtype float64: save the classes as integers"),
        ({"y_train": np.full(6, 4)}, "one class only, 4"),
        ({"y_test": np.array([3, 4])}, r"classes that y_train lacks \(4\)"),
        ({"x_test": np.zeros((2, 3, 3), np.uint8)}, r"\(1, 2, 3\) and x_test of \(1, 3, 3\)"),
        ({"x_train": np.zeros((6, 2, 3), np.int64)}, "dtype int64: save it as uint8 or float"),
        ({"x_train": np.zeros((6, 3, 2, 2), np.uint8)}, "colours last"),
        ({"x_train": np.zeros(6, np.uint8)}, r"shape \(6,\)"),
        ({"x_train": np.zeros((0, 2, 3), np.uint8)}, "empty"),
        ({"x_test": np.full((2, 2, 3), np.nan)}, "x_test .* has 12 values that are NaN"),
        ({"x_train": np.full((6, 2, 3), 1e300)}, "too large for float32"),
    ],
)
def test_unusable_arrays_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_images(saved(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable npz archive"):
        load_images(str(path))


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, x_train=np.full((6, 2, 3), 77, np.uint8)))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"M" * 36, b"N" * 36))  # 77 is M: now the checksum is wrong
    with pytest.raises(DataError, match=r"x_train .* is damaged"):
        load_images(str(path))


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "set.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        load_images(str(tmp_path / "set.npz"))


@pytest.mark.parametrize(
    ("source", "message"),
    [("mnits", "unknown data set 'mnits': use digits, mnist"), ("none.npz", "no file 'none.npz'")],
)
def test_unknown_sources_are_refused(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(source)


def test_a_named_set_is_found_in_any_folder_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())  # type: ignore[arg-type]
    monkeypatch.setenv("FLATCL_DATA", f"{tmp_path / 'absent'}{os.pathsep}{tmp_path}")
    images = load_images("mnist")
    assert images.name == "mnist"
    assert len(images.x_train) == 6


def test_a_named_set_whose_file_changes_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "a" / "mnist.npz"
    monkeypatch.setenv("FLATCL_DATA", str(tmp_path / "a"))
    found, contents = [], []
    for number in (1, 2):
        np.savez(path, **arrays() | {"x_test": arrays()["x_test"] + number})  # type: ignore[arg-type]
        found.append(kept_images("mnist"))
        contents.append(content_of("mnist"))
        assert kept_images("mnist") is found[-1]
    assert torch.equal(found[1].x_test, found[0].x_test + 1)
    path.rename(tmp_path / "b" / "mnist.npz")
    np.savez(path, **arrays())  # type: ignore[arg-type]
    monkeypatch.setenv("FLATCL_DATA", f"{tmp_path / 'b'}{os.pathsep}{tmp_path / 'a'}")
    assert content_of("mnist") == contents[1] != contents[0]
    assert content_of("digits") is None  # scikit-learn's own
    monkeypatch.setenv("FLATCL_DATA", "")
    assert content_of("mnist") is None  # torchvision's, which is checked as it comes


def test_a_named_set_is_downloaded_where_the_variable_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    from torchvision import datasets

    class Parts:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert download
            assert root.startswith(str(tmp_path))
            part = "train" if train else "test"
            self.data = torch.from_numpy(arrays()[f"x_{part}"])
            self.targets = arrays()[f"y_{part}"].tolist()

    monkeypatch.delenv("FLATCL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "FashionMNIST", Parts)
    assert load_images("fashion").y_train.tolist() == [1, 0, 0, 1, 2, 2]

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "FashionMNIST", fail)
    with pytest.raises(DataError, match=r"no route to host\): put fashion.npz .* FLATCL_DATA"):
        load_images("fashion")


def test_the_digits_are_split_once_and_for_all() -> None:
    images, again = load_images("digits"), load_images("digits")
    assert images.x_train.shape == (1438, 1, 8, 8)
    assert images.x_test.shape == (359, 1, 8, 8)
    assert int(images.x_train.max()) == 16
    assert torch.equal(images.x_test, again.x_test)
    shares = torch.bincount(images.y_test).double() / torch.bincount(
        torch.cat([images.y_train, images.y_test])
    )
    assert float((shares - 359 / 1797).abs().max()) < 0.006  # one image in 174


def test_a_stratified_split_gives_each_class_its_share() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    kept, cut = stratified_split(labels, 10, seed=1)
    assert torch.bincount(labels[cut]).tolist() == [6, 3, 1]
    assert torch.equal(torch.cat([kept, cut]).sort().values, torch.arange(100))
    assert not torch.equal(cut, stratified_split(labels, 10, seed=2)[1])
    assert torch.bincount(labels[stratified_split(labels, 3, seed=1)[1]]).tolist() == [1, 1, 1]
    assert torch.bincount(labels[stratified_split(labels, 97, seed=1)[0]]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [0, 2, 98, 1000])
def test_a_split_that_empties_a_class_is_refused(size: int) -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    with pytest.raises(DataError, match=re.escape(f"cannot cut {size} of 100") + ".* 3 to 97"):
        stratified_split(labels, size, seed=0)


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="class 5 has one image only"):
        stratified_split(torch.tensor([2, 2, 5]), 2, seed=0)
