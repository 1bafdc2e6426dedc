"""Data files cut short, altered or made to harm: refused in one line, or read as they were."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatcl.cli.main import main
from flatcl.data import load_images
from flatcl.errors import DataError, FlatclError

SMALL = {
    "compare": "--methods naive --tasks 2 --seeds 1 --epochs 1 --hidden 4 --jobs 1",
    "analyze": "--batch-size 10 --subset 20 --no-panel --hidden 12,12 --max-epochs 1 --steps 200 "
    "--directions 10 --spacing 4 --jobs 1",
    "generalize": "--hidden 8,8 --seeds 1 --train-size 40 --batch-sizes= --train-sizes= --noises= "
    "--lrs= --dropouts= --max-epochs 50 --jobs 1",
}


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    good: dict[str, Any] = {
        "x_train": draw.integers(0, 255, (60, 4, 4), dtype=np.uint8),
        "y_train": np.arange(60) % 2,
        "x_test": draw.integers(0, 255, (20, 4, 4), dtype=np.uint8),
        "y_test": np.arange(20) % 2,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def content(compressed: bool = True, /, **changes: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays(**changes))  # type: ignore[arg-type]
    return stream.getvalue()


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Cut, overwritten here and there, or with a piece missing."""
    found, kind = bytearray(whole), draw.randrange(3)
    if kind == 0:
        return bytes(found[: draw.randrange(len(found))])
    if kind == 1:
        for _ in range(draw.choice([1, 2, 5, 50])):
            found[draw.randrange(len(found))] = draw.randrange(256)
        return bytes(found)
    start = draw.randrange(len(found))
    del found[start : start + draw.randrange(1, 60)]
    return bytes(found)


class Trap:
    """What pickle makes a folder of, should anybody unpickle it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def outcome(path: Path) -> str | None:
    """What the reader says of a file; None if it read the arrays that were saved."""
    try:
        found = load_images(str(path))
    except FlatclError as error:
        return str(error)
    for part in ("train", "test"):
        saved = torch.from_numpy(arrays()[f"x_{part}"])
        assert torch.equal(getattr(found, f"x_{part}")[:, 0], saved)
        assert getattr(found, f"y_{part}").tolist() == arrays()[f"y_{part}"].tolist()
    return None


@pytest.mark.parametrize("compressed", [True, False])
def test_a_data_file_cut_or_altered_is_refused_or_as_it_was(
    tmp_path: Path, compressed: bool, record_property: Any
) -> None:
    draw, path = random.Random(2), tmp_path / "images.npz"
    whole, refused = content(compressed), 0
    for _ in range(200):
        path.write_bytes(damaged(whole, draw))
        refused += outcome(path) is not None
    assert refused > 130
    record_property("inputs", 200)


@pytest.mark.parametrize(("place", "byte"), [(6, 99), (10, 99), (8, 1)])
def test_an_archive_of_an_unknown_kind_is_refused(tmp_path: Path, place: int, byte: int) -> None:
    """Byte 6 of an entry's header in the directory is a version, 8 a key's flag, 10 a method."""
    whole = bytearray(content())
    whole[whole.index(b"PK\x01\x02") + place] = byte
    path = tmp_path / "images.npz"
    path.write_bytes(whole)
    assert outcome(path) is not None


@pytest.mark.parametrize("key", ["x_train", "y_test"])
@pytest.mark.parametrize("command", SMALL)
def test_no_command_unpickles_a_data_file(
    tmp_path: Path, command: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sprung = tmp_path / "sprung"
    trap = np.array([Trap(str(sprung))] * 20, dtype=object)
    path = tmp_path / "images.npz"
    path.write_bytes(content(**{key: trap}))
    line = [command, *SMALL[command].split(), "--data", str(path), "--out", str(tmp_path / "out")]
    assert main([*line, "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("flatcl: error: ")
    assert shown.err.count("\n") == 1
    assert "never loaded" in shown.err
    assert not sprung.exists()
    pickle.loads(pickle.dumps(trap[0]))  # the trap is armed
    assert sprung.exists()


@pytest.mark.parametrize("payload", ["pickle", "array", "zip of a pickle"])
def test_a_pickle_called_npz_is_not_opened(tmp_path: Path, payload: str) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "images.npz"
    trap = Trap(str(sprung))
    if payload == "pickle":
        path.write_bytes(pickle.dumps(trap))
    elif payload == "array":
        with path.open("wb") as file:
            np.save(file, np.array([trap], dtype=object), allow_pickle=True)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for key in arrays():
                archive.writestr(f"{key}.npy", pickle.dumps(trap))
    with pytest.raises(DataError):
        load_images(str(path))
    assert not sprung.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": np.zeros((60, 4, 4), np.uint8)},
        {"x_train": np.full((60, 4, 4), 7, np.uint8)},
        {"x_train": np.full((60, 4, 4), -1.0)},
        {"x_train": np.full((60, 4, 4), np.nan)},
        {"x_train": np.full((60, 4, 4), 3e38), "x_test": np.full((20, 4, 4), -3e38)},
        {"y_train": np.zeros(60, int), "y_test": np.zeros(20, int)},
        {"y_train": np.arange(60), "y_test": np.arange(20)},
        {"y_train": np.array([0, 1] * 29 + [2, 0])},
        {"y_train": np.arange(60, dtype=np.uint64) % 2 + 2**63},
        {"x_train": np.zeros((1, 4, 4), np.uint8), "y_train": np.zeros(1, int)},
        {"x_test": np.zeros((0, 4, 4), np.uint8), "y_test": np.zeros(0, int)},
        {"x_train": np.zeros((60, 0), np.uint8), "x_test": np.zeros((20, 0), np.uint8)},
        {"x_train": np.zeros((60, 4, 4), "<M8[s]")},
        {"x_train": np.zeros((60, 4, 4), "S3")},
        {"x_train": np.zeros((60, 4, 4), complex)},
        {"y_test": None},
    ],
    ids=range(16),
)
@pytest.mark.parametrize("command", SMALL)
def test_images_of_no_use_are_one_line(
    tmp_path: Path, command: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "images.npz"
    path.write_bytes(content(**changes))
    line = [command, *SMALL[command].split(), "--data", str(path), "--out", str(tmp_path / "out")]
    code = main([*line, "--quiet"])
    shown = capsys.readouterr()
    if code == 0:  # of use to this command after all
        assert not shown.err
        return
    assert code == 2, shown.err
    assert shown.err.startswith("flatcl: error: ")
    assert shown.err.count("\n") == 1
    assert str(path) in shown.err or "class" in shown.err or "pixels" in shown.err
    assert "nan" not in shown.err.lower() or np.isnan(changes["x_train"]).any()
